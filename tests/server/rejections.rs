//! The table of rejections: every reason in HTTP and gRPC, with exact headers.

use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, Version};
use serde_json::json;
use std::convert::Infallible;
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::clock::{Clock, SystemClock};
use tower_spiffe::server::{Allow, Protocol, Rejection, RejectionReason, ValidateJwtSvidLayer};
use tower_spiffe::verify::ValidateReason;

use crate::support::{AUDIENCE, OPS, Signer, WEB, World, bearer, with_authorization};

/// One reason for rejection: a request that causes it, and its response.
pub struct Case {
    pub name: &'static str,
    pub authorization: Option<HeaderValue>,
    pub status: u16,
    pub challenge: Option<&'static str>,
    pub grpc_status: &'static str,
    pub grpc_message: &'static str,
    pub reason: RejectionReason,
}

/// The reasons for unavailable bundles.
pub const UNAVAILABLE: [BundlesUnavailable; 4] = [
    BundlesUnavailable::NotReady,
    BundlesUnavailable::Withdrawn,
    BundlesUnavailable::Stale,
    BundlesUnavailable::Closed,
];

impl Case {
    /// A valid credential, and unavailable bundles.
    pub fn bundles_unavailable(why: BundlesUnavailable, good: HeaderValue) -> Self {
        Self {
            name: why.as_str(),
            authorization: Some(good),
            status: 503,
            challenge: None,
            grpc_status: "14",
            grpc_message: "callers cannot be authenticated now",
            reason: RejectionReason::BundlesUnavailable(why),
        }
    }
}

pub fn cases(world: &World) -> Vec<Case> {
    let now = SystemClock::shared().now().secs();
    let issuer = &world.issuer;
    let token = |token: String| Some(bearer(&token));
    let case = |name, authorization, status, challenge, grpc_status, grpc_message, reason| Case {
        name,
        authorization,
        status,
        challenge,
        grpc_status,
        grpc_message,
        reason,
    };
    let bad = |name, token: String, challenge, message, reason| {
        case(
            name,
            Some(bearer(&token)),
            401,
            Some(challenge),
            "16",
            message,
            RejectionReason::Token(reason),
        )
    };
    let mut unsigned = issuer.token(WEB);
    unsigned.replace_range(unsigned.len() - 20..unsigned.len() - 10, "AAAAAAAAAA");
    let mut header = issuer.header();
    header["alg"] = json!("HS256");
    let mut other_kid = issuer.header();
    other_kid["kid"] = json!("k2");
    let claims = json!({ "sub": WEB, "aud": AUDIENCE, "exp": now + 300 });
    let mut with_crit = issuer.header();
    with_crit["crit"] = json!(["x"]);
    let mut other_alg = issuer.header();
    other_alg["alg"] = json!("ES384");

    const MALFORMED: &str = "Bearer realm=\"spiffe\", error=\"invalid_token\", \
        error_description=\"the token is malformed\"";
    const ALGORITHM: &str = "Bearer realm=\"spiffe\", error=\"invalid_token\", \
        error_description=\"the token's algorithm is not allowed\"";
    const KEY: &str = "Bearer realm=\"spiffe\", error=\"invalid_token\", \
        error_description=\"the token's signing key is unknown\"";

    vec![
        case(
            "no credential",
            None,
            401,
            Some("Bearer realm=\"spiffe\""),
            "16",
            "a bearer token is required",
            RejectionReason::Missing,
        ),
        case(
            "another scheme",
            Some(HeaderValue::from_static("Basic eDp5")),
            401,
            Some("Bearer realm=\"spiffe\""),
            "16",
            "a bearer token is required",
            RejectionReason::Missing,
        ),
        case(
            "not a bearer credential",
            Some(HeaderValue::from_static("Bearer a b")),
            400,
            Some("Bearer realm=\"spiffe\", error=\"invalid_request\""),
            "16",
            "the header does not carry exactly one bearer token",
            RejectionReason::Malformed,
        ),
        case(
            "a valid token of another caller",
            token(issuer.token(OPS)),
            403,
            Some("Bearer realm=\"spiffe\", error=\"insufficient_scope\""),
            "7",
            "the caller is not allowed",
            RejectionReason::NotAllowed,
        ),
        bad(
            "too long",
            "a".repeat(8193),
            MALFORMED,
            "the token is malformed",
            ValidateReason::TooLong,
        ),
        bad(
            "not three parts",
            "a.b".into(),
            MALFORMED,
            "the token is malformed",
            ValidateReason::Malformed,
        ),
        bad(
            "an invalid token68",
            "+/~==".into(),
            MALFORMED,
            "the token is malformed",
            ValidateReason::Malformed,
        ),
        bad(
            "crit",
            issuer.sign(&with_crit, &claims),
            MALFORMED,
            "the token is malformed",
            ValidateReason::Header,
        ),
        bad(
            "no sub",
            issuer.token_with(WEB, json!({ "sub": null })),
            MALFORMED,
            "the token is malformed",
            ValidateReason::Claims,
        ),
        bad(
            "HS256",
            issuer.sign(&header, &claims),
            ALGORITHM,
            "the token's algorithm is not allowed",
            ValidateReason::Algorithm,
        ),
        bad(
            "a P-256 key for ES384",
            issuer.sign(&other_alg, &claims),
            ALGORITHM,
            "the token's algorithm is not allowed",
            ValidateReason::KeyUnfit,
        ),
        bad(
            "expired",
            issuer.token_with(WEB, json!({ "exp": now - 11 })),
            "Bearer realm=\"spiffe\", error=\"invalid_token\", error_description=\"the token has expired\"",
            "the token has expired",
            ValidateReason::Expired,
        ),
        bad(
            "not yet valid",
            issuer.token_with(WEB, json!({ "nbf": now + 60 })),
            "Bearer realm=\"spiffe\", error=\"invalid_token\", error_description=\"the token is not yet valid\"",
            "the token is not yet valid",
            ValidateReason::NotYetValid,
        ),
        bad(
            "another audience",
            issuer.token_with(WEB, json!({ "aud": "spiffe://x/ledger" })),
            "Bearer realm=\"spiffe\", error=\"invalid_token\", error_description=\"the token is for another audience\"",
            "the token is for another audience",
            ValidateReason::Audience,
        ),
        bad(
            "unknown trust domain",
            Signer::new("y", "k1").token("spiffe://y/web"),
            KEY,
            "the token's signing key is unknown",
            ValidateReason::TrustDomainUnknown,
        ),
        bad(
            "unknown key",
            issuer.sign(&other_kid, &claims),
            KEY,
            "the token's signing key is unknown",
            ValidateReason::KeyUnknown,
        ),
        bad(
            "wrong signature",
            unsigned,
            "Bearer realm=\"spiffe\", error=\"invalid_token\", error_description=\"the token's signature is wrong\"",
            "the token's signature is wrong",
            ValidateReason::Signature,
        ),
    ]
}

async fn send(layer: &ValidateJwtSvidLayer, request: Request<String>) -> Response<String> {
    let inner = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new("inside".to_owned()))
    });
    layer.layer(inner).oneshot(request).await.unwrap()
}

fn layer(world: &World) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap())
        .protocol(Protocol::Auto)
}

fn request(authorization: Option<&HeaderValue>) -> Request<String> {
    match authorization {
        Some(value) => with_authorization(value),
        None => Request::default(),
    }
}

#[tokio::test]
async fn every_reason_has_its_status_and_challenge() {
    let world = World::new();
    let layer = layer(&world);
    for case in cases(&world) {
        let response = send(&layer, request(case.authorization.as_ref())).await;
        assert_eq!(response.status(), case.status, "{}", case.name);
        let mut headers = response.headers().clone();
        assert_eq!(
            headers
                .remove(WWW_AUTHENTICATE)
                .as_ref()
                .map(|value| value.to_str().unwrap()),
            case.challenge,
            "{}",
            case.name
        );
        assert!(headers.is_empty(), "{}: {headers:?}", case.name);
        assert_eq!(response.body(), "", "{}", case.name);
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.reason(), case.reason, "{}", case.name);
    }
    assert_eq!(send(&layer, world.request(WEB)).await.body(), "inside");
}

#[tokio::test]
async fn every_reason_has_its_code_and_message() {
    let world = World::new();
    let layer = layer(&world);
    for case in cases(&world) {
        let mut request = request(case.authorization.as_ref());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        request
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let response = send(&layer, request).await;
        assert_eq!(response.status(), 200, "{}", case.name);
        assert_eq!(response.body(), "", "{}", case.name);
        let mut headers: Vec<_> = response
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        headers.sort_unstable();
        assert_eq!(
            headers,
            [
                ("content-type", "application/grpc"),
                ("grpc-message", case.grpc_message),
                ("grpc-status", case.grpc_status),
            ],
            "{}",
            case.name
        );
    }
}

#[tokio::test]
async fn an_unavailable_source_is_503_without_challenge() {
    let world = World::new();
    let layer = layer(&world);
    for why in UNAVAILABLE {
        // Also with a warm cache.
        world.bundles.set([world.issuer.bundle()]);
        let request = world.request(WEB);
        assert_eq!(send(&layer, request.clone()).await.status(), 200);
        world.bundles.bundles_unavailable(why);

        let response = send(&layer, request.clone()).await;
        assert_eq!(response.status(), 503, "{why}");
        assert_eq!(response.headers().len(), 1);
        assert_eq!(response.headers()[RETRY_AFTER], "5");

        let mut grpc = request;
        *grpc.method_mut() = Method::POST;
        *grpc.version_mut() = Version::HTTP_2;
        grpc.headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let response = send(&layer, grpc).await;
        assert_eq!(
            (response.status().as_u16(), response.headers().len()),
            (200, 3)
        );
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(
            response.headers()["grpc-message"],
            "callers cannot be authenticated now"
        );
    }
}

#[tokio::test]
async fn a26_no_input_causes_a_5xx() {
    let world = World::new();
    let layer = layer(&world);
    for case in cases(&world) {
        let response = send(&layer, request(case.authorization.as_ref())).await;
        assert!(
            (400..500).contains(&response.status().as_u16()),
            "{}",
            case.name
        );
    }
    // Caller errors in the header stay caller errors: the header is checked before the bundles are
    // needed.
    world
        .bundles
        .bundles_unavailable(BundlesUnavailable::NotReady);
    for (value, status) in [("Bearer a b", 400), ("Basic eDp5", 401), ("", 400)] {
        let value = HeaderValue::from_static(value);
        assert_eq!(
            send(&layer, request(Some(&value))).await.status(),
            status,
            "{value:?}"
        );
    }
}

#[tokio::test]
async fn a27_responses_contain_nothing_of_the_request() {
    let world = World::new();
    let layer = layer(&world).realm("reports (v2)").unwrap();
    let mut header = world.issuer.header();
    header["kid"] = json!("evil\r\nset-cookie: x\"");
    let claims = json!({ "sub": "spiffe://evil/evil", "aud": "evil", "exp": 9_999_999_999_i64 });
    let token = world.issuer.sign(&header, &claims);
    let response = send(&layer, with_authorization(&bearer(&token))).await;
    assert!(!format!("{:?}", response.headers()).contains("evil"));
    let challenge = response.headers()[WWW_AUTHENTICATE].to_str().unwrap();
    assert!(
        challenge.starts_with("Bearer realm=\"reports (v2)\", error="),
        "{challenge}"
    );
    for realm in ["a\"b", "a\\b", "a\r\nb", ""] {
        assert!(
            ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
                .realm(realm)
                .is_err()
        );
    }
}

#[tokio::test]
async fn chosen_protocol_is_used() {
    let world = World::new();
    let response = send(&layer(&world).protocol(Protocol::Grpc), Request::default()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "16");

    let mut request = Request::new(String::new());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    request
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let response = send(&layer(&world).protocol(Protocol::Http), request).await;
    assert_eq!(response.status(), 401);
}

#[tokio::test]
async fn grpc_web_gets_grpc_web_responses() {
    let world = World::new();
    for content_type in ["application/grpc-web+proto", "application/grpc-web-text"] {
        let mut request = Request::new(String::new());
        *request.method_mut() = Method::POST;
        request
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let response = send(&layer(&world), request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[CONTENT_TYPE], content_type);
        assert_eq!(response.headers()["grpc-status"], "16");
        assert_eq!(
            response.headers()["grpc-message"],
            "a bearer token is required"
        );
    }
}

#[tokio::test]
async fn on_reject_may_return_any_body() {
    /// A body type without `Default`.
    #[derive(Debug, PartialEq)]
    struct Page(String);

    let world = World::new();
    let layer = layer(&world).on_reject(|rejection: &Rejection, parts: &http::request::Parts| {
        assert!(parts.headers.values().all(HeaderValue::is_sensitive));
        rejection.response_with(Page(format!(
            "{}: {rejection}",
            rejection.reason().as_str()
        )))
    });
    let inner = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(Page("inside".to_owned())))
    });
    let send = |request| layer.layer(inner).oneshot(request);
    let response = send(with_authorization(&bearer("a.b.c"))).await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(
        response.body(),
        &Page("malformed-token: the token is malformed".to_owned())
    );
    let response = send(world.request(WEB)).await.unwrap();
    assert_eq!(response.body(), &Page("inside".to_owned()));
}

#[tokio::test]
async fn rejection_has_caller_and_key_for_logs() {
    let world = World::new();
    let layer = layer(&world);
    let mut header = world.issuer.header();
    header["kid"] = json!("k\n2".repeat(300));
    let claims = json!({ "sub": WEB, "aud": AUDIENCE, "exp": 9_999_999_999_i64 });
    let request = with_authorization(&bearer(&world.issuer.sign(&header, &claims)));
    let response = send(&layer, request).await;
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.trust_domain(), Some("x"));
    let key_id = rejection.key_id().unwrap();
    assert!(
        key_id.len() <= 64 && key_id.starts_with("k\\n2"),
        "{key_id}"
    );

    let response = send(&layer, world.request(OPS)).await;
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.caller().map(AsRef::as_ref), Some(OPS));
    assert_eq!(rejection.trust_domain(), Some("x"));
}
