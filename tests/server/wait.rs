//! The wait for an unknown key: what ends it, and what it must not hold.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use serde_json::json;
use tokio::time::{Instant, timeout};
use tower::limit::ConcurrencyLimit;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_spiffe::Validator;
use tower_spiffe::bundle::{BundleAnswer, BundleSource, BundlesUnavailable};
use tower_spiffe::clock::{Clock, SystemClock};
use tower_spiffe::metrics::{Admission, MetricsRecorder, Verification};
use tower_spiffe::server::{
    Allow, AsyncValidateJwtSvid, AsyncValidateJwtSvidLayer, UnknownKeyWait, ValidateJwtSvidLayer,
};
use tower_spiffe::testing::PausedClock;

use crate::support::{
    AUDIENCE, Bundles, Signer, WEB, World, bearer, bundle_of, with_authorization,
};

const WAIT: Duration = Duration::from_secs(2);

fn layer(world: &World, wait: UnknownKeyWait) -> AsyncValidateJwtSvidLayer {
    ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
        .wait_for_unknown_keys(wait)
}

/// A token with an invalid signature, of an unknown key.
fn unsigned(kid: &str) -> Request<String> {
    let signer = Signer::new("x", kid);
    let claims = json!({ "sub": WEB, "aud": AUDIENCE, "exp": 9_999_999_999_i64 });
    let token = signer.sign(&signer.header(), &claims);
    let unsigned = format!("{}.{}", token.rsplit_once('.').unwrap().0, "A".repeat(86));
    with_authorization(&bearer(&unsigned))
}

fn service(
    layer: &AsyncValidateJwtSvidLayer,
) -> AsyncValidateJwtSvid<
    impl Service<
        Request<String>,
        Response = Response<String>,
        Error = Infallible,
        Future = impl Future<Output = Result<Response<String>, Infallible>> + Send,
    > + Clone
    + Send
    + 'static,
> {
    layer.layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    }))
}

#[tokio::test(start_paused = true)]
async fn a_key_in_time_allows_waiting_requests() {
    let world = World::new();
    let service = service(&layer(&world, UnknownKeyWait::new(WAIT)));
    let new = Signer::new("x", "k2");
    let request = with_authorization(&bearer(&new.token(WEB)));
    let waiting: Vec<_> = (0..3)
        .map(|_| tokio::spawn(service.clone().oneshot(request.clone())))
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(waiting.iter().all(|request| !request.is_finished()));

    // A change without the key does not end the wait.
    world.bundles.set([world.issuer.bundle()]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(waiting.iter().all(|request| !request.is_finished()));

    world
        .bundles
        .set([bundle_of(&new.trust_domain, &[&world.issuer, &new])]);
    for request in waiting {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_wait_is_rejected_and_not_repeated() {
    let now = SystemClock::shared().now();
    let world = World::with(|builder| builder.clock(Arc::new(PausedClock::new(now))));
    let service = service(&layer(&world, UnknownKeyWait::new(WAIT)));
    let ask = async |kid: &str| {
        let start = Instant::now();
        let response = service.clone().oneshot(unsigned(kid)).await.unwrap();
        assert_eq!(response.status(), 401);
        assert!(
            response.headers()["www-authenticate"]
                .to_str()
                .unwrap()
                .contains("the token's signing key is unknown")
        );
        start.elapsed()
    };
    let waited = ask("k2").await;
    assert!(
        waited >= WAIT && waited < WAIT + Duration::from_millis(50),
        "{waited:?}"
    );
    assert_eq!(world.bundles.waits(), 1);
    // The cool-down applies to all keys of a trust domain, because key IDs can be made up.
    for n in 0..100 {
        assert_eq!(ask(&format!("other{n}")).await, Duration::ZERO);
    }
    assert_eq!(world.bundles.waits(), 1);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(ask("k3").await >= WAIT);
}

#[tokio::test(start_paused = true)]
async fn a23_flood_of_unknown_keys_is_bounded() {
    let world = World::new();
    let wait = UnknownKeyWait::new(WAIT).max_waiting(8);
    let service = service(&layer(&world, wait));
    // Each token has another key ID, as in an attack.
    let flood: Vec<_> = (0..10_000)
        .map(|n| tokio::spawn(service.clone().oneshot(unsigned(&format!("made-up-{n}")))))
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        flood
            .iter()
            .filter(|request| !request.is_finished())
            .count(),
        8
    );
    assert_eq!(world.bundles.waits(), 8);

    let start = Instant::now();
    let response = service.clone().oneshot(world.request(WEB)).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), start.elapsed()),
        (200, Duration::ZERO)
    );
    for request in flood {
        assert_eq!(request.await.unwrap().unwrap().status(), 401);
    }
    assert_eq!(world.bundles.waits(), 8);
}

#[tokio::test(start_paused = true)]
async fn waiting_requests_hold_no_inner_permit() {
    let world = World::new();
    let inner = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let guarded = layer(&world, UnknownKeyWait::new(WAIT)).layer(ConcurrencyLimit::new(inner, 1));

    // Like a server: one clone per request, made ready, then called.
    let mut first = guarded.clone();
    let waiting = first.ready().await.unwrap().call(unsigned("made-up"));
    let waiting = tokio::spawn(waiting);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());

    for _ in 0..3 {
        let good = guarded.clone().oneshot(world.request(WEB));
        let response = timeout(Duration::from_millis(10), good)
            .await
            .expect("the permit is not released");
        assert_eq!(response.unwrap().status(), 200);
    }
    // The clone that is waiting can be used again meanwhile.
    let again = timeout(Duration::from_millis(10), first.ready())
        .await
        .expect("the permit is not released");
    assert_eq!(
        again
            .unwrap()
            .call(world.request(WEB))
            .await
            .unwrap()
            .status(),
        200
    );
    assert_eq!(waiting.await.unwrap().unwrap().status(), 401);
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_acquired_after_the_wait() {
    let world = World::new();
    let inner = service_fn(|_: Request<String>| async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let limited = ConcurrencyLimit::new(inner, 1);
    let guarded = layer(&world, UnknownKeyWait::new(WAIT)).layer(limited.clone());
    let new = Signer::new("x", "k2");
    let request = with_authorization(&bearer(&new.token(WEB)));
    let waiting = tokio::spawn(guarded.oneshot(request));
    tokio::task::yield_now().await;
    let start = Instant::now();
    let busy = tokio::spawn(limited.oneshot(Request::default()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.bundles.set([new.bundle()]);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    assert_eq!(start.elapsed(), Duration::from_secs(120));
    assert!(busy.is_finished());
}

#[tokio::test(start_paused = true)]
async fn waits_need_a_known_trust_domain() {
    let world = World::new();
    let service = service(&layer(&world, UnknownKeyWait::new(WAIT)));
    let stranger = Signer::new("y", "k1").token("spiffe://y/web");
    let other = Signer::new("x", "k1").token(WEB);
    let start = Instant::now();
    for value in [bearer(&stranger), bearer(&other), bearer("a.b.c")] {
        let response = service
            .clone()
            .oneshot(with_authorization(&value))
            .await
            .unwrap();
        assert_eq!(response.status(), 401);
    }
    assert_eq!(
        (start.elapsed(), world.bundles.waits()),
        (Duration::ZERO, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn sources_without_change_reports_cause_no_wait() {
    let issuer = Signer::new("x", "k1");
    let set = [issuer.bundle()].into_iter().collect();
    let validator = tower_spiffe::Validator::builder(tower_spiffe::bundle::FixedBundles::new(set))
        .audience(AUDIENCE)
        .build()
        .unwrap();
    let layer = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain())
        .wait_for_unknown_keys(UnknownKeyWait::new(WAIT));
    let start = Instant::now();
    let response = service(&layer).oneshot(unsigned("k2")).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), start.elapsed()),
        (401, Duration::ZERO)
    );
}

/// Reports endless changes, although nothing changes.
struct Restless(Bundles);

impl BundleSource for Restless {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.0.revision()
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        self.0.bundle(trust_domain)
    }

    fn changed_since(&self, _: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        Some(Box::pin(std::future::ready(())))
    }
}

/// It uses real time, because paused clocks do not advance on a blocked thread.
#[tokio::test]
async fn a_restless_source_blocks_no_other_request() {
    let issuer = Signer::new("x", "k1");
    let source = Restless(Bundles::of([issuer.bundle()]));
    let validator = Validator::builder(source)
        .audience(AUDIENCE)
        .build()
        .unwrap();
    let layer = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain())
        .wait_for_unknown_keys(UnknownKeyWait::new(Duration::from_millis(50)));
    let service = service(&layer);
    let waiting = tokio::spawn(service.clone().oneshot(unsigned("k2")));
    tokio::task::yield_now().await;
    // Others are served meanwhile, and the wait times out.
    let good = with_authorization(&bearer(&issuer.token(WEB)));
    assert_eq!(service.oneshot(good).await.unwrap().status(), 200);
    let response = timeout(Duration::from_secs(10), waiting).await.unwrap();
    assert_eq!(response.unwrap().unwrap().status(), 401);
}

#[tokio::test(start_paused = true)]
async fn a_source_lost_during_a_wait_is_503() {
    let world = World::new();
    let service = service(&layer(&world, UnknownKeyWait::new(WAIT)));
    let waiting = tokio::spawn(service.oneshot(unsigned("k2")));
    tokio::time::sleep(Duration::from_millis(100)).await;
    world
        .bundles
        .bundles_unavailable(tower_spiffe::bundle::BundlesUnavailable::Withdrawn);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 503);
}

/// Records calls of the validator and of the layer.
#[derive(Default)]
struct Recorded(std::sync::Mutex<Vec<String>>);

impl MetricsRecorder for Recorded {
    fn record_verification(&self, verification: &Verification<'_>) {
        let recorded = format!("token {}", verification.outcome);
        self.0.lock().unwrap().push(recorded);
    }

    fn record_admission(&self, admission: &Admission<'_>) {
        let recorded = format!("request {}", admission.outcome);
        self.0.lock().unwrap().push(recorded);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_request_is_counted_once() {
    let recorded = Arc::new(Recorded::default());
    let world = World::with(|builder| builder.metrics(recorded.clone()));
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap())
        .metrics(recorded.clone())
        .wait_for_unknown_keys(UnknownKeyWait::new(WAIT));
    let service = service(&layer);
    let recorded = || std::mem::take(&mut *recorded.0.lock().unwrap());

    // Allowed after two changes without the key.
    let new = Signer::new("x", "k2");
    let request = with_authorization(&bearer(&new.token(WEB)));
    let waiting = tokio::spawn(service.clone().oneshot(request));
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.bundles.set([world.issuer.bundle()]);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(recorded(), [""; 0]);
    world.bundles.set([new.bundle()]);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    assert_eq!(recorded(), ["token ok", "request verified"]);
    let stats = world.validator.cache_stats();
    assert_eq!((stats.hits, stats.misses), (0, 1));

    // Rejected when the time is up; later requests are rejected immediately.
    for _ in 0..2 {
        let response = service.clone().oneshot(unsigned("k3")).await.unwrap();
        assert_eq!(response.status(), 401);
        assert_eq!(recorded(), ["token key-unknown", "request key-unknown"]);
    }
    // A caller that is denied had a valid token.
    let other = new.token("spiffe://x/other");
    let response = service.oneshot(with_authorization(&bearer(&other))).await;
    assert_eq!(response.unwrap().status(), 403);
    assert_eq!(recorded(), ["token ok", "request not-allowed"]);
    assert_eq!(world.validator.cache_stats().misses, 4);
}

#[tokio::test(start_paused = true)]
async fn a_key_at_the_last_moment_counts() {
    let world = World::new();
    let service = service(&layer(&world, UnknownKeyWait::new(WAIT)));
    let new = Signer::new("x", "k2");
    let request = with_authorization(&bearer(&new.token(WEB)));
    let mut waiting = Box::pin(service.clone().oneshot(request));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(world.bundles.waits(), 1);
    // A late poll finds both: the time is up, and the key has arrived.
    world.bundles.set([new.bundle()]);
    tokio::time::sleep(2 * WAIT).await;
    assert_eq!(waiting.await.unwrap().status(), 200);

    // There is no cool-down for it.
    let last = Signer::new("x", "k3");
    let request = with_authorization(&bearer(&last.token(WEB)));
    let waiting = tokio::spawn(service.oneshot(request));
    tokio::task::yield_now().await;
    world.bundles.set([last.bundle()]);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn cancelled_waits_free_their_place() {
    let world = World::new();
    let service = service(&layer(&world, UnknownKeyWait::new(WAIT).max_waiting(1)));
    for n in 0..4 {
        let waiting = tokio::spawn(service.clone().oneshot(unsigned("made-up")));
        tokio::time::sleep(WAIT / 4).await;
        assert_eq!(world.bundles.waits(), n + 1);
        assert!(!waiting.is_finished());
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
    }
}

#[tokio::test(start_paused = true)]
async fn wait_limit_is_per_trust_domain() {
    let world = World::new();
    let other = Signer::new("y", "k1");
    world.bundles.set([world.issuer.bundle(), other.bundle()]);
    let service = service(&layer(&world, UnknownKeyWait::new(WAIT).max_waiting(2)));
    let flood: Vec<_> = (0..10)
        .map(|_| tokio::spawn(service.clone().oneshot(unsigned("made-up"))))
        .collect();
    tokio::task::yield_now().await;
    let new = Signer::new("y", "k2");
    let request = with_authorization(&bearer(&new.token("spiffe://y/web")));
    let waiting = tokio::spawn(service.oneshot(request));
    tokio::time::sleep(WAIT / 2).await;
    world.bundles.set([world.issuer.bundle(), new.bundle()]);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    for request in flood {
        assert_eq!(request.await.unwrap().unwrap().status(), 401);
    }
}
