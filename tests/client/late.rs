//! A token that came, and then waited for the inner service.

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

/// One call at a time: `/long` takes 10 s, others no time; keeps the tokens that arrive.
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

/// A request with 3 s of its token left, on a client with one permit: while it waits 250 ms for the
/// next token, which the issuer gives so late or never, another takes the permit for 10 s.
async fn behind_a_long_one(next: Answer) -> (Bench, Arrived, Result<(), TokenErrorReason>) {
    let bench = Bench::new();
    bench.cache.header(&request("a")).await.unwrap();
    bench.at(secs(295)).await;
    bench.desk.then(move |_| next.clone());
    let (arrived, inner) = one_at_a_time();
    let client = ServiceBuilder::new()
        .layer(AddJwtSvidLayer::new(bench.cache.clone(), fixed()))
        .service(inner.clone());
    let waiting = tokio::spawn(client.oneshot(to("https://reports:8443/x")));
    tokio::time::sleep(millis(100)).await;
    let long = tokio::spawn(inner.clone().oneshot(to("https://reports:8443/long")));
    // 305.2 s: the old token has ended, and the permit is given back.
    tokio::time::sleep(millis(10_100)).await;
    // Whatever the request does now, it does not hold the permit while it waits for its token.
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
async fn a_token_that_ends_while_the_service_is_not_ready_is_never_sent() {
    let (_bench, arrived, got) = behind_a_long_one(Answer::Hang).await;
    assert_eq!(got, Err(TokenErrorReason::Timeout));
    assert!(arrived.lock().unwrap().is_empty(), "sent past its end");
}

/// 6 s after 295 s the next token is there when the service is ready. After 12 s it is not: the fetch is
/// slow by then and its token has expired, so the request fails fast.
#[tokio::test(start_paused = true)]
async fn a_token_that_ends_while_the_service_is_not_ready_gives_way_to_the_next() {
    let next = |delay| {
        let token = Token::new(&request("a"), START + 295, 300);
        Answer::Token(token).after(secs(delay))
    };
    let (bench, arrived, got) = behind_a_long_one(next(6)).await;
    assert_eq!(got, Ok(()));
    let new = bench.cache.header(&request("a")).await.unwrap();
    assert_eq!(*arrived.lock().unwrap(), [new]);
    assert_eq!(bench.desk.calls(), 2);

    let (_bench, arrived, got) = behind_a_long_one(next(12)).await;
    assert_eq!(got, Err(TokenErrorReason::Timeout));
    assert!(arrived.lock().unwrap().is_empty(), "sent past its end");
}
