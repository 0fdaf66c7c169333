//! One response for every invalid token. Logs, metrics and the [`Rejection`] keep the details.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, Version};
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::metrics::{Admission, MetricsRecorder};
use tower_spiffe::server::{
    Allow, CallerState, Rejection, RejectionReason, UnknownKeyWait, ValidateJwtSvidLayer,
};
use tower_spiffe::verify::ValidateReason;

use crate::log::Log;
use crate::rejections::cases;
use crate::support::{WEB, World, bearer, with_authorization};

const TEXT: &str = "the token is invalid";

fn layer(world: &World) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap())
        .uniform_token_errors()
}

async fn send(layer: &ValidateJwtSvidLayer, request: Request<String>) -> Response<String> {
    let inner = service_fn(|_: Request<String>| async { Ok::<_, Infallible>(Response::default()) });
    layer.layer(inner).oneshot(request).await.unwrap()
}

fn forms(authorization: &HeaderValue) -> [Request<String>; 3] {
    [
        None,
        Some("application/grpc"),
        Some("application/grpc-web+proto"),
    ]
    .map(|content_type| {
        let mut request = with_authorization(authorization);
        if let Some(content_type) = content_type {
            *request.method_mut() = Method::POST;
            *request.version_mut() = Version::HTTP_2;
            let value = HeaderValue::from_static(content_type);
            request.headers_mut().insert(CONTENT_TYPE, value);
        }
        request
    })
}

/// Returns everything that distinguishes responses for a caller.
fn seen(response: &Response<String>) -> String {
    format!(
        "{} {:?} {:?}",
        response.status(),
        response.headers(),
        response.body()
    )
}

#[tokio::test]
async fn e18_all_invalid_tokens_get_one_response() {
    let world = World::new();
    for realm in ["spiffe", "reports"] {
        for protocol in [None, Some(tower_spiffe::server::Protocol::Auto)] {
            let mut layer = layer(&world);
            if realm != "spiffe" {
                layer = layer.realm(realm).unwrap();
            }
            if let Some(protocol) = protocol {
                layer = layer.protocol(protocol);
            }
            let (mut answers, mut reasons) = ([const { BTreeSet::new() }; 3], BTreeSet::new());
            for case in cases(&world) {
                let RejectionReason::Token(reason) = case.reason else {
                    continue;
                };
                reasons.insert(reason.as_str());
                let forms = forms(case.authorization.as_ref().unwrap());
                for (form, answers) in forms.into_iter().zip(&mut answers) {
                    let response = send(&layer, form).await;
                    let rejection = response.extensions().get::<Rejection>().unwrap();
                    assert_eq!(rejection.reason(), case.reason, "{}", case.name);
                    assert_eq!(
                        (rejection.description(), &*rejection.to_string()),
                        (TEXT, TEXT)
                    );
                    answers.insert(seen(&response));
                }
            }
            assert!(reasons.len() >= 10, "{reasons:?}");
            for answers in answers {
                assert_eq!(answers.len(), 1, "{answers:?}");
                assert!(answers.first().unwrap().contains(TEXT), "{answers:?}");
            }
        }
    }
}

#[tokio::test]
async fn e18_other_rejections_keep_their_responses() {
    let world = World::new();
    let (uniform, default) = (
        layer(&world),
        ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap()),
    );
    for case in cases(&world) {
        let request = || match &case.authorization {
            Some(value) => with_authorization(value),
            None => Request::default(),
        };
        let (ours, theirs) = (
            send(&uniform, request()).await,
            send(&default, request()).await,
        );
        let same = seen(&ours) == seen(&theirs);
        let is_token = matches!(case.reason, RejectionReason::Token(_));
        assert_eq!(same, !is_token, "{}", case.name);
    }
}

#[tokio::test(start_paused = true)]
async fn e18_waiting_for_a_key_keeps_the_text() {
    let world = World::new();
    let mut header = world.issuer.header();
    header["kid"] = json!("k2");
    let claims = json!({ "sub": WEB, "aud": "x", "exp": 9_999_999_999_i64 });
    let token = world.issuer.sign(&header, &claims);
    let wait = UnknownKeyWait::new(std::time::Duration::from_secs(1));
    let inner = service_fn(|_: Request<String>| async { Ok::<_, Infallible>(Response::default()) });
    let service = layer(&world).wait_for_unknown_keys(wait).layer(inner);
    let response: Response<String> = service
        .oneshot(with_authorization(&bearer(&token)))
        .await
        .unwrap();
    let challenge = response.headers()[WWW_AUTHENTICATE].to_str().unwrap();
    assert!(challenge.contains(TEXT), "{challenge}");
}

#[derive(Default)]
struct Outcomes(Mutex<Vec<String>>);

impl MetricsRecorder for Outcomes {
    fn record_admission(&self, admission: &Admission<'_>) {
        self.0.lock().unwrap().push(admission.outcome.to_owned());
    }
}

#[tokio::test]
async fn e18_logs_and_metrics_keep_the_details() {
    let world = World::new();
    let outcomes = Arc::new(Outcomes::default());
    let layer = layer(&world).metrics(outcomes.clone());
    let expired = world
        .issuer
        .token_with(WEB, json!({ "exp": 1_000_000_000 }));
    let log = Log::default();
    let guard = log.begin(tracing::Level::INFO);
    let response = send(&layer, with_authorization(&bearer(&expired))).await;
    drop(guard);
    assert!(seen(&response).contains(TEXT));
    let reason = ValidateReason::Expired.as_str();
    assert_eq!(*outcomes.0.lock().unwrap(), [reason]);
    let lines = log.text();
    assert!(lines.contains("the token has expired"), "{lines}");
}

/// With `audit`, a handler returns the rejection it finds.
#[tokio::test]
async fn e18_an_audited_rejection_keeps_the_text() {
    let world = World::new();
    let audit = ValidateJwtSvidLayer::audit(world.validator.clone(), Allow::id(WEB).unwrap())
        .uniform_token_errors();
    let inner = service_fn(|request: Request<String>| async move {
        let Some(CallerState::AuditFailed(rejection)) =
            CallerState::from_extensions(request.extensions())
        else {
            panic!("not audited");
        };
        Ok::<_, Infallible>(Response::new(rejection.to_string()))
    });
    let request = with_authorization(&bearer("a.b.c"));
    let response = audit.layer(inner).oneshot(request).await.unwrap();
    assert_eq!(response.body(), TEXT);
}
