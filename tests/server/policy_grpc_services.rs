//! Rules for whole gRPC services, and the paths that match them.

use http::Request;
use http::request::Parts;
use tower_spiffe::server::{Allow, Decision, GrpcPolicy, GrpcPolicyBuilder, Policy, PolicyError};
use tower_spiffe::testing::verified_svid;

use crate::support::{OPS, WEB};

fn new() -> GrpcPolicyBuilder {
    GrpcPolicy::deny_by_default()
}

fn parts(path: &str) -> Option<Parts> {
    let request = Request::post(path).body(()).ok()?;
    Some(request.into_parts().0)
}

/// Returns the decisions for an anonymous caller, `web` and `ops`.
fn decisions(policy: &GrpcPolicy, path: &str) -> [Decision; 3] {
    let parts = parts(path).unwrap();
    let of = |caller| policy.decide(Some(&verified_svid(caller)), &parts);
    [policy.decide(None, &parts), of(WEB), of(OPS)]
}

use Decision::{Allow as Yes, AuthenticationRequired as Ask, Deny as No};

#[test]
fn method_rules_override_service_rules() {
    let id = |id| Allow::id(id).unwrap();
    let policy = new()
        .method("/r.Reports/Delete", id(OPS))
        .service("r.Reports", id(WEB))
        .public("/r.Reports/Ping")
        .public_service("r.Docs")
        .method("/r.Docs/Edit", id(OPS))
        .build()
        .unwrap();
    for (path, expected, is_public) in [
        ("/r.Reports/Get", [Ask, Yes, No], false),
        ("/r.Reports/Delete", [Ask, No, Yes], false),
        ("/r.Reports/Ping", [Yes, Yes, Yes], true),
        ("/r.Docs/Read", [Yes, Yes, Yes], true),
        ("/r.Docs/Edit", [Ask, No, Yes], false),
        ("/r.Other/Get", [Ask, No, No], false),
    ] {
        assert_eq!(decisions(&policy, path), expected, "{path}");
        assert_eq!(policy.is_public(&parts(path).unwrap()), is_public, "{path}");
    }
}

#[test]
fn only_plain_methods_match_their_service() {
    let policy = new().public_service("r.Docs").build().unwrap();
    assert!(policy.is_public(&parts("/r.Docs/Read?x=1").unwrap()));
    assert!(policy.is_public(&parts("http://host:1/r.Docs/Read").unwrap()));
    for path in [
        "/",
        "*",
        "/r.Docs",
        "/r.Docs/",
        "//r.Docs/Read",
        "/r.Docs//Read",
        "/r.Docs/Read/",
        "/r.Docs/Read/x",
        "/r.Docs/..",
        "/r.Docs/.",
        "/r.Docs/../r.Reports/Delete",
        "/r.Docs/..%2fr.Reports%2fDelete",
        "/r.Docs/Rea%64",
        "/r.Docs/Read;x",
        "/r.docs/Read",
        "/r.Docs2/Read",
        "/x/r.Docs/Read",
        "/.r.Docs/Read",
    ] {
        let Some(parts) = parts(path) else { continue };
        assert!(!policy.is_public(&parts), "{path}");
        assert_eq!(policy.decide(None, &parts), Ask, "{path}");
    }
}

#[test]
fn presets_are_the_standard_services() {
    let health = "/grpc.health.v1.Health/Watch";
    let reflection = [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ];
    let public = new().public_health().public_reflection().build().unwrap();
    for path in reflection.into_iter().chain([health]) {
        assert_eq!(decisions(&public, path), [Yes; 3], "{path}");
    }
    let ops = Allow::id(OPS).unwrap();
    let narrow = new().public_health().reflection(ops).build().unwrap();
    assert_eq!(decisions(&narrow, health), [Yes; 3]);
    for path in reflection {
        assert_eq!(decisions(&narrow, path), [Ask, No, Yes], "{path}");
    }
    assert_eq!(decisions(&narrow, "/r.Reports/Get"), [Ask, No, No]);
}

#[test]
fn wildcard_errors_suggest_service_rules() {
    let any = Allow::any_trust_domain;
    for path in [
        "/r.Docs/*",
        "/r.Docs/",
        "/r.Docs",
        "r.Docs/*",
        "/r.Docs/Get*",
    ] {
        for builder in [new().public(path), new().method(path, any())] {
            let error = builder.build().unwrap_err();
            assert_eq!(error, PolicyError::MethodPath(path.into()));
            let text = error.to_string();
            assert!(text.contains(".public_service(\"r.Docs\")"), "{text}");
            assert!(text.contains(".service(\"r.Docs\", …)"), "{text}");
        }
    }
    let text = new().public("/*/*").build().unwrap_err().to_string();
    assert!(
        text.contains(".public_service(\"package.Service\")"),
        "{text}"
    );
    for name in [
        "",
        "/r.Docs",
        "r.Docs/",
        "r.Docs/*",
        "r.*",
        "*",
        "r..Docs",
        ".Docs",
        "r.Docs.",
        "r Docs",
        "r.Docs/Get",
        "r.D%6fcs",
    ] {
        for builder in [new().public_service(name), new().service(name, any())] {
            let error = builder.build().unwrap_err();
            assert_eq!(error, PolicyError::ServiceName(name.into()));
            assert!(error.to_string().contains("write `package.Service`"));
        }
    }
}

#[test]
fn two_rules_of_a_service_are_an_error() {
    let twice = PolicyError::ServiceTwice("grpc.health.v1.Health".into());
    let builder = new()
        .public_health()
        .service("grpc.health.v1.Health", Allow::any_trust_domain());
    assert_eq!(builder.build().unwrap_err(), twice);
    // The first error is reported.
    let builder = new().public("x").public_health().public_health();
    assert_eq!(
        builder.build().unwrap_err(),
        PolicyError::MethodPath("x".into())
    );
}
