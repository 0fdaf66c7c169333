//! Common mistakes in policies, and their effects: see `docs/guide/who-may-call.md`.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{HeaderValue, Request};
use serde_json::json;
use tower::{Layer, Service, ServiceExt};
use tower_spiffe::server::{Allow, Claim, GrpcPolicy, Protocol, ValidateJwtSvidLayer};
use tower_spiffe::verify::VerifiedSvid;

use crate::support::{Signer, WEB, World, bearer};

async fn status<S>(service: &S, bearer: Option<HeaderValue>, path: &str) -> u16
where
    S: Service<Request<Body>, Response = axum::response::Response> + Clone,
    S::Error: std::fmt::Debug,
{
    let mut request = Request::get(path).body(Body::empty()).unwrap();
    if let Some(bearer) = bearer {
        request.headers_mut().insert("authorization", bearer);
    }
    let response = service.clone().oneshot(request).await.unwrap();
    response.status().as_u16()
}

fn router() -> Router {
    Router::new().route("/", get(async || "done"))
}

fn required(world: &World, policy: Allow) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::required(world.validator.clone(), policy)
}

#[tokio::test]
async fn a_text_prefix_allows_other_workloads() {
    let world = World::new();
    let text = Allow::when(|caller, _| caller.spiffe_id().as_str().starts_with(WEB));
    let hook = "spiffe://x/webhook";
    for (policy, expected) in [(text, 200), (Allow::path_prefix(WEB).unwrap(), 403)] {
        let app = required(&world, policy).layer(router());
        assert_eq!(status(&app, Some(world.bearer(WEB)), "/").await, 200);
        assert_eq!(status(&app, Some(world.bearer(hook)), "/").await, expected);
    }
}

#[tokio::test]
async fn a_forgotten_extractor_leaves_the_route_open() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    let narrow = layer.allow_callers(Allow::any_trust_domain());
    let router = Router::new()
        .route("/forgotten", get(async || "done"))
        .route("/asks", get(async |_: VerifiedSvid| "done"))
        .route("/narrow", get(async || "done").layer(narrow));
    let app = layer.layer(router);
    for (path, expected) in [("/forgotten", 200), ("/asks", 401), ("/narrow", 401)] {
        assert_eq!(status(&app, None, path).await, expected, "{path}");
        assert_eq!(status(&app, Some(world.bearer(WEB)), path).await, 200);
    }
}

/// A world that federates with the trust domain `y`, and a token of `y`.
fn federated(claims: serde_json::Value) -> (World, HeaderValue) {
    let world = World::new();
    let foreign = Signer::new("y", "k1");
    world.bundles.set([world.issuer.bundle(), foreign.bundle()]);
    let token = foreign.token_with("spiffe://y/web", claims);
    (world, bearer(&token))
}

#[tokio::test]
async fn any_trust_domain_includes_federated_ones() {
    let (world, foreign) = federated(json!({}));
    for (policy, expected) in [
        (Allow::any_trust_domain(), 200),
        (Allow::trust_domain("x").unwrap(), 403),
    ] {
        let app = required(&world, policy).layer(router());
        assert_eq!(status(&app, Some(foreign.clone()), "/").await, expected);
    }
}

#[tokio::test]
async fn claims_of_another_trust_domain_match() {
    let (world, foreign) = federated(json!({ "groups": ["admins"] }));
    let admins = Allow::claim("groups", Claim::contains("admins"));
    let ours = Allow::trust_domain("x").unwrap().and(admins.clone());
    for (policy, expected) in [(admins, 200), (ours, 403)] {
        let app = required(&world, policy).layer(router());
        assert_eq!(status(&app, Some(foreign.clone()), "/").await, expected);
    }
}

#[tokio::test]
async fn routes_added_after_the_layer_are_open() {
    let world = World::new();
    let layer = required(&world, Allow::any_trust_domain());
    let late = |router: Router| router.route("/late", get(async || "done"));
    let app = late(router().layer(layer.clone()));
    assert_eq!(status(&app, None, "/").await, 401);
    assert_eq!(status(&app, None, "/late").await, 200);
    let app = layer.layer(late(router()));
    assert_eq!(status(&app, None, "/late").await, 401);
}

#[tokio::test]
async fn invalid_token_on_a_public_method_is_rejected() {
    let world = World::new();
    let path = "/grpc.health.v1.Health/Check";
    let health = GrpcPolicy::deny_by_default()
        .public_health()
        .build()
        .unwrap();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), health);
    let router = Router::new().route(
        path,
        get(async |caller: Option<VerifiedSvid>| {
            caller.map_or("anonymous".to_owned(), |it| it.spiffe_id().to_string())
        }),
    );
    let app = layer.protocol(Protocol::Http).layer(router);
    let expired = world.issuer.token_with(WEB, json!({ "exp": 1_000_000 }));
    assert_eq!(status(&app, None, path).await, 200);
    assert_eq!(status(&app, Some(world.bearer(WEB)), path).await, 200);
    assert_eq!(status(&app, Some(bearer(&expired)), path).await, 401);
    let malformed = HeaderValue::from_static("Bearer");
    assert_eq!(status(&app, Some(malformed), path).await, 400);
}

/// Checks that the tests named in the documentation exist.
#[test]
fn the_documented_tests_exist() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).unwrap();
    let page = read("docs/guide/who-may-call.md");
    let named: Vec<(&str, &str)> = page
        .lines()
        .filter_map(|line| {
            line.strip_suffix("` |")?
                .rsplit_once('`')?
                .1
                .rsplit_once("::")
        })
        .filter(|(file, _)| file.starts_with("policy_"))
        .collect();
    assert_eq!(named.len(), 13);
    for (file, test) in named {
        let source = read(&format!("tests/server/{}.rs", file.replace("::", "/")));
        assert!(source.contains(&format!("fn {test}(")), "{file}::{test}");
    }
}
