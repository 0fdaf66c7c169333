//! The cost of adding a token to a request.
//!
//! `cargo bench --bench client` measures the rows of this table, prints each with its limit, and fails
//! if a limit is missed; `-- fixed` selects rows by name. Allocations are counted by a test:
//! `tests/allocations`.
//!
//! | what | limit | rows |
//! | --- | --- | --- |
//! | a hit with a fixed audience, minus the insertion of a static header | 100 ns | `client/hit, fixed audience, minus a static header` |
//! | the same with an OAuth access token | 100 ns | `client/hit, access token, minus a static header` |
//! | a hit among 10,000 audiences | 200 ns | `client/hit among 10,000 audiences` |
//! | the speed-up of two threads with one audience, relative to two threads that only compute | 0.9 × | `client/two threads through the layer`, `client/two threads on one pin` |
//!
//! The rows of `parts of a hit` have no limit.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    unreachable_pub,
    missing_docs
)]
#![allow(clippy::disallowed_methods, clippy::indexing_slicing)]

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::process::ExitCode;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use criterion::Criterion;
use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::{Request, Response};
use tower::{Layer, Service, service_fn};
use tower_spiffe::SvidCache;
use tower_spiffe::client::{AddJwtSvid, AddJwtSvidLayer, Audience};
use tower_spiffe::clock::{Clock, SystemClock};
use tower_spiffe::oauth::AccessTokens;
use tower_spiffe::token::SvidRequest;
use tower_spiffe_test_support::fetch::DayIssuer;

use limits::{Limit, Limits, Round, Work, difference, each, group, in_turns, repeat, two_threads};

/// A client that responds immediately and stores the request for reuse. Its future is small, as in real
/// clients, which box theirs.
#[derive(Clone, Default)]
struct Inner(Rc<Cell<Option<Request<()>>>>);

impl Service<Request<()>> for Inner {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        self.0.set(Some(request));
        ready(Ok(Response::new(())))
    }
}

/// Adds a static header.
#[derive(Clone)]
struct Static(Inner, HeaderValue);

impl Service<Request<()>> for Static {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<()>) -> Self::Future {
        request.headers_mut().insert(AUTHORIZATION, self.1.clone());
        self.0.call(request)
    }
}

/// Returns the output of a future that is ready.
fn now<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("a cache hit is ready"),
    }
}

/// A service, and the request that is sent repeatedly.
struct Loop<S> {
    service: S,
    request: Option<Request<()>>,
    sent: Rc<Cell<Option<Request<()>>>>,
}

impl<S> Loop<S>
where
    S: Service<Request<()>, Response = Response<()>>,
{
    fn new(around: impl FnOnce(Inner) -> S) -> Self {
        let inner = Inner::default();
        Self {
            sent: inner.0.clone(),
            service: around(inner),
            request: Some(outgoing()),
        }
    }

    /// Sends the request, and takes it back without its token.
    fn send(&mut self) {
        let request = self
            .request
            .take()
            .expect("the request that was sent before");
        assert!(
            now(self.service.call(request)).is_ok(),
            "a cache hit is not an error"
        );
        let mut request = self.sent.take().expect("the request that was sent");
        assert!(request.headers_mut().remove(AUTHORIZATION).is_some());
        self.request = Some(request);
    }
}

fn outgoing() -> Request<()> {
    let mut request = Request::get("https://reports.example.org:8443/v1/today")
        .body(())
        .unwrap();
    // Like a real request it has another header, so that the map is already allocated.
    request
        .headers_mut()
        .insert("accept", HeaderValue::from_static("*/*"));
    request
}

/// A layer with an access token in its cache, and the header that it sends.
async fn access_tokens(svids: &SvidCache) -> (AddJwtSvidLayer, HeaderValue) {
    let endpoint = service_fn(async |_: Request<Vec<u8>>| {
        let token = "s".repeat(64);
        let json =
            format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":86400}}"#);
        Ok::<_, Infallible>(Response::new(json))
    });
    let tokens = AccessTokens::builder(svids.clone())
        .issuer("https://as.example.org")
        .token_endpoint("https://as.example.org/token")
        .http_client(endpoint)
        .build()
        .unwrap();
    let request = SvidRequest::new(["reports"]).unwrap();
    let header = SvidCache::from(&tokens).header(&request).await.unwrap();
    let audience = Audience::fixed("reports").for_origin("https://reports.example.org:8443");
    (AddJwtSvidLayer::new(tokens, audience.unwrap()), header)
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    let cache = SvidCache::builder(DayIssuer)
        .max_entries(20_000)
        .rate(1_000_000)
        .build();
    let hot = SvidRequest::new(["spiffe://example.org/reports"]).unwrap();
    let header = runtime.block_on(cache.header(&hot)).unwrap();
    let audience = Audience::fixed("spiffe://example.org/reports");
    let audience = audience
        .for_origin("https://reports.example.org:8443")
        .unwrap();
    let layer = AddJwtSvid::<()>::layer(cache.clone(), audience);
    let pinned = cache.pin(hot.clone());
    let many: Vec<_> = (0..10_000)
        .map(|n| SvidRequest::new([format!("spiffe://example.org/service-{n}")]).unwrap())
        .collect();
    for request in &many {
        runtime.block_on(cache.header(request)).unwrap();
    }

    let mut criterion = Criterion::default().configure_from_args();
    let mut limits = Limits::new();
    let mut group = group(&mut criterion, "client");
    let mut fixed = Loop::new(|inner| Static(inner, header));
    let mut layered = Loop::new(|inner| layer.layer(inner));
    let row = ("client", "hit, fixed audience, minus a static header");
    limits.row(&mut group, row, Limit::Nanos(100.0), || {
        let [without, with] = in_turns(
            400,
            [&mut |_| each(500, || fixed.send()), &mut |_| {
                each(500, || layered.send())
            }],
        );
        Round::of_nanos(difference(&without, &with))
    });
    let (access, header) = runtime.block_on(access_tokens(&cache));
    let mut fixed_access = Loop::new(|inner| Static(inner, header));
    let mut access = Loop::new(|inner| access.layer(inner));
    let row = ("client", "hit, access token, minus a static header");
    limits.row(&mut group, row, Limit::Nanos(100.0), || {
        let [without, with] = in_turns(
            400,
            [&mut |_| each(500, || fixed_access.send()), &mut |_| {
                each(500, || access.send())
            }],
        );
        Round::of_nanos(difference(&without, &with))
    });
    let mut at = 0;
    let row = ("client", "hit among 10,000 audiences");
    limits.row(&mut group, row, Limit::Nanos(200.0), || {
        Round::of_nanos(each(200_000, || {
            // A large stride, so that consecutive entries are not neighbors in memory.
            at = (at + 7_919) % many.len();
            assert!(black_box(cache.try_header(&many[at])).is_some());
        }))
    });
    let through_the_layer = |_, end| {
        let mut layered = Loop::new(|inner| layer.layer(inner));
        repeat(end, |_| layered.send())
    };
    let on_one_pin = |_, end| repeat(end, |_| drop(black_box(pinned.try_header())));
    let works: [(&str, &Work<'_>); 2] = [
        ("two threads through the layer", &through_the_layer),
        ("two threads on one pin", &on_one_pin),
    ];
    for (name, work) in works {
        limits.row(&mut group, ("client", name), Limit::AtLeast(0.9), || {
            two_threads(work)
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("parts of a hit");
    group.bench_function("a static header", |bench| bench.iter(|| fixed.send()));
    group.bench_function("the whole call", |bench| bench.iter(|| layered.send()));
    let mut with_host = Loop::new(|inner| layer.layer(inner));
    let host = HeaderValue::from_static("reports.example.org:8443");
    if let Some(request) = &mut with_host.request {
        request.headers_mut().insert(HOST, host);
    }
    group.bench_function("the whole call, with a Host header", |bench| {
        bench.iter(|| with_host.send());
    });
    group.bench_function("the pinned audience", |bench| {
        bench.iter(|| black_box(pinned.try_header()).is_some());
    });
    group.bench_function("both clocks", |bench| {
        let clock = SystemClock::shared();
        bench.iter(|| black_box(clock.both()));
    });
    group.bench_function("a lookup, if it is not pinned", |bench| {
        bench.iter(|| black_box(cache.try_header(&hot)).is_some());
    });
    group.finish();
    criterion.final_summary();
    limits.finish()
}
