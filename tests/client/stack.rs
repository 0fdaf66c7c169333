//! Tower's middleware around the layer: cold starts never hang, and unused permits are released.

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

/// Responds after 5 ms; 200 if the request has a token.
async fn serve(request: Request<()>) -> Result<Response<()>, Infallible> {
    tokio::time::sleep(millis(5)).await;
    let mut response = Response::new(());
    if !request.headers().contains_key(AUTHORIZATION) {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
    }
    Ok(response)
}

type Client = BoxCloneService<Request<()>, Response<()>, BoxError>;

/// Sends requests to cold services at once; all must succeed. Each call keeps its clone of the client,
/// as programs do, so permits that a clone holds are not available to others.
async fn all_are_served(client: Client, audiences: usize) {
    let calls = (0..audiences * 4).map(|n| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let response = client.ready().await?.call(to(n % audiences)).await?;
            Ok::<_, BoxError>((client, response))
        })
    });
    let calls = futures_util::future::join_all(calls.collect::<Vec<_>>());
    let all = tokio::time::timeout(secs(2), calls)
        .await
        .expect("the calls do not end");
    for served in all {
        let (_client, response) = served.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}

fn slow_issuer() -> Bench {
    Bench::with(|call| call.fresh(300).after(millis(30)))
}

/// A service that limits concurrency.
#[derive(Debug, Clone, Copy)]
enum Limiter {
    Limit(usize),
    /// A buffer of one, outside a limit of one.
    Buffer,
}

impl Limiter {
    const ALL: [Self; 3] = [Self::Limit(1), Self::Limit(4), Self::Buffer];

    fn around<S>(self, inner: S) -> Client
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
async fn cold_starts_with_limits_and_buffers_never_hang() {
    for limit in Limiter::ALL {
        for audiences in [1, 4, 5, 16] {
            let bench = slow_issuer();
            let inner = limit.around(service_fn(serve));
            all_are_served(signing(&bench, inner), audiences).await;
            assert_eq!(bench.issuer.calls(), audiences as u64);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn limits_and_buffers_on_both_sides_never_hang() {
    for outside in Limiter::ALL {
        for limit in Limiter::ALL {
            let bench = slow_issuer();
            let client = signing(&bench, limit.around(service_fn(serve)));
            let client = ServiceBuilder::new()
                .layer(TimeoutLayer::new(secs(2)))
                .service(client);
            all_are_served(outside.around(client), 8).await;
        }
    }
}

/// Four callers wait for tokens, each on its own clone; the fifth has a token.
#[tokio::test(start_paused = true)]
async fn four_cold_starts_release_their_permits() {
    let bench = Bench::with(|call| {
        let warm = call.request.audiences().eq(["aud-4"]);
        let delay = if warm { Duration::ZERO } else { secs(4) };
        call.fresh(300).after(delay)
    });
    bench.cache.header(&request("aud-4")).await.unwrap();
    for limit in Limiter::ALL {
        let client = signing(&bench, limit.around(service_fn(serve)));
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
            let response = fifth.expect("the permits are not released").unwrap();
            assert_eq!(response.status(), StatusCode::OK);
        }
        for served in cold {
            served.await.unwrap().unwrap();
        }
        // Next time they are cold again.
        tokio::time::sleep(secs(400)).await;
        bench.cache.header(&request("aud-4")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_request_releases_the_only_permit() {
    let bench = Bench::with(|call| {
        let slow = call.request.audiences().eq(["aud-0"]);
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
        // `client` still exists, but its permit is released.
        let other = tokio::time::timeout(secs(1), inner.clone().oneshot(to(0))).await;
        assert!(other.is_ok(), "the permit is not released");
    }
}

#[tokio::test(start_paused = true)]
async fn outer_timeout_bounds_the_wait_for_a_token() {
    let bench = Bench::with(|_| Answer::Hang);
    let client = ServiceBuilder::new()
        .layer(TimeoutLayer::new(millis(300)))
        .layer(layer(&bench.cache))
        .service_fn(serve);
    let (response, took) = timed(client.oneshot(to(0))).await;
    assert!(response.unwrap_err().is::<tower::timeout::error::Elapsed>());
    assert!(took < millis(310));
}

/// Retries once after a 401.
#[derive(Clone)]
struct Once(bool);

impl Policy<Request<()>, Response<()>, BoxError> for Once {
    type Future = std::future::Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<()>,
        result: &mut Result<Response<()>, BoxError>,
    ) -> Option<Self::Future> {
        let rejected = matches!(result, Ok(r) if r.status() == StatusCode::UNAUTHORIZED);
        (rejected && std::mem::take(&mut self.0)).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<()>) -> Option<Request<()>> {
        Some(request.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn outer_retry_gets_the_new_token_after_401() {
    // The service accepts only the issuer's second and later tokens.
    let bench = Bench::with(|call| call.fresh(300).after(millis(20)));
    let first = bench.cache.header(&request("aud-0")).await.unwrap();
    let inner = service_fn(move |request: Request<()>| {
        let rejected = request.headers()[AUTHORIZATION] == first;
        let mut response = Response::new(());
        if rejected {
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
    assert_eq!(bench.issuer.calls(), 2);
}

/// Panics if it is called without `poll_ready`.
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
async fn service_is_ready_before_each_call() {
    let bench = slow_issuer();
    let mut client = ServiceBuilder::new()
        .layer(layer(&bench.cache))
        .service(Strict::default());
    for n in [0, 0, 1, 0, 1, 2] {
        // Alternate cache misses and hits.
        client.ready().await.unwrap().call(to(n)).await.unwrap();
    }
    // A request without an audience, and a failed one.
    let elsewhere = Request::get("https://elsewhere/").body(()).unwrap();
    client.ready().await.unwrap().call(elsewhere).await.unwrap();
    bench.issuer.then(|_| Answer::Fail(FetchSvidReason::Denied));
    client.ready().await.unwrap().call(to(3)).await.unwrap_err();
    client.ready().await.unwrap().call(to(3)).await.unwrap_err();
    client.ready().await.unwrap().call(to(0)).await.unwrap();
}
