//! What a token costs on its way out.
//!
//! `cargo bench --bench client` measures the rows of this table, prints for each what it is, its
//! bar and whether that is held, and fails where one is missed; `-- fixed` takes only those of that
//! name. What allocates, and how often, is a test: `tests/allocations`.
//!
//! | what | bar | rows |
//! | --- | --- | --- |
//! | a hit, fixed audience, above inserting a header that never changes | 100 ns | `client/hit, fixed audience, above a static header` |
//! | the same with an OAuth access token | 100 ns | `client/hit, access token, above a static header` |
//! | a hit among 10,000 audiences | 200 ns | `client/hit among 10,000 audiences` |
//! | two threads on one hot audience, against what two threads do that only compute | 0.9 × | `client/two threads through the layer`, `client/two threads on one pin` |
//!
//! The rest has no bar: what a hit consists of.
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

use judging::{Bar, Judge, Round, Work, difference, each, group, in_turns, repeat, two_threads};

/// A client that answers at once, and puts the request where it can be had again. Its future is no
/// larger than it need be, as those of real clients are, which stand behind a pointer.
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

/// The same with a header that never changes.
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

/// Polls what is ready.
fn now<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("a hit is ready"),
    }
}

/// A service, and the request that goes through it again and again.
struct Lane<S> {
    service: S,
    request: Option<Request<()>>,
    sent: Rc<Cell<Option<Request<()>>>>,
}

impl<S> Lane<S>
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
    fn lap(&mut self) {
        let request = self.request.take().expect("the request of the lap before");
        assert!(now(self.service.call(request)).is_ok(), "a hit fails");
        let mut request = self.sent.take().expect("the request that was sent");
        assert!(request.headers_mut().remove(AUTHORIZATION).is_some());
        self.request = Some(request);
    }
}

fn outgoing() -> Request<()> {
    let mut request = Request::get("https://reports.example.org:8443/v1/today")
        .body(())
        .unwrap();
    // As a real request, it has a header already, so that the map has its memory.
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
    let mut judge = Judge::new();
    let mut group = group(&mut criterion, "client");
    let mut fixed = Lane::new(|inner| Static(inner, header));
    let mut ours = Lane::new(|inner| layer.layer(inner));
    let row = ("client", "hit, fixed audience, above a static header");
    judge.row(&mut group, row, Bar::Nanos(100.0), || {
        let [without, with] = in_turns(
            400,
            [&mut |_| each(500, || fixed.lap()), &mut |_| {
                each(500, || ours.lap())
            }],
        );
        Round::of_nanos(difference(&without, &with))
    });
    let (access, header) = runtime.block_on(access_tokens(&cache));
    let mut fixed_access = Lane::new(|inner| Static(inner, header));
    let mut access = Lane::new(|inner| access.layer(inner));
    let row = ("client", "hit, access token, above a static header");
    judge.row(&mut group, row, Bar::Nanos(100.0), || {
        let [without, with] = in_turns(
            400,
            [&mut |_| each(500, || fixed_access.lap()), &mut |_| {
                each(500, || access.lap())
            }],
        );
        Round::of_nanos(difference(&without, &with))
    });
    let mut at = 0;
    let row = ("client", "hit among 10,000 audiences");
    judge.row(&mut group, row, Bar::Nanos(200.0), || {
        Round::of_nanos(each(200_000, || {
            // A large stride: no two in a row are neighbours in memory.
            at = (at + 7_919) % many.len();
            assert!(black_box(cache.try_header(&many[at])).is_some());
        }))
    });
    let through_the_layer = |_, end| {
        let mut ours = Lane::new(|inner| layer.layer(inner));
        repeat(end, |_| ours.lap())
    };
    let on_one_pin = |_, end| repeat(end, |_| drop(black_box(pinned.try_header())));
    let works: [(&str, &Work<'_>); 2] = [
        ("two threads through the layer", &through_the_layer),
        ("two threads on one pin", &on_one_pin),
    ];
    for (name, work) in works {
        judge.row(&mut group, ("client", name), Bar::AtLeast(0.9), || {
            two_threads(work)
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("a hit consists of");
    group.bench_function("a static header", |bench| bench.iter(|| fixed.lap()));
    group.bench_function("the whole call", |bench| bench.iter(|| ours.lap()));
    let mut with_host = Lane::new(|inner| layer.layer(inner));
    let host = HeaderValue::from_static("reports.example.org:8443");
    if let Some(request) = &mut with_host.request {
        request.headers_mut().insert(HOST, host);
    }
    group.bench_function("the whole call, with a Host header", |bench| {
        bench.iter(|| with_host.lap());
    });
    group.bench_function("the pinned audience alone", |bench| {
        bench.iter(|| black_box(pinned.try_header()).is_some());
    });
    group.bench_function("both clocks", |bench| {
        let clock = SystemClock::shared();
        bench.iter(|| black_box(clock.both()));
    });
    group.bench_function("a look-up, where it is not pinned", |bench| {
        bench.iter(|| black_box(cache.try_header(&hot)).is_some());
    });
    group.finish();
    criterion.final_summary();
    judge.verdict()
}
