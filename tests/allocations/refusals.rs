//! What is turned away before its signature is looked at, which anybody can send any number of.

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

/// Is never called.
#[derive(Clone)]
struct Nobody;

impl Service<Request<String>> for Nobody {
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

fn refused(signer: &Signer) -> [(ValidateReason, String); 4] {
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

/// The SPIFFE ID for as long as it is judged, then the two names that the error shows.
#[test]
fn a08_what_is_refused_before_the_signature_keeps_no_claims() {
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let validator = validator(&signer);
    for (reason, token) in refused(&signer) {
        let _ = validator.validate(&token);
        let count = measure(|| {
            let error = validator.validate(&token).unwrap_err();
            assert_eq!(error.reason(), reason);
        });
        let most = match reason {
            ValidateReason::Malformed => 0,
            // The audiences that the token claims are kept for the log.
            ValidateReason::Audience => 4,
            _ => 3,
        };
        assert!(count.count_total <= most, "{reason}: {count:?}");
    }
}

/// Two for the header map and three for the extensions that the rejection is left in. A token adds the
/// details of the rejection, and what its error has.
#[test]
fn a08_an_answer_to_a_refused_request_is_ready_made() {
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let allowed = Allow::id(SUBJECT).unwrap();
    let layer = ValidateJwtSvidLayer::required(validator(&signer), allowed);
    let mut service = layer.layer(Nobody);
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
                _ => unreachable!("it waits for nothing"),
            }
        };
        // The first of a class makes room for its line in the log.
        call(request());
        let request = request();
        measure(|| call(request)).count_total
    };
    assert!(count(None) <= 5, "{}", count(None));
    for (reason, token) in refused(&signer) {
        let most = match reason {
            ValidateReason::Malformed => 6,
            ValidateReason::Audience => 10,
            _ => 9,
        };
        let count = count(Some(&token));
        assert!(count <= most, "{reason}: {count}");
    }
}
