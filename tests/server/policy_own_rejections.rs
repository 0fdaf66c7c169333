//! Rejections by a user's middleware inside the layer.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::Request as AxumRequest;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use axum::routing::post;
use http::{Request, Response, Version};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::metrics::{Admission, MetricsRecorder};
use tower_spiffe::server::{
    Allow, PolicyFailure, Protocol, Rejection, RejectionReason, ValidateJwtSvidLayer,
};

use crate::log::Log;
use crate::support::{WEB, World};

#[derive(Default)]
struct Counts(Mutex<Vec<(String, String)>>);

impl MetricsRecorder for Counts {
    fn record_admission(&self, admission: &Admission<'_>) {
        let counted = (admission.outcome.to_owned(), admission.why.to_owned());
        self.0.lock().unwrap().push(counted);
    }
}

impl Counts {
    fn of(&self, outcome: &str) -> usize {
        let all = self.0.lock().unwrap();
        all.iter().filter(|(name, _)| name == outcome).count()
    }
}

fn optional(world: &World) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone())
}

type Reject = fn(&Request<String>) -> Rejection;

/// Returns the layer's response if a middleware inside returns this rejection.
async fn rejected(
    layer: ValidateJwtSvidLayer,
    reject: Reject,
    request: Request<String>,
) -> Response<String> {
    let middleware = service_fn(move |request: Request<String>| {
        let response = reject(&request).into_inner_response::<String>();
        std::future::ready(Ok::<_, Infallible>(response))
    });
    layer.layer(middleware).oneshot(request).await.unwrap()
}

#[tokio::test]
async fn own_rejections_get_the_layers_response() {
    let world = World::new();
    let counts = Arc::new(Counts::default());
    let log = Log::default();
    let guard = log.begin(tracing::Level::INFO);
    let layer = optional(&world)
        .realm("reports")
        .unwrap()
        .metrics(counts.clone());
    let verified = || world.request(WEB);
    let challenge = |more: &str| Some(format!("Bearer realm=\"reports\"{more}"));
    let denied = challenge(", error=\"insufficient_scope\"");
    let denial: Reject = |request| Rejection::denied(request).because("over quota");
    let ask: Reject = Rejection::authentication_required;
    let down: Reject = |request| Rejection::policy_unavailable(request).because("no route");
    for (reject, request, status, header, caller) in [
        (denial, verified(), 403, denied.clone(), Some(WEB)),
        (denial, Request::default(), 403, denied.clone(), None),
        (ask, verified(), 403, denied, Some(WEB)),
        (ask, Request::default(), 401, challenge(""), None),
        (down, verified(), 503, None, Some(WEB)),
        (down, Request::default(), 503, None, None),
    ] {
        let response = rejected(layer.clone(), reject, request).await;
        assert_eq!(response.status(), status);
        let sent = response.headers().get("www-authenticate");
        assert_eq!(sent.map(|value| value.to_str().unwrap().to_owned()), header);
        assert_eq!(
            response.headers().contains_key("retry-after"),
            status == 503
        );
        assert!(!format!("{response:?}").contains("quota\"}"));
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.caller().map(AsRef::as_ref), caller);
    }
    drop(guard);
    assert_eq!(counts.of("not-allowed"), 3);
    assert_eq!(counts.of("missing"), 1);
    assert_eq!(counts.of("policy-unavailable"), 2);
    assert_eq!(
        counts.0.lock().unwrap().last(),
        Some(&("policy-unavailable".into(), "failed".into()))
    );
    let text = log.text();
    assert_eq!(
        text.matches("policy_reason=\"over quota\"").count(),
        2,
        "{text}"
    );
    assert_eq!(log.levels("callers cannot be authorized"), ["WARN", "WARN"]);
    assert!(text.contains("policy_reason=\"no route\""), "{text}");
}

/// `on_reject` gets the request that the middleware received, and only the innermost layer responds.
#[tokio::test]
async fn own_rejections_go_through_on_reject() {
    let world = World::new();
    let (near, far) = (Arc::new(Counts::default()), Arc::new(Counts::default()));
    let middleware = service_fn(async |mut request: Request<String>| {
        request
            .headers_mut()
            .insert("x-tenant", "7".parse().unwrap());
        Ok::<_, Infallible>(Rejection::denied(&request).into_inner_response::<String>())
    });
    let on_reject = |rejection: &Rejection, parts: &http::request::Parts| {
        assert!(!parts.headers.contains_key("authorization"));
        let tenant = parts.headers["x-tenant"].to_str().unwrap();
        rejection.response_with(format!("{} {tenant}", parts.uri.path()))
    };
    let layer = optional(&world).metrics(near.clone()).on_reject(on_reject);
    let outer = optional(&world).metrics(far.clone());
    let narrow = layer.allow_callers(Allow::anyone());
    let service = outer.layer(layer.layer(narrow.layer(middleware)));
    for mut request in [world.request(WEB), Request::default()] {
        *request.uri_mut() = "/r".parse().unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &**response.body()),
            (403, "/r 7")
        );
    }
    assert_eq!((near.of("not-allowed"), far.of("not-allowed")), (2, 0));
}

#[tokio::test]
async fn own_rejections_use_the_layers_protocol() {
    let world = World::new();
    let grpc = optional(&world).protocol(Protocol::Grpc);
    let denial: Reject = Rejection::denied;
    let response = rejected(grpc.clone(), denial, world.request(WEB)).await;
    assert_eq!(response.headers()["grpc-status"], "7");
    let response = rejected(grpc, Rejection::policy_unavailable, Request::default()).await;
    assert_eq!(response.headers()["grpc-status"], "14");
    // A caller cannot select gRPC.
    let mut request = world.request(WEB);
    let content_type = "application/grpc".parse().unwrap();
    request.headers_mut().insert("content-type", content_type);
    let response = rejected(optional(&world), denial, request).await;
    assert_eq!(response.status(), 403);
}

#[tokio::test]
async fn own_rejections_with_a_body_close_the_connection() {
    let world = World::new();
    for (version, length, closes) in [
        (Version::HTTP_11, "5", true),
        (Version::HTTP_11, "0", false),
        (Version::HTTP_2, "5", false),
    ] {
        let mut request = world.request(WEB);
        *request.version_mut() = version;
        let length = length.parse().unwrap();
        request.headers_mut().insert("content-length", length);
        let response = rejected(optional(&world), Rejection::denied, request).await;
        assert_eq!(
            response.headers().contains_key("connection"),
            closes,
            "{version:?}"
        );
    }
}

#[tokio::test]
async fn own_rejections_without_a_layer_return_500() {
    let constructors: [Reject; 3] = [
        Rejection::denied,
        Rejection::authentication_required,
        Rejection::policy_unavailable,
    ];
    for reject in constructors {
        let rejection = reject(&Request::default());
        assert_eq!(rejection.reason(), RejectionReason::NotWired);
        let response = rejection.into_inner_response::<String>();
        assert_eq!(response.status(), 500);
    }
}

/// In audit mode, rejections by middleware are still enforced.
#[tokio::test]
async fn own_rejections_are_enforced_in_audit_mode() {
    let world = World::new();
    let policy = Allow::id("spiffe://x/ops").unwrap();
    let audit = ValidateJwtSvidLayer::audit(world.validator.clone(), policy);
    let response = rejected(audit, Rejection::denied, world.request(WEB)).await;
    assert_eq!(response.status(), 403);
}

#[tokio::test]
async fn an_axum_middleware_returns_the_rejection() {
    let world = World::new();
    let layer = optional(&world).on_reject(|rejection, _| {
        assert_eq!(
            rejection.reason(),
            RejectionReason::PolicyUnavailable(PolicyFailure::Failed)
        );
        rejection.response_with(Body::from("mine"))
    });
    async fn down(request: AxumRequest, _: Next) -> axum::response::Response {
        Rejection::policy_unavailable(&request).into_response()
    }
    let router = Router::new()
        .route("/", post(async || "done"))
        .layer(from_fn(down));
    for bearer in [Some(world.bearer(WEB)), None] {
        let mut request = Request::post("/").body(Body::from("body")).unwrap();
        if let Some(bearer) = bearer {
            request.headers_mut().insert("authorization", bearer);
        }
        let service = layer.layer(router.clone());
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 503);
        let body = axum::body::to_bytes(response.into_body(), 100)
            .await
            .unwrap();
        assert_eq!(body, "mine");
    }
}
