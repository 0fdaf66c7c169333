//! Tokens that are rejected before their signature is verified. Any caller can send many of them.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll, Waker};

use allocation_counter::measure;
use http::{HeaderValue, Request, Response};
use serde_json::json;
use tower::{Layer, Service};
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::server::{Allow, ValidateJwtSvidLayer};
use tower_spiffe::verify::ValidateReason;

use super::{EXPIRY, validator};
use tower_spiffe_test_support::signer::{AUDIENCE, SUBJECT, Signer};

/// An inner service that is never called.
#[derive(Clone)]
struct NeverCalled;

impl Service<Request<String>> for NeverCalled {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<String>) -> Self::Future {
        ready(Ok(Response::new(String::new())))
    }
}

fn rejected_tokens(signer: &Signer) -> [(ValidateReason, String); 4] {
    let claims = |audience, expiry: i64| json!({"sub": SUBJECT, "aud": [audience], "exp": expiry});
    let unknown = Signer::for_algorithm(Algorithm::ES256).with_key_id("another");
    [
        (
            ValidateReason::Expired,
            signer.sign(&claims(AUDIENCE, 1_000_000_000)),
        ),
        (
            ValidateReason::Audience,
            signer.sign(&claims("another", EXPIRY)),
        ),
        (
            ValidateReason::KeyUnknown,
            unknown.sign(&claims(AUDIENCE, EXPIRY)),
        ),
        (ValidateReason::Malformed, "no-token-at-all".to_owned()),
    ]
}

/// One allocation for the SPIFFE ID during validation, and two for the names in the error.
#[test]
fn a08_rejection_before_the_signature_keeps_no_claims() {
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let validator = validator(&signer);
    for (reason, token) in rejected_tokens(&signer) {
        let _ = validator.validate(&token);
        let count = measure(|| {
            let error = validator.validate(&token).unwrap_err();
            assert_eq!(error.reason(), reason);
        });
        let most = match reason {
            ValidateReason::Malformed => 0,
            // The audiences of the token are kept for the log.
            ValidateReason::Audience => 4,
            _ => 3,
        };
        assert!(count.count_total <= most, "{reason}: {count:?}");
    }
}

/// Two allocations for the header map, and three for the extensions with the rejection. A token adds
/// the details of the rejection and of its error.
#[test]
fn a08_rejection_responses_are_prebuilt() {
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let allowed = Allow::id(SUBJECT).unwrap();
    let layer = ValidateJwtSvidLayer::required(validator(&signer), allowed);
    let mut service = layer.layer(NeverCalled);
    let mut count = |token: Option<&str>| {
        let request = || {
            let mut request = Request::new(String::new());
            if let Some(token) = token {
                let value = HeaderValue::try_from(format!("Bearer {token}")).unwrap();
                request.headers_mut().insert("authorization", value);
            }
            request
        };
        let mut call = |request| {
            let future = std::pin::pin!(service.call(request));
            match future.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(response)) => assert_eq!(response.status(), 401),
                _ => unreachable!("the call is ready"),
            }
        };
        // The first rejection of a reason allocates its log state.
        call(request());
        let request = request();
        let info = measure(|| call(request));
        (info.count_total, info.bytes_total)
    };
    // The figures of `docs/performance.md`.
    let (without_token, bytes) = count(None);
    assert!(without_token <= 5, "{without_token}");
    assert!(bytes <= 412, "{bytes}");
    for (reason, token) in rejected_tokens(&signer) {
        let most = match reason {
            ValidateReason::Malformed => 6,
            ValidateReason::Audience => 10,
            _ => 9,
        };
        let (count, _) = count(Some(&token));
        assert!(count <= most, "{reason}: {count}");
    }
}
