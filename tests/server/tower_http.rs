//! The validation in tower-http's own layer.

use std::convert::Infallible;

use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::validate_request::ValidateRequestHeaderLayer;
use tower_spiffe::server::{Allow, CallerState, ValidateJwtSvidLayer};

use crate::hyper::{serve, who};
use crate::loopback::get;
use crate::support::{OPS, WEB, World};

#[tokio::test]
async fn tower_http_layer_gives_the_same_responses() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap());
    let theirs =
        ValidateRequestHeaderLayer::custom(layer.clone().into_validate_request::<String>());
    let inner = service_fn(|request: Request<String>| async move {
        let caller = CallerState::from_extensions(request.extensions())
            .unwrap()
            .verified()
            .unwrap();
        let about = format!(
            "{} {} {}",
            request.method(),
            request.uri(),
            caller.spiffe_id()
        );
        Ok::<_, Infallible>(Response::new(about + request.body()))
    });
    for mut request in [world.request(WEB), world.request(OPS), Request::default()] {
        *request.method_mut() = http::Method::PUT;
        *request.uri_mut() = "http://reports.test/x?y".parse().unwrap();
        *request.body_mut() = " body".to_owned();
        let ours = layer.layer(inner).oneshot(request.clone()).await.unwrap();
        let theirs = theirs.layer(inner).oneshot(request).await.unwrap();
        assert_eq!(ours.status(), theirs.status());
        assert_eq!(ours.headers(), theirs.headers());
        assert_eq!(ours.body(), theirs.body());
        if ours.status() == 200 {
            assert_eq!(
                ours.body(),
                "PUT http://reports.test/x?y spiffe://x/web body"
            );
        }
    }
}

#[tokio::test]
async fn tower_http_layer_works_over_real_sockets() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap());
    let layer =
        ValidateRequestHeaderLayer::custom(layer.into_validate_request::<Full<bytes::Bytes>>());
    // TCP and a Unix socket, HTTP/1.1 and HTTP/2.
    let at = serve(layer.layer(service_fn(who))).await;
    let (status, text) = at.text(get("/", Some(&world.bearer(WEB)))).await;
    assert_eq!((status, text.contains(WEB)), (200, true), "{text}");
    assert_eq!(at.status(get("/", Some(&world.bearer(OPS)))).await, 403);
    for answer in at.ask(get("/", None)).await {
        assert_eq!(answer.status(), 401);
        let challenge = &answer.headers()["www-authenticate"];
        assert_eq!(challenge, "Bearer realm=\"spiffe\"");
    }
    // Two header lines are rejected, through this layer too.
    let mut two = get("/", Some(&world.bearer(WEB)));
    let again = two.headers()["authorization"].clone();
    two.headers_mut().append("authorization", again);
    assert_eq!(at.status(two).await, 400);
}
