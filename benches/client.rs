//! What a token costs on its way out: the layer's hit path against a static header, a look-up
//! among 10,000 audiences, and two threads on one hot audience against a pure-CPU control. A run
//! of all of it ends with one line per bar, and fails where one is missed.
//!
//! ```text
//! cargo bench --bench client
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]
#![allow(clippy::disallowed_methods, clippy::indexing_slicing)]

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt::Debug;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::ops::RangeBounds;
use std::rc::Rc;
use std::sync::Barrier;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::Criterion;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Response};
use tower::{Layer, Service};
use tower_spiffe::client::{AddJwtSvid, Audience};
use tower_spiffe::svid::{FetchSvid, FetchSvidFuture};
use tower_spiffe::{Clock, JwtSvid, SvidCache, SvidRequest, SystemClock};

/// An issuer of tokens that live for a day, as long as those of SPIRE are.
struct Desk;

impl FetchSvid for Desk {
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
        let now = SystemClock::shared().now().secs();
        let claims = serde_json::json!({
            "sub": "spiffe://example.org/ns/default/sa/web", "aud": request.audiences(),
            "iat": now, "exp": now + 86_400, "jti": "5b1dbb7a-8a37-4a3e-9b53-1f4a7f0a2c11",
        });
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let header = r#"{"alg":"ES256","kid":"k2Zz0a9vQ1sT7uB3xY5wD8eF6gH4iJ0k","typ":"JWT"}"#;
        let signature = part(&"s".repeat(64));
        let token = format!("{}.{}.{signature}", part(header), part(&claims.to_string()));
        let svid = JwtSvid::parse_unverified(&token, "").unwrap();
        Box::pin(async move { Ok(svid) })
    }
}

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

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    let cache = SvidCache::builder(Desk)
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
    let mut group = criterion.benchmark_group("client");
    let mut fixed = Lane::new(|inner| Static(inner, header));
    group.bench_function("static header", |bench| bench.iter(|| fixed.lap()));
    let mut ours = Lane::new(|inner| layer.layer(inner));
    group.bench_function("hit, fixed audience", |bench| bench.iter(|| ours.lap()));
    group.bench_function("hit, pinned, no request", |bench| {
        bench.iter(|| black_box(pinned.try_header()).is_some());
    });
    group.bench_function("hit, look-up of one", |bench| {
        bench.iter(|| black_box(cache.try_header(&hot)).is_some());
    });
    let mut at = 0;
    group.bench_function("hit among 10,000 audiences", |bench| {
        bench.iter(|| {
            // A large stride: no two in a row are neighbours in memory.
            at = (at + 7_919) % many.len();
            black_box(cache.try_header(&many[at])).is_some()
        });
    });
    let clock = SystemClock::shared();
    group.bench_function("(of it: both clocks)", |bench| {
        bench.iter(|| black_box(clock.both()));
    });
    group.finish();

    // A filter wants only what it names, and a test run no figures.
    if std::env::args().skip(1).any(|arg| arg != "--bench") {
        return;
    }
    let above = above(&mut fixed, &mut ours);
    let among = among(&cache, &many);

    // Both in the same run, since a machine has its moods: several rounds, and the middle one.
    let mut rounds: Vec<(f64, f64, f64)> = (0..9)
        .map(|_| {
            let control = scaling(|| {
                let mut state = 1_u64;
                move || {
                    for _ in 0..60 {
                        state = black_box(state.wrapping_mul(6364136223846793005).wrapping_add(1));
                    }
                }
            });
            let layer = scaling(|| {
                let mut ours = Lane::new(|inner| layer.layer(inner));
                move || ours.lap()
            });
            let pin = scaling(|| {
                let pinned = pinned.clone();
                move || {
                    black_box(pinned.try_header());
                }
            });
            (control, layer, pin)
        })
        .collect();
    let middle = |rounds: &mut Vec<(f64, f64, f64)>, of: fn(&(f64, f64, f64)) -> f64| {
        rounds.sort_by(|a, b| of(a).total_cmp(&of(b)));
        of(&rounds[rounds.len() / 2])
    };
    let control = middle(&mut rounds, |round| round.0);
    let layer = middle(&mut rounds, |round| round.1 / round.0);
    let pin = middle(&mut rounds, |round| round.2 / round.0);
    println!("two threads, one hot audience: the control scales {control:.2} times");
    let held = [
        judge(
            "hit, fixed audience, above a static header, ns",
            above,
            ..=100.0,
        ),
        judge("hit among 10,000 audiences, ns", among, ..=200.0),
        judge(
            "two threads through the layer, of the control",
            layer,
            0.9..,
        ),
        judge(
            "two threads on one pinned audience, of the control",
            pin,
            0.9..,
        ),
    ];
    if held.contains(&false) {
        std::process::exit(1);
    }
}

fn judge(what: &str, figure: f64, bar: impl RangeBounds<f64> + Debug) -> bool {
    let held = bar.contains(&figure);
    let verdict = if held { "held" } else { "missed" };
    println!("{what}: {figure:.2} (bar {bar:?}: {verdict})");
    held
}

/// How many nanoseconds more a request takes with a token of ours than with a header that never
/// changes: pairs of short stretches, one after the other, and the middle of their differences.
fn above<A, B>(fixed: &mut Lane<A>, ours: &mut Lane<B>) -> f64
where
    A: Service<Request<()>, Response = Response<()>>,
    B: Service<Request<()>, Response = Response<()>>,
{
    let differences = (0..4_000).map(|_| {
        let without = stretch(|| fixed.lap());
        stretch(|| ours.lap()) - without
    });
    median(differences.collect())
}

/// How many nanoseconds it takes to find one of many tokens, the middle of short stretches.
fn among(cache: &SvidCache, many: &[SvidRequest]) -> f64 {
    let mut at = 0;
    let stretches = (0..4_000).map(|_| {
        stretch(|| {
            at = (at + 7_919) % many.len();
            assert!(black_box(cache.try_header(&many[at])).is_some());
        })
    });
    median(stretches.collect())
}

/// The nanoseconds of one `lap`, of 500 in a row.
fn stretch(mut lap: impl FnMut()) -> f64 {
    const LAPS: u32 = 500;
    let began = Instant::now();
    for _ in 0..LAPS {
        lap();
    }
    began.elapsed().as_secs_f64() * 1e9 / f64::from(LAPS)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// How much more two threads do than one.
fn scaling<W: FnMut()>(work: impl Fn() -> W + Sync) -> f64 {
    const LAPS: u32 = 2_000_000;
    let run = |threads: usize| {
        let barrier = Barrier::new(threads);
        let took: Vec<Duration> = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        let mut work = work();
                        for _ in 0..10_000 {
                            work();
                        }
                        barrier.wait();
                        let began = Instant::now();
                        for _ in 0..LAPS {
                            work();
                        }
                        began.elapsed()
                    })
                })
                .collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        // Laps per second, of all threads.
        took.iter()
            .map(|took| f64::from(LAPS) / took.as_secs_f64())
            .sum::<f64>()
    };
    let one = run(1);
    run(2) / one
}
