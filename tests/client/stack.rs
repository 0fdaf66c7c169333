//! Tower's own middleware around ours: cold starts never hang, nothing holds a place in vain.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use tower::buffer::Buffer;
use tower::limit::{ConcurrencyLimit, ConcurrencyLimitLayer};
use tower::retry::{Policy, RetryLayer};
use tower::timeout::TimeoutLayer;
use tower::util::BoxCloneService;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_spiffe::SvidCache;
use tower_spiffe::client::{AddJwtSvidLayer, Audience};
use tower_spiffe::token::{FetchSvidReason, TokenError};

use crate::support::{Answer, Bench, millis, request, secs, settle, timed};

fn layer(cache: &SvidCache) -> AddJwtSvidLayer {
    let map = (0..16).map(|n| (format!("https://s{n}"), format!("aud-{n}")));
    AddJwtSvidLayer::new(cache.clone(), Audience::map(map).unwrap())
}

fn to(n: usize) -> Request<()> {
    Request::get(format!("https://s{n}/x")).body(()).unwrap()
}

/// Answers after 5 ms; 200 to a request with a token.
async fn serve(request: Request<()>) -> Result<Response<()>, Infallible> {
    tokio::time::sleep(millis(5)).await;
    let mut response = Response::new(());
    if !request.headers().contains_key(AUTHORIZATION) {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
    }
    Ok(response)
}

type Client = BoxCloneService<Request<()>, Response<()>, BoxError>;

/// Sends to `audiences` cold services at once; all must be served. Each call is made on a clone of
/// its own that lives on, as in a program: what it holds without need is missing to the others.
async fn all_are_served(client: Client, audiences: usize) {
    let calls = (0..audiences * 4).map(|n| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let response = client.ready().await?.call(to(n % audiences)).await?;
            Ok::<_, BoxError>((client, response))
        })
    });
    let calls = futures_util::future::join_all(calls.collect::<Vec<_>>());
    let all = tokio::time::timeout(secs(2), calls).await.expect("a hang");
    for served in all {
        let (_client, response) = served.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}

fn slow_issuer() -> Bench {
    Bench::with(|call| call.fresh(300).after(millis(30)))
}

/// What lets few through at once.
#[derive(Debug, Clone, Copy)]
enum Narrow {
    Limit(usize),
    /// A buffer for one, above one call at a time.
    Buffer,
}

impl Narrow {
    const ALL: [Self; 3] = [Self::Limit(1), Self::Limit(4), Self::Buffer];

    fn above<S>(self, inner: S) -> Client
    where
        S: Service<Request<()>, Response = Response<()>, Future: Send> + Clone + Send + 'static,
        S::Error: Into<BoxError> + Send + Sync,
    {
        let inner = inner.map_err(Into::into);
        match self {
            Self::Limit(most) => BoxCloneService::new(ConcurrencyLimit::new(inner, most)),
            Self::Buffer => BoxCloneService::new(Buffer::new(ConcurrencyLimit::new(inner, 1), 1)),
        }
    }
}

fn signing(bench: &Bench, inner: Client) -> Client {
    BoxCloneService::new(layer(&bench.cache).layer(inner))
}

#[tokio::test(start_paused = true)]
async fn cold_starts_over_a_limit_of_one_or_four_or_a_buffer_of_one_never_hang() {
    for beneath in Narrow::ALL {
        for audiences in [1, 4, 5, 16] {
            let bench = slow_issuer();
            let inner = beneath.above(service_fn(serve));
            all_are_served(signing(&bench, inner), audiences).await;
            assert_eq!(bench.desk.calls(), audiences as u64);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn limits_and_buffers_on_both_sides_never_hang() {
    for outside in Narrow::ALL {
        for beneath in Narrow::ALL {
            let bench = slow_issuer();
            let client = signing(&bench, beneath.above(service_fn(serve)));
            let client = ServiceBuilder::new()
                .layer(TimeoutLayer::new(secs(2)))
                .service(client);
            all_are_served(outside.above(client), 8).await;
        }
    }
}

/// Four callers wait for their tokens, each on a client that lives on; the fifth has one.
#[tokio::test(start_paused = true)]
async fn four_cold_starts_leave_all_four_permits_to_others() {
    let bench = Bench::with(|call| {
        let warm = &*call.request.audiences()[0] == "aud-4";
        let delay = if warm { Duration::ZERO } else { secs(4) };
        call.fresh(300).after(delay)
    });
    bench.cache.header(&request("aud-4")).await.unwrap();
    for beneath in Narrow::ALL {
        let client = signing(&bench, beneath.above(service_fn(serve)));
        let cold = (0..4).map(|n| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let response = client.ready().await?.call(to(n)).await?;
                Ok::<_, BoxError>((client, response))
            })
        });
        let cold: Vec<_> = cold.collect();
        settle().await;
        for _ in 0..4 {
            let fifth = client.clone().oneshot(to(4));
            let fifth = tokio::time::timeout(millis(100), fifth).await;
            let response = fifth.expect("the permits are held").unwrap();
            assert_eq!(response.status(), StatusCode::OK);
        }
        for served in cold {
            served.await.unwrap().unwrap();
        }
        // The next time they are cold again.
        tokio::time::sleep(secs(400)).await;
        bench.cache.header(&request("aud-4")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn while_one_waits_for_its_token_another_uses_the_only_permit() {
    let bench = Bench::with(|call| {
        let slow = &*call.request.audiences()[0] == "aud-0";
        call.fresh(300)
            .after(if slow { secs(4) } else { millis(1) })
    });
    let inner = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service_fn(serve);
    let client = ServiceBuilder::new()
        .layer(layer(&bench.cache))
        .service(inner);
    let waiting = tokio::spawn(client.clone().oneshot(to(0)));
    tokio::time::sleep(millis(10)).await;
    let (response, took) = timed(client.oneshot(to(1))).await;
    assert_eq!(response.unwrap().status(), StatusCode::OK);
    assert!(took < millis(20), "{took:?}");
    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_holds_no_permit() {
    let bench = Bench::with(|_| Answer::Fail(FetchSvidReason::Denied));
    let inner = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service_fn(serve);
    let mut client = ServiceBuilder::new()
        .layer(layer(&bench.cache))
        .service(inner.clone());
    for _ in 0..3 {
        let error = client.ready().await.unwrap().call(to(0)).await.unwrap_err();
        assert!(TokenError::find(&*error).is_some());
        // `client` lives on; the permit is free for the other one.
        let other = tokio::time::timeout(secs(1), inner.clone().oneshot(to(0))).await;
        assert!(other.is_ok(), "the permit is held");
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_outside_bounds_the_wait_for_the_token() {
    let bench = Bench::with(|_| Answer::Hang);
    let client = ServiceBuilder::new()
        .layer(TimeoutLayer::new(millis(300)))
        .layer(layer(&bench.cache))
        .service_fn(serve);
    let (response, took) = timed(client.oneshot(to(0))).await;
    assert!(response.unwrap_err().is::<tower::timeout::error::Elapsed>());
    assert!(took < millis(310));
}

/// Tries once more after a 401.
#[derive(Clone)]
struct Once(bool);

impl Policy<Request<()>, Response<()>, BoxError> for Once {
    type Future = std::future::Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<()>,
        result: &mut Result<Response<()>, BoxError>,
    ) -> Option<Self::Future> {
        let refused = matches!(result, Ok(r) if r.status() == StatusCode::UNAUTHORIZED);
        (refused && std::mem::take(&mut self.0)).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<()>) -> Option<Request<()>> {
        Some(request.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_outside_gets_the_new_token_after_a_401() {
    // The service knows a key that the issuer uses from its second token on.
    let bench = Bench::with(|call| call.fresh(300).after(millis(20)));
    let first = bench.cache.header(&request("aud-0")).await.unwrap();
    let inner = service_fn(move |request: Request<()>| {
        let refused = request.headers()[AUTHORIZATION] == first;
        let mut response = Response::new(());
        if refused {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        ready(Ok::<_, Infallible>(response))
    });
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(Once(true)))
        .layer(layer(&bench.cache))
        .service(inner);
    let response = client.oneshot(to(0)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(bench.desk.calls(), 2);
}

/// Panics where the contract of readiness is broken: a call without `poll_ready` before it.
#[derive(Default)]
struct Strict {
    ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service<Request<()>> for Strict {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        self.ready = true;
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called without being ready"
        );
        ready(Ok(Response::new(())))
    }
}

#[tokio::test(start_paused = true)]
async fn the_contract_of_readiness_is_kept_on_every_path() {
    let bench = slow_issuer();
    let mut client = ServiceBuilder::new()
        .layer(layer(&bench.cache))
        .service(Strict::default());
    for n in [0, 0, 1, 0, 1, 2] {
        // Miss, hit, miss, ...
        client.ready().await.unwrap().call(to(n)).await.unwrap();
    }
    // No audience, and a failure.
    let elsewhere = Request::get("https://elsewhere/").body(()).unwrap();
    client.ready().await.unwrap().call(elsewhere).await.unwrap();
    bench.desk.then(|_| Answer::Fail(FetchSvidReason::Denied));
    client.ready().await.unwrap().call(to(3)).await.unwrap_err();
    client.ready().await.unwrap().call(to(3)).await.unwrap_err();
    client.ready().await.unwrap().call(to(0)).await.unwrap();
}
