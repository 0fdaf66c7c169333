//! Policies in nested routers and with a path prefix.

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use http::Request;
use tower::{Layer, ServiceExt};
use tower_spiffe::server::{
    Allow, GrpcPolicy, GrpcPolicyBuilder, Policy, PolicyError, Protocol, ValidateJwtSvidLayer,
    original_uri,
};

use crate::support::{OPS, WEB, World};

async fn status(world: &World, router: &Router, caller: &str, path: &str) -> u16 {
    let request = Request::post(path)
        .header("authorization", world.bearer(caller))
        .body(Body::empty())
        .unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    response.status().as_u16()
}

fn required(world: &World, policy: impl Policy) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::required(world.validator.clone(), policy).protocol(Protocol::Http)
}

/// In two nested routers, a rule on `parts.uri` applies in both.
#[tokio::test]
async fn a_nested_policy_sees_the_path_without_prefix() {
    let world = World::new();
    let stripped = Allow::when(|_, parts| parts.uri.path() == "/me");
    let whole = Allow::when(|_, parts| original_uri(parts).path() == "/v1/me");
    for (policy, v1, v2) in [(stripped, 200, 200), (whole, 200, 403)] {
        let layer = required(&world, policy);
        let inner = || {
            Router::new()
                .route("/me", any(async || "me"))
                .layer(layer.clone())
        };
        let app = Router::new().nest("/v1", inner()).nest("/v2", inner());
        assert_eq!(status(&world, &app, WEB, "/v1/me").await, v1);
        assert_eq!(status(&world, &app, WEB, "/v2/me").await, v2);
        assert_eq!(status(&world, &app, WEB, "/v2/me?/v1/me").await, v2);
        // Another level does not change the original URI.
        let deep = Router::new().nest("/v1", Router::new().nest("/x", inner()));
        let expected = if v2 == 200 { 200 } else { 403 };
        assert_eq!(status(&world, &deep, WEB, "/v1/x/me").await, expected);
    }
}

#[tokio::test]
async fn original_uri_without_a_router_is_the_uri() {
    let (parts, ()) = Request::get("/v1/me").body(()).unwrap().into_parts();
    assert_eq!(original_uri(&parts).path(), "/v1/me");
}

fn methods() -> GrpcPolicyBuilder {
    GrpcPolicy::deny_by_default()
        .service("r.Reports", Allow::id(WEB).unwrap())
        .method("/r.Reports/Delete", Allow::id(OPS).unwrap())
}

fn grpc() -> Router {
    Router::new().route("/r.Reports/{method}", any(async || "done"))
}

#[tokio::test]
async fn grpc_policy_with_a_prefix_works_everywhere() {
    let world = World::new();
    let layer = required(&world, methods().prefix("/api/v1").build().unwrap());
    let inside = Router::new().nest("/api/v1", grpc().layer(layer.clone()));
    let between = Router::new().nest(
        "/api",
        Router::new().nest("/v1", grpc()).layer(layer.clone()),
    );
    let outside =
        Router::new().fallback_service(layer.layer(Router::new().nest("/api/v1", grpc())));
    for app in [inside, between, outside] {
        for (caller, path, expected) in [
            (WEB, "/api/v1/r.Reports/Get", 200),
            (OPS, "/api/v1/r.Reports/Get", 403),
            (OPS, "/api/v1/r.Reports/Delete", 200),
            (WEB, "/api/v1/r.Reports/Delete", 403),
        ] {
            assert_eq!(status(&world, &app, caller, path).await, expected, "{path}");
        }
    }
    // Paths with another prefix, or without one, are denied.
    let elsewhere = Router::new()
        .nest("/api/v2", grpc().layer(layer.clone()))
        .nest("/api/v11", grpc().layer(layer.clone()))
        .merge(grpc().layer(layer));
    for path in [
        "/api/v2/r.Reports/Get",
        "/api/v11/r.Reports/Get",
        "/r.Reports/Get",
    ] {
        assert_eq!(status(&world, &elsewhere, WEB, path).await, 403, "{path}");
    }
}

/// Without the prefix, the policy works in the nested router only.
#[tokio::test]
async fn grpc_policy_without_a_prefix_works_inside() {
    let world = World::new();
    let layer = required(&world, methods().build().unwrap());
    let inside = Router::new().nest("/api", grpc().layer(layer.clone()));
    let outside = Router::new().fallback_service(layer.layer(Router::new().nest("/api", grpc())));
    for (app, expected) in [(inside, 200), (outside, 403)] {
        assert_eq!(
            status(&world, &app, WEB, "/api/r.Reports/Get").await,
            expected
        );
    }
}

#[test]
fn an_impossible_prefix_is_an_error() {
    for prefix in [
        "",
        "/",
        "api",
        "/api/",
        "//api",
        "/api//v1",
        "/a b",
        "/a%20",
        "/a?x",
        "/..",
        "/a/../b",
        "/{version}",
        "/*",
    ] {
        let error = methods().prefix(prefix).build().unwrap_err();
        assert_eq!(error, PolicyError::Prefix(prefix.into()));
    }
}
