//! What the layer costs: one call through it, against one call of the service beneath.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::{HeaderValue, Request, Response};
use tower::{Layer, Service};
use tower_spiffe::server::{Allow, UnknownKeyWait, ValidateJwtSvidLayer};
use tower_spiffe::testing::Issuer;
use tower_spiffe::{FixedBundles, Validator};

const AUDIENCE: &str = "spiffe://x/reports";
const WEB: &str = "spiffe://x/web";

/// Does nothing.
#[derive(Clone)]
struct Nothing;

impl Service<Request<()>> for Nothing {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        drop(black_box(request));
        ready(Ok(Response::new(())))
    }
}

fn call<S>(service: &mut S, request: Request<()>) -> Response<()>
where
    S: Service<Request<()>, Response = Response<()>, Error = Infallible>,
{
    let future = pin!(service.call(request));
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(response)) => response,
        _ => unreachable!(),
    }
}

fn request(authorization: Option<&HeaderValue>) -> Request<()> {
    let mut request = Request::new(());
    if let Some(value) = authorization {
        request.headers_mut().insert("authorization", value.clone());
    }
    request
}

fn server(c: &mut Criterion) {
    let issuer = Issuer::new("x").unwrap();
    let bundles = FixedBundles::new([issuer.bundle()].into_iter().collect());
    let validator = Validator::builder(bundles)
        .audience(AUDIENCE)
        .build()
        .unwrap();
    let bearer = |token: String| HeaderValue::try_from(format!("Bearer {token}")).unwrap();
    let hour = Duration::from_secs(3600);
    let good = issuer.token(WEB, AUDIENCE).expires_in(hour).bearer();
    let token = good.len();

    let layer = ValidateJwtSvidLayer::required(validator.clone(), Allow::id(WEB).unwrap());
    let waiting = layer
        .clone()
        .wait_for_unknown_keys(UnknownKeyWait::new(Duration::from_secs(1)));
    let mut group = c.benchmark_group("server");
    let mut time = |name: &str, service: &mut dyn FnMut(Request<()>) -> Response<()>, value| {
        group.bench_function(name, |b| {
            b.iter_batched(|| request(value), &mut *service, BatchSize::SmallInput);
        });
    };
    let mut bare = Nothing;
    let mut guarded = layer.layer(Nothing);
    let mut waiting = waiting.layer(Nothing);
    assert_eq!(call(&mut guarded, request(Some(&good))).status(), 200);
    time("bare service", &mut |r| call(&mut bare, r), Some(&good));
    time(
        &format!("layer, hit ({token} bytes)"),
        &mut |r| call(&mut guarded, r),
        Some(&good),
    );
    time(
        "layer that can wait, hit",
        &mut |r| call(&mut waiting, r),
        Some(&good),
    );
    time("layer, no token", &mut |r| call(&mut guarded, r), None);
    let rubbish = bearer("a.b.c".to_owned());
    time(
        "layer, rubbish",
        &mut |r| call(&mut guarded, r),
        Some(&rubbish),
    );
    let long = bearer("a".repeat(8193));
    time(
        "layer, 8 KiB + 1 of rubbish",
        &mut |r| call(&mut guarded, r),
        Some(&long),
    );
    let longest = bearer(".".repeat(1 << 20));
    time(
        "layer, 1 MiB of rubbish",
        &mut |r| call(&mut guarded, r),
        Some(&longest),
    );
    group.finish();

    c.bench_function("validate alone, hit", |b| {
        let token = good.to_str().unwrap().strip_prefix("Bearer ").unwrap();
        b.iter(|| validator.validate(black_box(token)).unwrap());
    });
}

criterion_group!(benches, server);
criterion_main!(benches);
