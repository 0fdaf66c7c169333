//! Metrics, spans and log lines, and data that they must not contain.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::clock::{Clock, SystemClock};
use tower_spiffe::metrics::{Admission, MetricsRecorder, Verification};
use tower_spiffe::server::{
    Allow, AllowCallersLayer, CallerState, EndAtExpiryLayer, Protocol, Rejection,
    ValidateJwtSvidLayer,
};
use tracing::Level;

use crate::log::Log;
use crate::secrets::leak_of;
use crate::support::{AUDIENCE, OPS, Signer, WEB, World, bearer, with_authorization};

async fn send(layer: &ValidateJwtSvidLayer, request: Request<String>) -> Response<String> {
    let inner = service_fn(|request: Request<String>| async move {
        tracing::info!(headers = ?request.headers(), extensions = ?request.extensions(), "inside");
        tracing::info!(state = ?CallerState::from_extensions(request.extensions()), "inside");
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let narrow = AllowCallersLayer::new(Allow::id(WEB).unwrap());
    layer
        .layer(narrow.layer(inner))
        .oneshot(request)
        .await
        .unwrap()
}

/// One token per reason, valid and invalid.
pub fn tokens(world: &World) -> Vec<String> {
    let now = SystemClock::shared().now().secs();
    let issuer = &world.issuer;
    let mut odd = issuer.header();
    odd["kid"] = json!("unknown-key");
    let mut none = issuer.header();
    none["alg"] = json!("none");
    let claims = json!({ "sub": WEB, "aud": AUDIENCE, "exp": now + 300 });
    let mut forged = issuer.token(WEB);
    forged.replace_range(forged.len() - 20..forged.len() - 10, "AAAAAAAAAA");
    vec![
        issuer.token(WEB),
        issuer.token(OPS),
        issuer.token_with(WEB, json!({ "exp": now - 60 })),
        issuer.token_with(WEB, json!({ "nbf": now + 60 })),
        issuer.token_with(WEB, json!({ "aud": "another-audience-altogether" })),
        issuer.token_with(WEB, json!({ "sub": "not-a-spiffe-id-but-something-long" })),
        issuer.sign(&odd, &claims),
        issuer.sign(&none, &claims),
        Signer::new("y", "k1").token("spiffe://y/web"),
        forged,
        "this-is-no-token-but-long-enough.to-be-found-in-a-log.if-it-is-there".to_owned(),
        format!("{}.{}", issuer.token(WEB), issuer.token(WEB)),
    ]
}

#[tokio::test]
async fn a28_trace_logs_contain_no_part_of_a_token() {
    let log = Log::default();
    let _guard = log.begin(Level::TRACE);
    let world = World::new();
    let tokens = tokens(&world);
    let allow = || Allow::id(WEB).unwrap();
    for layer in [
        ValidateJwtSvidLayer::required(world.validator.clone(), allow()),
        ValidateJwtSvidLayer::optional(world.validator.clone(), allow()),
        ValidateJwtSvidLayer::audit(world.validator.clone(), allow()),
    ] {
        for token in &tokens {
            // Without and with a cache; with one, two and invalid credentials.
            for _ in 0..2 {
                let response = send(&layer, with_authorization(&bearer(token))).await;
                let rejection = response.extensions().get::<Rejection>();
                tracing::info!(?response, ?rejection, "outside");
                if let Some(rejection) = rejection {
                    tracing::info!(error = rejection as &dyn std::error::Error, "outside");
                }
            }
            let mut twice = with_authorization(&bearer(token));
            twice.headers_mut().append("authorization", bearer(token));
            send(&layer, twice).await;
            let odd = HeaderValue::from_str(&format!("Bearer {token}, x")).unwrap();
            send(&layer, with_authorization(&odd)).await;
        }
        tracing::info!(?layer, validator = ?world.validator, "outside");
    }
    let text = log.text();
    assert!(text.lines().count() > 100, "{text}");
    assert_eq!(leak_of(&tokens, &text), None);
    assert!(!text.contains("not-a-spiffe-id"));
}

#[tokio::test]
async fn a04_key_id_cannot_forge_log_lines() {
    let world = World::new();
    let mut header = world.issuer.header();
    let claims = json!({ "sub": WEB, "aud": AUDIENCE, "exp": 9_999_999_999_i64 });
    for (level, shown) in [(Level::INFO, 0), (Level::TRACE, 1)] {
        let log = Log::default();
        let _guard = log.begin(level);
        let layer =
            ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap());
        header["kid"] = json!("k\r\n2026-01-01T00:00:00Z ERROR forged: line\u{1b}[31m\u{2028}");
        let token = world.issuer.sign(&header, &claims);
        let response = send(&layer, with_authorization(&bearer(&token))).await;
        assert_eq!(response.status(), 401);
        let text = log.text();
        // Its own line; the name is escaped, at debug level.
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(log.lines_with("key-unknown"), 1, "{text}");
        assert_eq!(log.lines_with("forged"), shown, "{text}");
        let plain = |char: char| char == '\n' || (' '..='~').contains(&char);
        assert!(text.trim_end().chars().all(plain), "{text:?}");
    }
}

#[tokio::test]
async fn the_caller_is_in_both_spans() {
    use tracing::Instrument;

    let log = Log::default();
    let _guard = log.begin(Level::INFO);
    let world = World::new();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap());
    let around = tracing::info_span!("around", peer.spiffe_id = tracing::field::Empty);
    send(&layer, world.request(WEB)).instrument(around).await;
    let inside = format!(
        "around{{peer.spiffe_id=\"{WEB}\"}}:jwt_svid{{peer.spiffe_id=\"{WEB}\"}}: server::telemetry: inside"
    );
    assert!(log.text().contains(&inside), "{}", log.text());

    // A verified caller that is denied is in the span; an unverified caller is not.
    let around = || tracing::info_span!("rejected", peer.spiffe_id = tracing::field::Empty);
    send(&layer, world.request(OPS)).instrument(around()).await;
    assert!(
        log.text()
            .contains(&format!("rejected{{peer.spiffe_id=\"{OPS}\"}}"))
    );
    let claims = json!({ "aud": "another" });
    let stranger = bearer(&world.issuer.token_with("spiffe://x/liar", claims));
    send(&layer, with_authorization(&stranger))
        .instrument(around())
        .await;
    assert!(!log.text().contains("spiffe://x/liar"));
}

#[tokio::test]
async fn rejections_log_one_line_per_class_and_caller() {
    let log = Log::default();
    let _guard = log.begin(Level::INFO);
    let world = World::new();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap());
    let others = ["spiffe://x/a", "spiffe://x/b"].map(|id| world.request(id));
    for _ in 0..100 {
        send(&layer, Request::default()).await;
        send(&layer, with_authorization(&bearer("a.b.c"))).await;
        for other in &others {
            send(&layer, other.clone()).await;
        }
    }
    assert_eq!(log.lines_with("reason=\"missing\""), 1, "{}", log.text());
    assert_eq!(log.lines_with("reason=\"malformed-token\""), 1);
    // The details of the reason, which the caller does not receive.
    let detail = world.validator.validate("a.b.c").unwrap_err().detail();
    let line = format!("reason=\"malformed-token\" enforced=true suppressed=0 detail={detail:?}");
    assert_eq!(log.lines_with(&line), 1, "{}", log.text());
    assert_eq!(log.lines_with("reason=\"not-allowed\""), 2);
    world.bundles.bundles_unavailable(BundlesUnavailable::Stale);
    for _ in 0..100 {
        send(&layer, world.request(WEB)).await;
    }
    assert_eq!(log.lines_with("WARN"), 1);
    assert_eq!(log.lines_with("the bundles are older than allowed"), 1);

    let layer = layer.log_interval(Duration::ZERO);
    for _ in 0..3 {
        send(&layer, Request::default()).await;
    }
    assert_eq!(log.lines_with("reason=\"missing\""), 4);
}

#[tokio::test]
async fn one_line_per_interval_at_every_level() {
    let world = World::new();
    let mut header = world.issuer.header();
    header["kid"] = json!("no-key-of-ours");
    let claims = json!({ "sub": WEB, "aud": AUDIENCE, "exp": 9_999_999_999_i64 });
    let request = with_authorization(&bearer(&world.issuer.sign(&header, &claims)));
    for (level, details) in [(Level::INFO, 0), (Level::DEBUG, 1), (Level::TRACE, 1)] {
        let log = Log::default();
        let _guard = log.begin(level);
        let layer =
            ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap());
        for _ in 0..100 {
            send(&layer, request.clone()).await;
            send(&layer, world.request(OPS)).await;
        }
        assert_eq!(log.text().lines().count(), 2, "{level}: {}", log.text());
        assert_eq!(log.lines_with("key-unknown"), 1, "{level}");
        assert_eq!(log.lines_with("not-allowed"), 1, "{level}");
        // The key and the token are logged at debug level only.
        assert_eq!(log.lines_with("no-key-of-ours"), details, "{level}");
    }
}

#[tokio::test]
async fn audit_reports_the_denied_caller() {
    let log = Log::default();
    let _guard = log.begin(Level::INFO);
    let world = World::new();
    let layer = ValidateJwtSvidLayer::audit(world.validator.clone(), Allow::id(WEB).unwrap());
    let inner = service_fn(|_: Request<String>| async {
        tracing::info!("inside");
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let service = layer.layer(inner);
    service.clone().oneshot(world.request(OPS)).await.unwrap();
    let inside = format!("jwt_svid{{peer.spiffe_id=\"{OPS}\"}}: server::telemetry: inside");
    assert_eq!(log.lines_with(&inside), 1, "{}", log.text());
    // An unverified caller has no span.
    service.oneshot(Request::default()).await.unwrap();
    assert_eq!(log.lines_with("new"), 1, "{}", log.text());
}

type Counts = BTreeMap<(String, bool, String), u64>;

#[derive(Default)]
struct Recorder(Mutex<Counts>);

impl MetricsRecorder for Recorder {
    fn record_admission(&self, admission: &Admission<'_>) {
        let (outcome, trust_domain) = (admission.outcome, admission.trust_domain);
        let key = (
            outcome.to_owned(),
            admission.enforced,
            trust_domain.to_owned(),
        );
        *self.0.lock().unwrap().entry(key).or_default() += 1;
    }
}

#[tokio::test]
async fn wrong_layer_order_is_logged_once() {
    let log = Log::default();
    let _guard = log.begin(Level::INFO);
    let world = World::new();
    let validate = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    let ends = EndAtExpiryLayer::new(&world.validator);
    let inner = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(
            http_body_util::Full::<bytes::Bytes>::default(),
        ))
    });
    let right = validate.layer(ends.layer(inner));
    for request in [world.request(WEB), Request::default()] {
        let _ = right.clone().oneshot(request).await.unwrap();
    }
    assert_eq!(log.lines_with("ERROR"), 0);
    let wrong = ends.layer(validate.layer(inner));
    for request in [world.request(WEB), world.request(WEB)] {
        let _ = wrong.clone().oneshot(request).await.unwrap();
    }
    assert_eq!(log.lines_with("responses do not end"), 1);
}

#[tokio::test]
async fn every_result_is_counted_with_fixed_labels() {
    let world = World::new();
    let recorder = Arc::new(Recorder::default());
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap())
        .metrics(recorder.clone());
    let optional = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone())
        .metrics(recorder.clone());
    let audit = ValidateJwtSvidLayer::audit(world.validator.clone(), Allow::id(WEB).unwrap())
        .metrics(recorder.clone());
    for token in tokens(&world) {
        send(&layer, with_authorization(&bearer(&token))).await;
    }
    send(&layer, Request::default()).await;
    send(&optional, Request::default()).await;
    send(&audit, Request::default()).await;
    // A name that anyone can make up is not a label.
    for n in 0..50 {
        let stranger = Signer::new(&format!("evil{n}"), "k1").token(&format!("spiffe://evil{n}/w"));
        send(&layer, with_authorization(&bearer(&stranger))).await;
    }
    world.bundles.bundles_unavailable(BundlesUnavailable::Stale);
    send(&layer, world.request(WEB)).await;

    let counts: Counts = recorder.0.lock().unwrap().clone();
    let expected: Counts = [
        (("algorithm", true, "unknown"), 1),
        (("anonymous", true, "unknown"), 1),
        (("audience", true, "x"), 1),
        (("cannot-judge", true, "unknown"), 1),
        (("claims", true, "unknown"), 1),
        (("expired", true, "x"), 1),
        (("key-unknown", true, "x"), 1),
        (("malformed-token", true, "unknown"), 2),
        (("missing", false, "unknown"), 1),
        (("missing", true, "unknown"), 1),
        (("not-allowed", true, "x"), 1),
        (("not-yet-valid", true, "x"), 1),
        (("signature", true, "x"), 1),
        (("trust-domain-unknown", true, "unknown"), 51),
        (("verified", true, "x"), 1),
    ]
    .into_iter()
    .map(|((outcome, enforced, label), n)| ((outcome.to_owned(), enforced, label.to_owned()), n))
    .collect();
    assert_eq!(counts, expected);
}

#[tokio::test]
async fn rejections_of_an_inner_policy_are_counted() {
    let world = World::new();
    let recorder = Arc::new(Recorder::default());
    let narrow = AllowCallersLayer::new(Allow::id(OPS).unwrap()).metrics(recorder.clone());
    let inner = narrow.layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let layer = ValidateJwtSvidLayer::audit(world.validator.clone(), Allow::any_trust_domain());
    let inner = layer.layer(inner);
    let claimed = Signer::new("evil", "k1").token("spiffe://evil/w");
    for request in [
        world.request(OPS),
        world.request(WEB),
        with_authorization(&bearer(&claimed)),
    ] {
        let _ = inner.clone().oneshot(request).await.unwrap();
    }
    let counts: Counts = recorder.0.lock().unwrap().clone();
    let expected: Counts = [
        (("not-allowed", true, "x"), 1),
        (("trust-domain-unknown", true, "unknown"), 1),
    ]
    .into_iter()
    .map(|((outcome, enforced, label), n)| ((outcome.to_owned(), enforced, label.to_owned()), n))
    .collect();
    assert_eq!(counts, expected);
}

#[tokio::test]
async fn an_inner_policy_inherits_the_layers_settings() {
    let log = Log::default();
    let _guard = log.begin(Level::INFO);
    let world = World::new();
    let recorder = Arc::new(Recorder::default());
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
        .realm("reports")
        .unwrap()
        .protocol(Protocol::Http)
        .metrics(recorder.clone())
        .log_interval(Duration::ZERO)
        .on_reject(|rejection, _| rejection.response_with(rejection.reason().as_str().to_owned()));
    let narrow = layer.allow_callers(Allow::id(OPS).unwrap());
    let inner = layer.layer(narrow.layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    })));
    for _ in 0..2 {
        let mut request = world.request(WEB);
        let grpc = HeaderValue::from_static("application/grpc");
        request.headers_mut().insert("content-type", grpc);
        let response = inner.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 403);
        assert_eq!(
            response.headers()["www-authenticate"],
            "Bearer realm=\"reports\", error=\"insufficient_scope\""
        );
        assert_eq!(response.into_body(), "not-allowed");
    }
    let counts = recorder.0.lock().unwrap().clone();
    let denied = ("not-allowed".to_owned(), true, "x".to_owned());
    assert_eq!(counts.get(&denied), Some(&2));
    assert_eq!(log.lines_with("reason=\"not-allowed\""), 2);
}

/// Panics in every method.
struct Broken;

impl MetricsRecorder for Broken {
    fn record_admission(&self, _: &Admission<'_>) {
        panic!("a broken recorder");
    }

    fn record_verification(&self, _: &Verification<'_>) {
        panic!("a broken recorder");
    }
}

#[tokio::test]
async fn panicking_recorder_loses_no_response() {
    let world = World::with(|builder| builder.metrics(Arc::new(Broken)));
    let validator = world.validator.clone();
    let layer = ValidateJwtSvidLayer::required(validator, Allow::id(WEB).unwrap());
    let layer = layer.metrics(Arc::new(Broken));
    assert_eq!(send(&layer, world.request(WEB)).await.status(), 200);
    assert_eq!(send(&layer, world.request(OPS)).await.status(), 403);
    assert_eq!(
        send(&layer, Request::new(String::new())).await.status(),
        401
    );
}
