//! A token that arrives before the inner service is ready.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Response};
use tower::limit::ConcurrencyLimitLayer;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_spiffe::client::AddJwtSvidLayer;
use tower_spiffe::token::{TokenError, TokenErrorReason};

use crate::layer::{fixed, to};
use crate::support::{Answer, Bench, START, Token, millis, request, secs};

type Arrived = Arc<Mutex<Vec<HeaderValue>>>;

/// A service for one call at a time. `/long` takes 10 s, others return at once. It records the tokens.
fn one_at_a_time() -> (
    Arrived,
    impl Service<Request<()>, Response = Response<()>, Error = Infallible, Future: Send> + Clone + Send,
) {
    let arrived = Arrived::default();
    let kept = arrived.clone();
    let service = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(move |request: Request<()>| {
            let token = request.headers().get(AUTHORIZATION).cloned();
            kept.lock().unwrap().extend(token);
            async move {
                if request.uri().path() == "/long" {
                    tokio::time::sleep(secs(10)).await;
                }
                Ok(Response::new(()))
            }
        }));
    (arrived, service)
}

/// Sends a request with a token that has 3 s left, on a client with one permit. While it waits 250 ms
/// for the next token, which comes late or never, another request takes the permit for 10 s.
async fn after_a_long_request(next: Answer) -> (Bench, Arrived, Result<(), TokenErrorReason>) {
    let bench = Bench::new();
    bench.cache.header(&request("a")).await.unwrap();
    bench.at(secs(295)).await;
    bench.issuer.then(move |_| next.clone());
    let (arrived, inner) = one_at_a_time();
    let client = ServiceBuilder::new()
        .layer(AddJwtSvidLayer::new(bench.cache.clone(), fixed()))
        .service(inner.clone());
    let waiting = tokio::spawn(client.oneshot(to("https://reports:8443/x")));
    tokio::time::sleep(millis(100)).await;
    let long = tokio::spawn(inner.clone().oneshot(to("https://reports:8443/long")));
    // 305.2 s: the old token has expired, and the permit is released.
    tokio::time::sleep(millis(10_100)).await;
    // The request must not hold the permit while it waits for its token.
    let other = inner.oneshot(to("https://reports:8443/other"));
    let other = tokio::time::timeout(millis(10), other).await;
    assert!(other.is_ok(), "the permit is held");
    long.await.unwrap().unwrap();
    let got = match waiting.await.unwrap() {
        Ok(_) => Ok(()),
        Err(error) => Err(TokenError::find(&*error).unwrap().reason()),
    };
    (bench, arrived, got)
}

#[tokio::test(start_paused = true)]
async fn token_that_expires_before_readiness_is_not_sent() {
    let (_bench, arrived, got) = after_a_long_request(Answer::Hang).await;
    assert_eq!(got, Err(TokenErrorReason::Timeout));
    assert!(arrived.lock().unwrap().is_empty(), "sent after its expiry");
}

/// If the service is ready 6 s after 295 s, the next token has arrived. After 12 s it has not: the
/// fetch is slow and the token has expired, so the request fails fast.
#[tokio::test(start_paused = true)]
async fn token_that_expires_before_readiness_is_replaced() {
    let next = |delay| {
        let token = Token::new(&request("a"), START + 295, 300);
        Answer::Token(token).after(secs(delay))
    };
    let (bench, arrived, got) = after_a_long_request(next(6)).await;
    assert_eq!(got, Ok(()));
    let new = bench.cache.header(&request("a")).await.unwrap();
    assert_eq!(*arrived.lock().unwrap(), [new]);
    assert_eq!(bench.issuer.calls(), 2);

    let (_bench, arrived, got) = after_a_long_request(next(12)).await;
    assert_eq!(got, Err(TokenErrorReason::Timeout));
    assert!(arrived.lock().unwrap().is_empty(), "sent after its expiry");
}
