//! Rejections by extractors have the same responses, metrics and logs as the layer's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::routing::get as on_get;
use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::metrics::{Admission, MetricsRecorder};
use tower_spiffe::server::{Allow, CallerState, Rejection, RejectionReason, ValidateJwtSvidLayer};
use tower_spiffe::verify::VerifiedSvid;

use crate::log::Log;
use crate::support::{OPS, WEB, World};

#[derive(Default)]
struct Counts(Mutex<BTreeMap<(String, bool), u64>>);

impl MetricsRecorder for Counts {
    fn record_admission(&self, admission: &Admission<'_>) {
        let key = (admission.outcome.to_owned(), admission.enforced);
        *self.0.lock().unwrap().entry(key).or_default() += 1;
    }
}

impl Counts {
    fn of(&self, outcome: &str) -> u64 {
        let key = (outcome.to_owned(), true);
        self.0.lock().unwrap().get(&key).copied().unwrap_or(0)
    }
}

fn router() -> Router {
    Router::new()
        .route(
            "/who",
            on_get(async |caller: VerifiedSvid| caller.spiffe_id().to_string()),
        )
        .route(
            "/state",
            on_get(async |state: CallerState| match state {
                CallerState::AuditFailed(rejection) => Err(rejection),
                _ => Ok("fine"),
            }),
        )
        .route(
            "/mine",
            on_get(async |caller: Result<VerifiedSvid, Rejection>| format!("{}", caller.is_ok())),
        )
}

fn optional(world: &World) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone())
}

fn get(path: &str) -> Request<Body> {
    Request::get(path)
        .header("x-request-id", "7")
        .body(Body::empty())
        .unwrap()
}

#[tokio::test]
async fn e14_an_extractor_rejects_through_on_reject() {
    let world = World::new();
    let counts = Arc::new(Counts::default());
    let log = Log::default();
    let guard = log.begin(tracing::Level::INFO);
    let layer = optional(&world)
        .realm("reports")
        .unwrap()
        .metrics(counts.clone())
        .on_reject(|rejection, parts| {
            let id = parts.headers["x-request-id"].to_str().unwrap();
            let text = format!("{} {} {id}: {rejection}", parts.method, parts.uri.path());
            rejection.response_with(Body::from(text))
        });
    let app = layer.layer(router());
    for _ in 0..3 {
        let response = app.clone().oneshot(get("/who")).await.unwrap();
        assert_eq!(response.status(), 401);
        assert_eq!(
            response.headers()["www-authenticate"],
            "Bearer realm=\"reports\""
        );
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.reason(), RejectionReason::Missing);
        let body = axum::body::to_bytes(response.into_body(), 1000)
            .await
            .unwrap();
        assert_eq!(body, "GET /who 7: a bearer token is required");
    }
    assert_eq!((counts.of("missing"), counts.of("anonymous")), (3, 3));
    // One line; the others are suppressed.
    assert_eq!(log.lines_with("a bearer token is required"), 1);
    // A handler that takes the rejection as a value does not reject.
    let response = app.oneshot(get("/mine")).await.unwrap();
    assert_eq!((response.status().as_u16(), counts.of("missing")), (200, 3));
    drop(guard);
}

#[tokio::test]
async fn e14_audited_rejection_is_sent_and_counted() {
    let world = World::new();
    let counts = Arc::new(Counts::default());
    let audit = ValidateJwtSvidLayer::audit(world.validator.clone(), Allow::id(OPS).unwrap())
        .metrics(counts.clone())
        .on_reject(|rejection, _| rejection.response_with(Body::from("mine")));
    let mut request = get("/state");
    request
        .headers_mut()
        .insert("authorization", world.bearer(WEB));
    let response = audit.layer(router()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 403);
    let body = axum::body::to_bytes(response.into_body(), 1000)
        .await
        .unwrap();
    assert_eq!((&*body, counts.of("not-allowed")), (&b"mine"[..], 1));
}

/// The innermost layer responds. Outer layers do not respond or count again.
#[tokio::test]
async fn e14_only_the_innermost_layer_responds() {
    let world = World::new();
    let (near, far) = (Arc::new(Counts::default()), Arc::new(Counts::default()));
    let inner = optional(&world)
        .metrics(near.clone())
        .on_reject(|rejection, _| rejection.response_with(Body::from("near")));
    let outer = optional(&world)
        .metrics(far.clone())
        .on_reject(|rejection, _| rejection.response_with(Body::from("far")));
    let app = outer.layer(inner.layer(router()));
    let response = app.oneshot(get("/who")).await.unwrap();
    let body = axum::body::to_bytes(response.into_body(), 1000)
        .await
        .unwrap();
    assert_eq!(body, "near");
    assert_eq!((near.of("missing"), far.of("missing")), (1, 0));

    // Nor does a layer outside an `AllowCallersLayer` whose `on_reject` returns a rejection.
    let counts = Arc::new(Counts::default());
    let layer = optional(&world).metrics(counts.clone());
    let narrow = layer
        .clone()
        .on_reject(|rejection: &Rejection, _: &http::request::Parts| {
            axum::response::IntoResponse::into_response(rejection.clone())
        })
        .allow_callers(Allow::id(OPS).unwrap());
    let app = layer.layer(router().layer(narrow));
    let response = app.oneshot(get("/who")).await.unwrap();
    assert_eq!((response.status().as_u16(), counts.of("missing")), (401, 1));
}

#[tokio::test]
async fn e14_a_tonic_method_rejects_through_on_reject() {
    let world = World::new();
    let counts = Arc::new(Counts::default());
    let layer = optional(&world)
        .metrics(counts.clone())
        .on_reject(|rejection, parts| {
            let mut response = rejection.response_with(tonic::body::Body::empty());
            let path = parts.uri.path().parse().unwrap();
            response.headers_mut().insert("x-path", path);
            response
        });
    let method = service_fn(async |request: Request<tonic::body::Body>| {
        let request = tonic::Request::from_http(request);
        let response: Response<tonic::body::Body> = match VerifiedSvid::from_request(&request) {
            Ok(_) => Response::default(),
            Err(status) => status.into_http(),
        };
        Ok::<_, std::convert::Infallible>(response)
    });
    let request = Request::post("/t.Talk/Say")
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .body(tonic::body::Body::empty())
        .unwrap();
    let response = layer.layer(method).oneshot(request).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "16");
    assert_eq!(response.headers()["x-path"], "/t.Talk/Say");
    assert!(response.extensions().get::<Rejection>().is_some());
    assert_eq!(counts.of("missing"), 1);
}

#[tokio::test]
async fn e14_without_layer_rejection_is_in_the_extensions() {
    let log = Log::default();
    let guard = log.begin(tracing::Level::INFO);
    for _ in 0..100 {
        let response = router().oneshot(get("/who")).await.unwrap();
        assert_eq!(response.status(), 500);
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.reason(), RejectionReason::NotWired);
    }
    drop(guard);
    let lines = log.lines_with("ValidateJwtSvidLayer");
    // The log limit is per process, so another test may have used it.
    assert!(lines <= 1, "{lines}");
    if std::env::var_os(ALONE).is_some() {
        assert_eq!(
            (lines, log.levels("ValidateJwtSvidLayer")),
            (1, vec!["ERROR".to_owned()])
        );
    }
}

/// Set in a process that runs only this test.
const ALONE: &str = "E14_ALONE";

#[test]
fn e14_without_a_layer_one_error_line_is_logged() {
    let name = "e14_handler_rejections::e14_without_layer_rejection_is_in_the_extensions";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}
