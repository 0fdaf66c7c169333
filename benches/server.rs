//! The cost of the layer, each figure relative to another of the same run.
//!
//! `cargo bench --bench server` measures the rows of this table, prints each with its limit, and
//! fails if a limit is missed; `-- "layer call"` selects rows by name. Allocations are counted by a
//! test: `tests/server/costs.rs`.
//!
//! | what | limit | rows |
//! | --- | --- | --- |
//! | a call with a known token, minus a call of the inner service, which does nothing | 250 ns | `layer call/hit, minus the inner service`, and the same with a layer that can wait |
//! | a call with a policy file of 1,000 rules, minus a call with the policy of one ID | 300 ns | `layer call/hit, policy file, …`: on paths, with parameters, and all on one path |
//! | a call whose asynchronous policy decides immediately, minus a call without such a policy | 500 ns | `layer call/hit, asynchronous policy, minus the layer` |
//! | a rejection, with its response, of a malformed token of 1 MiB, relative to one of 8 KiB and 1 byte | 1.1 × | `layer call/malformed, 1 MiB` |
//! | a call with a known key during a flood of 10,000 tokens per second with unknown keys, which wait; relative to the same flood at another server's layer, which rejects the tokens immediately | 1.1 × | `unknown keys/p50 of a known key`, `unknown keys/p99 of a known key` |
//!
//! The rows of `rejected, minus the inner service` have no limit; `benches/instructions` counts their
//! instructions.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    missing_docs,
    reason = "a benchmark"
)]

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use criterion::Criterion;
use http::request::Parts;
use http::{HeaderValue, Request, Response, Uri};
use tower::{Layer, Service};
use tower_spiffe::bundle::FixedBundles;
use tower_spiffe::server::{
    Allow, AskPolicy, AsyncPolicy, Decision, DecisionFuture, PolicyDocument, UnknownKeyWait,
    ValidateJwtSvidLayer,
};
use tower_spiffe::testing::{FakeAgent, Issuer};
use tower_spiffe::{Validator, VerifiedSvid};

use limits::{Limit, Limits, Round, difference, group, in_turns, median, medians_in_turns, nanos};

const AUDIENCE: &str = "spiffe://x/reports";
const WEB: &str = "spiffe://x/web";
const REPORT: &str = "/reports/7";
const HOUR: Duration = Duration::from_secs(3600);

/// Does nothing.
#[derive(Clone)]
struct Nothing;

impl Service<Request<String>> for Nothing {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        drop(black_box(request));
        ready(Ok(Response::new(String::new())))
    }
}

/// A policy that decides immediately.
struct Immediate;

impl AsyncPolicy for Immediate {
    fn decide(&self, _: Option<&VerifiedSvid>, _: &Parts) -> DecisionFuture {
        Box::pin(ready(Ok(Decision::Allow.into())))
    }
}

trait HttpService:
    Service<Request<String>, Response = Response<String>, Error = Infallible, Future: Send + 'static>
{
}

impl<S> HttpService for S where
    S: Service<
            Request<String>,
            Response = Response<String>,
            Error = Infallible,
            Future: Send + 'static,
        >
{
}

/// 1,000 rules. One of them allows WEB to `GET` this path.
fn thousand_rules(path: &str, pattern: impl Fn(usize) -> String) -> PolicyDocument {
    let rule = |path: &str, id: &str| {
        format!("[[rule]]\npath = {path:?}\nmethods = [\"GET\"]\nids = [{id:?}]\n")
    };
    let others = (1..1000).map(|n| rule(&pattern(n), &format!("spiffe://x/{n}")));
    let text: String = others.chain([rule(path, WEB)]).collect();
    text.parse().unwrap()
}

fn call(service: &mut impl HttpService, request: Request<String>) -> Response<String> {
    let future = pin!(service.call(request));
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(response)) => response,
        _ => unreachable!("the response is ready"),
    }
}

fn request(authorization: Option<&HeaderValue>) -> Request<String> {
    request_to("/", authorization)
}

fn request_to(path: &'static str, authorization: Option<&HeaderValue>) -> Request<String> {
    let mut request = Request::new(String::new());
    *request.uri_mut() = Uri::from_static(path);
    if let Some(value) = authorization {
        request.headers_mut().insert("authorization", value.clone());
    }
    request
}

fn bearer(token: impl AsRef<str>) -> HeaderValue {
    HeaderValue::try_from(format!("Bearer {}", token.as_ref())).unwrap()
}

/// Returns the nanoseconds of a call.
fn time(service: &mut impl HttpService, authorization: Option<&HeaderValue>) -> f64 {
    time_to("/", service, authorization)
}

/// Returns the nanoseconds of a call to this path, without the creation of the request.
fn time_to(
    path: &'static str,
    service: &mut impl HttpService,
    authorization: Option<&HeaderValue>,
) -> f64 {
    const CALLS: usize = 64;
    let requests: Vec<_> = (0..CALLS)
        .map(|_| request_to(path, authorization))
        .collect();
    let all = nanos(|| {
        for request in requests {
            drop(black_box(call(service, request)));
        }
    });
    all / CALLS as f64
}

/// Returns the time of a guarded call, minus the time of the inner service.
fn overhead(guarded: &mut impl HttpService, authorization: Option<&HeaderValue>) -> Round {
    let [inner, guarded] = in_turns(
        500,
        [&mut |_| time(&mut Nothing, authorization), &mut |_| {
            time(guarded, authorization)
        }],
    );
    Round::of_nanos(difference(&inner, &guarded))
}

fn layer_call(criterion: &mut Criterion, limits: &mut Limits) {
    const NAME: &str = "layer call";
    let issuer = Issuer::new("x").unwrap();
    let bundles = FixedBundles::new([issuer.bundle()].into_iter().collect());
    let validator = Validator::builder(bundles).audience(AUDIENCE);
    let validator = validator.build().unwrap();
    let layer_validator = validator.clone();
    let layer = ValidateJwtSvidLayer::required(validator, Allow::id(WEB).unwrap());
    let mut guarded = layer.layer(Nothing);
    let wait = UnknownKeyWait::new(Duration::from_secs(1));
    let mut waiting = layer.clone().wait_for_unknown_keys(wait).layer(Nothing);

    let token = || issuer.token(WEB, AUDIENCE).expires_in(HOUR);
    let good = token().bearer();
    assert_eq!(call(&mut guarded, request(Some(&good))).status(), 200);

    let mut rows = group(criterion, NAME);
    let limit = Limit::Nanos(250.0);
    let row = (NAME, "hit, minus the inner service");
    limits.row(&mut rows, row, limit, || {
        overhead(&mut guarded, Some(&good))
    });
    let row = (NAME, "hit, can wait, minus the inner service");
    limits.row(&mut rows, row, limit, || {
        overhead(&mut waiting, Some(&good))
    });
    let mut asking = layer.clone().ask(AskPolicy::new(Immediate)).layer(Nothing);
    let row = (NAME, "hit, asynchronous policy, minus the layer");
    limits.row(&mut rows, row, Limit::Nanos(500.0), || {
        let [plain, asking] = in_turns(
            500,
            [&mut |_| time(&mut guarded, Some(&good)), &mut |_| {
                time(&mut asking, Some(&good))
            }],
        );
        Round::of_nanos(difference(&plain, &asking))
    });
    for (name, policy) in [
        (
            "a path",
            thousand_rules("/reports/7", |n| format!("/p/{n}")),
        ),
        (
            "a parameter",
            thousand_rules("/reports/{id}", |n| format!("/p{n}/{{id}}/{{x}}")),
        ),
        (
            "one path",
            thousand_rules("/reports/{id}", |_| "/reports/{id}".to_owned()),
        ),
    ] {
        let validator = layer_validator.clone();
        let mut by_file = ValidateJwtSvidLayer::required(validator, policy).layer(Nothing);
        assert_eq!(
            call(&mut by_file, request_to(REPORT, Some(&good))).status(),
            200
        );
        let name = format!("hit, policy file, {name}, minus the layer");
        limits.row(&mut rows, (NAME, &name), Limit::Nanos(300.0), || {
            let [plain, by_file] = in_turns(
                500,
                [
                    &mut |_| time_to(REPORT, &mut guarded, Some(&good)),
                    &mut |_| time_to(REPORT, &mut by_file, Some(&good)),
                ],
            );
            Round::of_nanos(difference(&plain, &by_file))
        });
    }
    let [long, longest] = [8193, 1 << 20].map(|len| bearer(".".repeat(len)));
    let row = (NAME, "malformed, 1 MiB");
    limits.row(&mut rows, row, Limit::AtMost(1.1), || {
        let mut other = guarded.clone();
        let [long, longest] = medians_in_turns(
            200,
            [&mut |_| time(&mut guarded, Some(&long)), &mut |_| {
                time(&mut other, Some(&longest))
            }],
        );
        Round {
            nanos: longest,
            figure: longest / long,
        }
    });
    drop(rows);

    let mut rows = group(criterion, "rejected, minus the inner service");
    for (name, authorization) in [
        ("no header", None),
        ("malformed", Some(bearer("a.b.c"))),
        ("expired", Some(token().expired(HOUR).bearer())),
        ("unknown key", Some(unknown_key(&issuer, 0))),
    ] {
        rows.bench_function(name, |b| {
            b.iter_custom(|times| {
                let round = overhead(&mut guarded, authorization.as_ref());
                Duration::from_secs_f64(round.nanos.max(0.01) * 1e-9 * times as f64)
            });
        });
    }
}

/// A token with an unknown key and an invalid signature.
fn unknown_key(issuer: &Issuer, n: usize) -> HeaderValue {
    let token = issuer.token(WEB, AUDIENCE).expires_in(HOUR);
    let token = token.header("kid", format!("unknown-{n}"));
    token.signature([7; 64]).bearer()
}

/// Sends 10,000 tokens per second with unknown keys until `done`. They exceed the number of waiting
/// requests, and the flood lasts for several cooldowns.
fn flood(service: &mut impl HttpService, tokens: &[HeaderValue], done: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut waiting = tokio::task::JoinSet::new();
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        let mut tokens = tokens.iter().cycle();
        while !done.load(Ordering::Relaxed) {
            ticks.tick().await;
            for token in tokens.by_ref().take(10) {
                let mut response: Pin<Box<_>> = Box::pin(service.call(request(Some(token))));
                // Only requests that wait need a task.
                let now = response
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()));
                match now {
                    Poll::Ready(response) => assert_eq!(response.unwrap().status(), 401),
                    Poll::Pending => drop(waiting.spawn(response)),
                }
            }
            while waiting.try_join_next().is_some() {}
        }
    });
}

/// Returns the p50 and p99 of the calls in 200 ms, in nanoseconds.
fn percentiles(service: &mut impl HttpService, authorization: &HeaderValue) -> [f64; 2] {
    let mut times = Vec::with_capacity(1 << 18);
    let end = Instant::now() + Duration::from_millis(200);
    while Instant::now() < end {
        let request = request(Some(authorization));
        times.push(nanos(|| drop(black_box(call(service, request)))));
    }
    times.sort_by(f64::total_cmp);
    [0.5, 0.99].map(|q| times[(times.len() as f64 * q) as usize])
}

fn unknown_keys(criterion: &mut Criterion, limits: &mut Limits) {
    const NAME: &str = "unknown keys";
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let agent = runtime.block_on(FakeAgent::start("x")).unwrap();
    let server = || {
        let source = runtime.block_on(agent.source()).unwrap();
        let validator = Validator::builder(source).audience(AUDIENCE);
        ValidateJwtSvidLayer::required(validator.build().unwrap(), Allow::id(WEB).unwrap())
    };
    let wait = UnknownKeyWait::new(Duration::from_millis(20));
    let wait = wait.cool_down(Duration::from_millis(20));
    let guarded = server().wait_for_unknown_keys(wait).layer(Nothing);
    let elsewhere = server().layer(Nothing);

    let good = agent.issuer().token(WEB, AUDIENCE).expires_in(HOUR);
    let good = good.bearer();
    let tokens: Vec<_> = (0..1000).map(|n| unknown_key(agent.issuer(), n)).collect();
    let quiet = || percentiles(&mut guarded.clone(), &good);
    let beside = |flood: &(dyn Fn(&AtomicBool) + Sync)| {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| flood(&done));
            let result = percentiles(&mut guarded.clone(), &good);
            done.store(true, Ordering::Relaxed);
            result
        })
    };
    let mut rows = group(criterion, NAME);
    for (at, name) in ["p50 of a known key", "p99 of a known key"]
        .into_iter()
        .enumerate()
    {
        let mut quiets = Vec::new();
        limits.row(&mut rows, (NAME, name), Limit::AtMost(1.1), || {
            let [quiet, control, flooded] = medians_in_turns(
                3,
                [
                    &mut |_| quiet()[at],
                    &mut |_| beside(&|done| flood(&mut elsewhere.clone(), &tokens, done))[at],
                    &mut |_| beside(&|done| flood(&mut guarded.clone(), &tokens, done))[at],
                ],
            );
            quiets.push(quiet);
            Round {
                nanos: flooded,
                figure: flooded / control,
            }
        });
        if !quiets.is_empty() {
            println!(
                "{NAME}/{name}: {:.0} ns without a flood",
                median(&mut quiets)
            );
        }
    }
}

fn main() -> ExitCode {
    let mut criterion = Criterion::default().configure_from_args();
    let mut limits = Limits::new();
    for rows in [layer_call, unknown_keys] {
        rows(&mut criterion, &mut limits);
    }
    criterion.final_summary();
    limits.finish()
}
