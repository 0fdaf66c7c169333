//! The verdict in tower-http's own layer.

use std::convert::Infallible;

use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_http::validate_request::ValidateRequestHeaderLayer;
use tower_spiffe::server::{Allow, CallerState, ValidateJwtSvidLayer};

use crate::support::{OPS, WEB, World};

#[tokio::test]
async fn tower_https_layer_gives_the_same_answers() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap());
    let theirs =
        ValidateRequestHeaderLayer::custom(layer.clone().into_validate_request::<String>());
    let inner = service_fn(|request: Request<String>| async move {
        let caller = CallerState::of(request.extensions())
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
