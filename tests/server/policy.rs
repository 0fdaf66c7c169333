//! Policies: which verified callers are allowed.

use std::convert::Infallible;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Version};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::identity::SpiffeIdMatcher;
use tower_spiffe::server::{
    Allow, AllowCallersLayer, CallerState, Decision, GrpcPolicy, Policy, PolicyError, Protocol,
    Rejection, RejectionReason, SwapPolicy, ValidateJwtSvidLayer,
};
use tower_spiffe::verify::VerifiedSvid;
use tower_spiffe::{SpiffeId, TrustDomain};

use crate::support::{OPS, WEB, World};

async fn status(layer: &ValidateJwtSvidLayer, request: Request<String>) -> u16 {
    let inner = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    layer
        .layer(inner)
        .oneshot(request)
        .await
        .unwrap()
        .status()
        .as_u16()
}

async fn allows(world: &World, policy: impl Policy, id: &str) -> bool {
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), policy);
    match status(&layer, world.request(id)).await {
        200 => true,
        403 => false,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn each_allow_matches_only_the_named_callers() {
    let world = World::new();
    let id: SpiffeId = WEB.parse().unwrap();
    let x: TrustDomain = "x".parse().unwrap();
    let cases: [(Allow, &[&str], &[&str]); 9] = [
        (
            Allow::id(WEB).unwrap(),
            &[WEB],
            &[OPS, "spiffe://x/web/1", "spiffe://x"],
        ),
        (Allow::id(id).unwrap(), &[WEB], &[OPS]),
        (
            Allow::one_of([WEB, OPS]).unwrap(),
            &[WEB, OPS],
            &["spiffe://x/db"],
        ),
        (Allow::trust_domain("x").unwrap(), &[WEB, "spiffe://x"], &[]),
        (Allow::trust_domain("y").unwrap(), &[], &[WEB]),
        (Allow::trust_domain(x).unwrap(), &[WEB], &[]),
        (
            Allow::path_prefix(WEB).unwrap(),
            &[WEB, "spiffe://x/web/1"],
            &["spiffe://x/webhook"],
        ),
        (Allow::any_trust_domain(), &[WEB, OPS], &[]),
        (
            Allow::id(WEB).unwrap().or(Allow::id(OPS).unwrap()),
            &[WEB, OPS],
            &["spiffe://x/db"],
        ),
    ];
    for (policy, allowed, denied) in cases {
        for id in allowed {
            assert!(allows(&world, policy.clone(), id).await, "{policy:?} {id}");
        }
        for id in denied {
            assert!(!allows(&world, policy.clone(), id).await, "{policy:?} {id}");
        }
    }
}

#[tokio::test]
async fn closure_gets_the_caller_and_request() {
    let world = World::new();
    let reads = |caller: &VerifiedSvid, parts: &Parts| {
        assert!(parts.headers.values().all(HeaderValue::is_sensitive));
        caller.spiffe_id().path() == "/web" && parts.method == Method::GET
    };
    assert!(allows(&world, Allow::when(reads), WEB).await);
    assert!(!allows(&world, Allow::when(reads), OPS).await);
    assert!(allows(&world, Allow::when(reads).or(Allow::id(OPS).unwrap()), OPS).await);
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::when(reads));
    let mut post = world.request(WEB);
    *post.method_mut() = Method::POST;
    assert_eq!(status(&layer, post).await, 403);
}

#[test]
fn empty_and_invalid_policies_are_not_built() {
    let none: [&str; 0] = [];
    let error = Allow::one_of(none).unwrap_err();
    assert_eq!(error, PolicyError::Empty);
    assert!(error.to_string().contains("name at least one caller"));
    assert!(Allow::matching(SpiffeIdMatcher::one_of([])).is_err());
    for text in [
        "",
        "x/web",
        "spiffe://X/web",
        "spiffe://x/web/",
        "https://x/web",
    ] {
        assert!(Allow::id(text).is_err(), "{text}");
        assert!(Allow::path_prefix(text).is_err(), "{text}");
        // The error quotes the invalid ID, also among many.
        let error = Allow::one_of([WEB, text]).unwrap_err();
        let PolicyError::SpiffeId { text: named, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(named, text);
        assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
    }
    let error = Allow::trust_domain("spiffe://x/web").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the policy names \"spiffe://x/web\", which is not a trust domain: a trust domain has no path; \
         remove what follows its name"
    );
    let error = Allow::id("spiffe://x/web/*").unwrap_err().to_string();
    assert!(error.contains("`Allow::path_prefix` allows"), "{error}");
}

#[tokio::test]
async fn allow_accepts_strings_and_parsed_ids() {
    let world = World::new();
    let (callers, trust_domain) = (vec![WEB.to_owned()], "x".to_owned());
    let parsed: Vec<SpiffeId> = vec![WEB.parse().unwrap()];
    let domains = [parsed[0].trust_domain()];
    for policy in [
        Allow::one_of(&callers),
        Allow::one_of(&parsed),
        Allow::trust_domain(&trust_domain),
        Allow::trust_domain(&domains[0]),
    ] {
        assert!(allows(&world, policy.unwrap(), WEB).await);
    }
}

#[tokio::test]
async fn policy_can_be_replaced_during_requests() {
    let world = World::new();
    let policy = SwapPolicy::new(Allow::id(WEB).unwrap());
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), policy.clone())
        .protocol(Protocol::Http);
    assert_eq!(status(&layer, world.request(WEB)).await, 200);
    policy.replace(Allow::id(OPS).unwrap());
    // The token is in the cache, but the policy is evaluated again.
    assert_eq!(status(&layer, world.request(WEB)).await, 403);
    assert_eq!(status(&layer, world.request(OPS)).await, 200);
    policy.replace(
        GrpcPolicy::deny_by_default()
            .public("/r.R/Open")
            .build()
            .unwrap(),
    );
    let open = Request::builder()
        .uri("/r.R/Open")
        .body(String::new())
        .unwrap();
    assert_eq!(status(&layer, open).await, 200);
    assert_eq!(status(&layer, world.request(OPS)).await, 403);
}

fn grpc(mut request: Request<String>, path: &str) -> Request<String> {
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = path.parse().unwrap();
    request
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request
}

#[tokio::test]
async fn a_grpc_policy_denies_unnamed_methods() {
    let world = World::new();
    let policy = GrpcPolicy::deny_by_default()
        .method("/r.Reports/Get", Allow::trust_domain("x").unwrap())
        .method("/r.Reports/Delete", Allow::id(OPS).unwrap())
        .public("/grpc.health.v1.Health/Check")
        .build()
        .unwrap();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), policy);
    let inner = service_fn(|request: Request<String>| async move {
        let state = CallerState::from_extensions(request.extensions()).unwrap();
        let mut response = Response::new(String::new());
        let verified = HeaderValue::from(u16::from(state.verified().is_some()));
        response.headers_mut().insert("verified", verified);
        Ok::<_, Infallible>(response)
    });
    let ask = async |request| {
        let response = layer.layer(inner).oneshot(request).await.unwrap();
        let header = |name| {
            response
                .headers()
                .get(name)
                .map(|v| v.to_str().unwrap().to_owned())
        };
        header("grpc-status").unwrap_or_else(|| format!("verified {}", header("verified").unwrap()))
    };
    let anonymous = || Request::new(String::new());
    for (request, path, answer) in [
        (world.request(WEB), "/r.Reports/Get", "verified 1"),
        (world.request(OPS), "/r.Reports/Get", "verified 1"),
        (anonymous(), "/r.Reports/Get", "16"),
        (world.request(WEB), "/r.Reports/Delete", "7"),
        (world.request(OPS), "/r.Reports/Delete", "verified 1"),
        (world.request(OPS), "/r.Reports/Other", "7"),
        (world.request(OPS), "/r.Reports/Get/", "7"),
        (world.request(OPS), "//r.Reports/Get", "7"),
        (anonymous(), "/grpc.health.v1.Health/Check", "verified 0"),
        (
            world.request(WEB),
            "/grpc.health.v1.Health/Check",
            "verified 1",
        ),
        (bad(), "/grpc.health.v1.Health/Check", "16"),
        (anonymous(), "/grpc.health.v1.Health/Watch", "16"),
    ] {
        assert_eq!(ask(grpc(request, path)).await, answer, "{path}");
    }
}

fn bad() -> Request<String> {
    let mut request = Request::new(String::new());
    for value in ["Bearer a.b.c", "Bearer"] {
        request
            .headers_mut()
            .append("authorization", HeaderValue::from_static(value));
    }
    request
}

#[tokio::test]
async fn a20_public_paths_match_as_the_router_does() {
    let world = World::new();
    let policy = GrpcPolicy::deny_by_default()
        .public("/r.R/Open")
        .build()
        .unwrap();
    let layer =
        ValidateJwtSvidLayer::required(world.validator.clone(), policy).protocol(Protocol::Http);
    // An inner router uses the path that the policy compared.
    let inner = service_fn(|request: Request<String>| async move {
        assert_eq!(request.uri().path(), "/r.R/Open");
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    for (path, expected) in [
        ("/r.R/Open", 200),
        ("/r.R/Open?x=/r.R/Shut", 200),
        // A request's path has no fragment.
        ("/r.R/Open#x", 200),
        ("/r.R/Open#/../Shut", 200),
        ("/r.R/Shut#/r.R/Open", 401),
        ("/r.R/Shut?/r.R/Open", 401),
        ("/r.R/Open%23x", 401),
        ("/r.R/Open/../Shut", 401),
        ("/r.R//Open", 401),
        ("//r.R/Open", 401),
        ("/r.R/Open/", 401),
        ("/r.R/Ope%6e", 401),
        ("/r.R/%2e/Open", 401),
        ("/r.R/Shut/%2e%2e/Open", 401),
        ("/r.R/Open/%2E%2E/Shut", 401),
        ("/r%2eR/Open", 401),
        ("/r.R/Open%2f..%2fShut", 401),
        ("/r.R/Opener", 401),
        ("/R.r/Open", 401),
    ] {
        for method in [Method::GET, Method::POST, Method::OPTIONS] {
            let mut request = Request::builder().uri(path).body(String::new()).unwrap();
            *request.method_mut() = method;
            let name = "x-http-method-override";
            request
                .headers_mut()
                .insert(name, HeaderValue::from_static("OPTIONS"));
            request
                .headers_mut()
                .insert("x-original-url", HeaderValue::from_static("/r.R/Open"));
            let response = layer.layer(inner).oneshot(request).await.unwrap();
            assert_eq!(response.status(), expected, "{path}");
        }
    }
}

#[tokio::test]
async fn an_inner_policy_uses_the_outer_identity() {
    let world = World::new();
    let narrow = AllowCallersLayer::new(Allow::id(OPS).unwrap());
    let inner = narrow.layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let ask = async |layer: &ValidateJwtSvidLayer, request| {
        layer.layer(inner.clone()).oneshot(request).await.unwrap()
    };
    let any = || Allow::any_trust_domain();

    let required = ValidateJwtSvidLayer::required(world.validator.clone(), any());
    assert_eq!(ask(&required, world.request(OPS)).await.status(), 200);
    let response = ask(&required, world.request(WEB)).await;
    assert_eq!(response.status(), 403);
    assert_eq!(
        response.headers()["www-authenticate"],
        "Bearer realm=\"spiffe\", error=\"insufficient_scope\""
    );

    let optional = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    assert_eq!(ask(&optional, Request::default()).await.status(), 401);

    let audit = ValidateJwtSvidLayer::audit(world.validator.clone(), Allow::id(WEB).unwrap());
    for request in [Request::default(), bad(), world.request(OPS)] {
        assert_eq!(ask(&audit, request).await.status(), 401);
    }
    assert_eq!(ask(&audit, world.request(WEB)).await.status(), 403);
}

/// Public methods allow verified callers too, also with a custom policy.
#[tokio::test]
async fn public_methods_are_open_to_unnamed_callers() {
    struct Ops;
    impl Policy for Ops {
        fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision {
            match caller {
                None if parts.uri.path() == "/health" => Decision::Allow,
                None => Decision::AuthenticationRequired,
                Some(caller) if caller.spiffe_id().as_str() == OPS => Decision::Allow,
                Some(_) => Decision::Deny,
            }
        }
    }

    let world = World::new();
    let layer = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    let narrow = AllowCallersLayer::new(Ops);
    let service = layer.layer(narrow.layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    })));
    for (request, path, expected) in [
        (Request::default(), "/health", 200),
        (world.request(WEB), "/health", 200),
        (world.request(OPS), "/health", 200),
        (Request::default(), "/", 401),
        (world.request(WEB), "/", 403),
        (world.request(OPS), "/", 200),
    ] {
        let mut request = request;
        *request.uri_mut() = path.parse().unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), expected, "{path}");
    }
    let alone = narrow.layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let mut request = Request::<String>::default();
    *request.uri_mut() = "/health".parse().unwrap();
    assert_eq!(alone.oneshot(request).await.unwrap().status(), 500);
}

#[tokio::test]
async fn inner_public_methods_are_open_in_audit() {
    let world = World::new();
    let policy = GrpcPolicy::deny_by_default().public("/r.R/Open").build();
    let narrow = AllowCallersLayer::new(policy.unwrap()).protocol(Protocol::Http);
    let layer = ValidateJwtSvidLayer::audit(world.validator.clone(), Allow::id(WEB).unwrap());
    let inner = layer.layer(narrow.layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    })));
    for (request, path, expected) in [
        (Request::default(), "/r.R/Open", 200),
        // The audit forwards it without an identity, so it is anonymous here.
        (bad(), "/r.R/Open", 200),
        (world.request(OPS), "/r.R/Open", 200),
        (Request::default(), "/r.R/Get", 401),
        (bad(), "/r.R/Get", 401),
    ] {
        let mut request = request;
        *request.uri_mut() = path.parse().unwrap();
        let response = inner.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), expected, "{path}");
    }
}

#[tokio::test]
async fn an_inner_policy_without_the_layer_reports_it() {
    let world = World::new();
    let narrow = AllowCallersLayer::new(Allow::any_trust_domain());
    let inner = narrow.layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    // The inner policy never reads a token itself.
    let response = inner.clone().oneshot(world.request(WEB)).await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(response.headers().len(), 1);
    assert_eq!(
        response.headers()["x-tower-spiffe-error"],
        "ValidateJwtSvidLayer is missing from the stack"
    );
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.reason(), RejectionReason::NotWired);

    let policy = GrpcPolicy::deny_by_default().public("/r.R/Get").build();
    let narrow = AllowCallersLayer::new(policy.unwrap());
    let response = narrow
        .layer(inner)
        .oneshot(grpc(world.request(WEB), "/r.R/Get"))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "13");
}
