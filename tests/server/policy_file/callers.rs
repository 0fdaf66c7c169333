//! The callers that a rule allows.

use http::{Request, Response};
use serde_json::json;
use std::convert::Infallible;
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::CallerState;
use tower_spiffe::server::{Decision, ValidateJwtSvidLayer};
use tower_spiffe::testing::verified_svid;

use super::{allows, allows_anonymous, decide, document, web_rule, with_claims};
use crate::support::{OPS, WEB, World, bearer};

fn with(callers: &str) -> String {
    format!("[[rule]]\npath = '/a'\nmethods = ['GET']\n{callers}\n")
}

#[test]
fn p03_callers_are_matched_as_by_allow() {
    let cases = [
        ("ids = ['spiffe://x/web']", vec!["spiffe://x/web"]),
        (
            "path_prefixes = ['spiffe://x/web']",
            vec!["spiffe://x/web", "spiffe://x/web/1"],
        ),
        (
            "trust_domains = ['x']",
            vec!["spiffe://x/web", "spiffe://x/web/1", "spiffe://x/webhook"],
        ),
        (
            "ids = ['spiffe://x/webhook']\ntrust_domains = ['y']",
            vec!["spiffe://x/webhook", "spiffe://y/web"],
        ),
        (
            "any_trust_domain = true",
            vec![
                "spiffe://x/web",
                "spiffe://x/web/1",
                "spiffe://x/webhook",
                "spiffe://xx/web",
                "spiffe://y/web",
            ],
        ),
    ];
    let all = cases.last().unwrap().1.clone();
    for (callers, expected) in cases {
        let policy = document(&with(callers));
        let mut allowed = all.clone();
        allowed.retain(|id| allows(&policy, id, "/a"));
        assert_eq!(allowed, expected, "{callers}");
        assert!(!allows_anonymous(&policy, "/a"), "{callers}");
    }
}

#[test]
fn p03_claims_are_all_required() {
    let policy = document(&with(
        "any_trust_domain = true\n\
         claims.stage = 'live'\nclaims.tier = { one_of = [1, 2] }\n\
         claims.groups = { contains = 'ops' }\nclaims.on = true",
    ));
    let good = json!({"stage": "live", "tier": 2, "groups": ["a", "ops"], "on": true});
    let decision = |claims| decide(&policy, Some(&with_claims(claims)), "/a");
    assert_eq!(decision(good.clone()), Decision::Allow);
    for (name, value) in [
        ("stage", json!("Live")),
        ("stage", json!(["live"])),
        ("tier", json!("2")),
        ("tier", json!(3)),
        ("tier", json!(2.0)),
        ("groups", json!([])),
        ("groups", json!(["opsx"])),
        ("groups", json!([["ops"]])),
        ("on", json!(false)),
        ("on", json!("true")),
        ("on", json!(null)),
    ] {
        let mut claims = good.clone();
        claims[name] = value;
        assert!(decision(claims.clone()).is_deny(), "{claims}");
        claims.as_object_mut().unwrap().remove(name);
        assert!(decision(claims).is_deny());
    }
}

#[test]
fn p03_denials_have_a_reason() {
    let policy = document(&with("ids = ['spiffe://x/web']\nclaims.a = 1"));
    let reason = |id, request| {
        let decision = decide(&policy, Some(&verified_svid(id)), request);
        decision.reason().unwrap()
    };
    assert!(reason(WEB, "/b").contains("this path"));
    assert!(reason(WEB, "PUT /a").contains("this method"));
    assert!(reason(OPS, "/a").contains("this caller"));
    assert!(reason(WEB, "/a").contains("the claims"));
    // Anonymous callers do not learn which paths have rules.
    for request in ["/a", "/b", "PUT /a"] {
        assert_eq!(
            decide(&policy, None, request),
            Decision::AuthenticationRequired
        );
    }
}

#[tokio::test]
async fn p03_public_rules_still_see_the_caller() {
    let world = World::new();
    let text = format!("{}{}", with("public = true"), web_rule("/b", "['GET']"));
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), document(&text));
    let service = layer.layer(service_fn(async |request: Request<String>| {
        let caller = CallerState::from_extensions(request.extensions()).unwrap();
        let id = caller
            .verified()
            .map(|caller| caller.spiffe_id().to_string());
        Ok::<_, Infallible>(Response::new(id.unwrap_or_default()))
    }));
    let (web, ops) = (world.bearer(WEB), world.bearer(OPS));
    let invalid = bearer("a.b.c");
    for (path, token, status, body) in [
        ("/a", None, 200, ""),
        ("/a", Some(&ops), 200, OPS),
        ("/a", Some(&invalid), 401, ""),
        ("/b", None, 401, ""),
        ("/b", Some(&ops), 403, ""),
        ("/b", Some(&web), 200, WEB),
        ("/c", None, 401, ""),
        ("/c", Some(&web), 403, ""),
    ] {
        let mut request = Request::get(path).body(String::new()).unwrap();
        if let Some(token) = token {
            request.headers_mut().insert("authorization", token.clone());
        }
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &**response.body()),
            (status, body),
            "{path}"
        );
    }
}
