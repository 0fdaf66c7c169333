//! Asynchronous policies.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::request::Parts;
use http::{Request, Response};
use serde_json::json;
use tokio::sync::watch;
use tower::limit::ConcurrencyLimit;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_spiffe::clock::{Clock, SystemClock, UnixTime};
use tower_spiffe::metrics::{Admission, MetricsRecorder};
use tower_spiffe::server::{
    Allow, AskPolicy, AsyncDecision, AsyncPolicy, CallerState, Decision, DecisionFuture,
    GrpcPolicy, PolicyFailure, PolicyUnavailable, Protocol, Rejection, RejectionReason,
    UnknownKeyWait, ValidateJwtSvidLayer,
};
use tower_spiffe::testing::PausedClock;
use tower_spiffe::verify::{ValidateReason, VerifiedSvid};

use crate::log::Log;
use crate::support::{OPS, Signer, WEB, World, bearer, with_authorization};

type Verdict = Result<AsyncDecision, PolicyUnavailable>;
type Decide = dyn Fn(Option<&str>, &str) -> Verdict + Send + Sync;

/// A policy that decides when its gate is open.
#[derive(Clone)]
struct Fake {
    decide: Arc<Decide>,
    open: watch::Sender<bool>,
    key: bool,
    asked: Arc<Mutex<Vec<Option<String>>>>,
    /// The number of futures that are neither completed nor dropped.
    alive: Arc<AtomicUsize>,
}

impl Fake {
    fn new(decide: impl Fn(Option<&str>, &str) -> Verdict + Send + Sync + 'static) -> Self {
        Self {
            decide: Arc::new(decide),
            open: watch::channel(true).0,
            key: false,
            asked: Arc::default(),
            alive: Arc::default(),
        }
    }

    fn only(id: &'static str) -> Self {
        Self::new(move |caller, _| match caller {
            Some(caller) if caller == id => Ok(Decision::Allow.into()),
            Some(_) => Ok(Decision::DenyBecause("not on the list").into()),
            None => Ok(Decision::AuthenticationRequired.into()),
        })
    }

    fn closed(self) -> Self {
        self.open.send_replace(false);
        self
    }

    fn keyed(self) -> Self {
        Self { key: true, ..self }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl AsyncPolicy for Fake {
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> DecisionFuture {
        let caller = caller.map(|caller| caller.spiffe_id().to_string());
        self.asked.lock().unwrap().push(caller.clone());
        let verdict = (self.decide)(caller.as_deref(), parts.uri.path());
        let mut open = self.open.subscribe();
        self.alive.fetch_add(1, Ordering::SeqCst);
        let alive = Alive(self.alive.clone());
        Box::pin(async move {
            let _alive = alive;
            open.wait_for(|open| *open).await.unwrap();
            verdict
        })
    }

    fn cache_key(&self, _: Option<&VerifiedSvid>, parts: &Parts) -> Option<String> {
        self.key.then(|| parts.uri.path().to_owned())
    }
}

fn unavailable() -> Fake {
    Fake::new(|_, _| Err(PolicyUnavailable::new("connection refused")))
}

async fn ok(request: Request<String>) -> Result<Response<String>, Infallible> {
    let state = CallerState::from_extensions(request.extensions()).unwrap();
    let kind = match state {
        CallerState::Verified(_) => "verified",
        CallerState::AuditFailed(_) => "audit",
        _ => "anonymous",
    };
    Ok(Response::new(kind.to_owned()))
}

fn any(world: &World) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
}

/// Returns the status, and the reason of the rejection.
async fn call(
    layer: ValidateJwtSvidLayer,
    ask: AskPolicy,
    request: Request<String>,
) -> (u16, Option<RejectionReason>) {
    let service = layer.ask(ask).layer(service_fn(ok));
    let response = service.oneshot(request).await.unwrap();
    let rejection = response.extensions().get::<Rejection>();
    (response.status().as_u16(), rejection.map(Rejection::reason))
}

fn down(why: PolicyFailure) -> (u16, Option<RejectionReason>) {
    (503, Some(RejectionReason::PolicyUnavailable(why)))
}

const DENIED: (u16, Option<RejectionReason>) = (403, Some(RejectionReason::NotAllowed));
const MISSING: (u16, Option<RejectionReason>) = (401, Some(RejectionReason::Missing));

#[tokio::test]
async fn decisions_become_the_layers_responses() {
    let world = World::new();
    let ask = || AskPolicy::new(Fake::only(WEB));
    assert_eq!(
        call(any(&world), ask(), world.request(WEB)).await,
        (200, None)
    );
    assert_eq!(call(any(&world), ask(), world.request(OPS)).await, DENIED);
    let open = || ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    assert_eq!(call(open(), ask(), Request::default()).await, MISSING);
    assert_eq!(call(open(), ask(), world.request(WEB)).await, (200, None));
    assert_eq!(call(open(), ask(), world.request(OPS)).await, DENIED);
}

#[tokio::test(start_paused = true)]
async fn policy_is_called_after_waiting_for_a_key() {
    let waiting_first = |world: &World, ask| {
        let wait = UnknownKeyWait::new(Duration::from_secs(2));
        any(world).wait_for_unknown_keys(wait).ask(ask)
    };
    let asking_first = |world: &World, ask| {
        let wait = UnknownKeyWait::new(Duration::from_secs(2));
        any(world).ask(ask).wait_for_unknown_keys(wait)
    };
    for build in [waiting_first as fn(&World, AskPolicy) -> _, asking_first] {
        for (id, status) in [(WEB, 200), (OPS, 403)] {
            let world = World::new();
            let fake = Fake::only(WEB).closed();
            let layer = build(&world, AskPolicy::new(fake.clone()));
            let new = Signer::new("x", "k2");
            let request = with_authorization(&bearer(&new.token(id)));
            let response = tokio::spawn(layer.layer(service_fn(ok)).oneshot(request));
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(fake.asked(), 0, "asked before the key is known");
            world.bundles.set([new.bundle()]);
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!((fake.asked(), response.is_finished()), (1, false));
            fake.open.send_replace(true);
            let response = response.await.unwrap().unwrap();
            assert_eq!(response.status(), status);
            assert_eq!(fake.asked(), 1);
        }
    }
}

#[tokio::test]
async fn policy_is_called_only_if_it_can_matter() {
    let world = World::new();
    let fake = Fake::only(WEB);
    let methods = GrpcPolicy::deny_by_default()
        .service("r.Reports", Allow::id(WEB).unwrap())
        .public_health()
        .build()
        .unwrap();
    let layer =
        ValidateJwtSvidLayer::required(world.validator.clone(), methods).protocol(Protocol::Http);
    let mut statuses = Vec::new();
    for (path, request) in [
        ("/r.Reports/Get", world.request(OPS)),
        ("/r.Reports/Get", Request::default()),
        ("/r.Other/Get", world.request(WEB)),
        ("/grpc.health.v1.Health/Check", Request::default()),
        ("/grpc.health.v1.Health/Check", world.request(OPS)),
        ("/r.Reports/Get", with_authorization(&bearer("a.b.c"))),
    ] {
        let mut request = request;
        *request.uri_mut() = path.parse().unwrap();
        let ask = AskPolicy::new(fake.clone()).max_in_flight(0);
        statuses.push(call(layer.clone(), ask, request).await.0);
    }
    assert_eq!(statuses, [403, 401, 403, 200, 200, 401]);
    assert_eq!(fake.asked(), 0);
}

#[tokio::test]
async fn verified_callers_may_do_what_anonymous_may() {
    let world = World::new();
    let fake = Fake::new(|caller, _| match caller {
        None => Ok(Decision::Allow.into()),
        Some(_) => Ok(Decision::Deny.into()),
    });
    let open = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    for fake in [fake.clone(), fake.clone().keyed()] {
        let ask = || AskPolicy::new(fake.clone()).cache(10, Duration::from_secs(9));
        let layer = open.clone().ask(ask());
        for _ in 0..3 {
            let service = layer.layer(service_fn(ok));
            let response = service.oneshot(world.request(WEB)).await.unwrap();
            assert_eq!(
                (response.status().as_u16(), &**response.body()),
                (200, "verified")
            );
        }
        // A layer that rejects anonymous callers does not ask about them.
        assert_eq!(call(any(&world), ask(), world.request(WEB)).await, DENIED);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_decision_is_a_rejection() {
    let world = World::new();
    for (protocol, status) in [(Protocol::Http, 503), (Protocol::Grpc, 200)] {
        let fake = Fake::only(WEB).closed();
        let ask = AskPolicy::new(fake.clone()).timeout(Duration::from_millis(300));
        let service = any(&world)
            .protocol(protocol)
            .ask(ask)
            .layer(service_fn(ok));
        let begin = tokio::time::Instant::now();
        let response = service.oneshot(world.request(WEB)).await.unwrap();
        assert_eq!(begin.elapsed(), Duration::from_millis(300));
        assert_eq!(response.status(), status);
        let rejection = response.extensions().get::<Rejection>().unwrap();
        let timed_out = RejectionReason::PolicyUnavailable(PolicyFailure::TimedOut);
        assert_eq!(rejection.reason(), timed_out);
        match protocol {
            Protocol::Grpc => assert_eq!(response.headers()["grpc-status"], "14"),
            _ => assert_eq!(response.headers()["retry-after"], "5"),
        }
        assert_eq!(
            fake.alive.load(Ordering::SeqCst),
            0,
            "the policy's future is not dropped"
        );
    }
}

/// Without timers, a policy that decides at once works. One that waits fails closed.
#[test]
fn a_runtime_without_timers_fails_closed() {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let at_once = AskPolicy::new(Fake::only(WEB));
        assert_eq!(
            call(any(&world), at_once, world.request(WEB)).await,
            (200, None)
        );
        let waits = AskPolicy::new(Fake::only(WEB).closed());
        let answer = call(any(&world), waits, world.request(WEB)).await;
        assert_eq!(answer, down(PolicyFailure::Failed));
    });
}

#[derive(Default)]
struct Counts(Mutex<Vec<(String, String, bool)>>);

impl MetricsRecorder for Counts {
    fn record_admission(&self, admission: &Admission<'_>) {
        let Admission {
            outcome,
            why,
            enforced,
            ..
        } = *admission;
        self.0
            .lock()
            .unwrap()
            .push((outcome.into(), why.into(), enforced));
    }
}

#[tokio::test]
async fn an_error_fails_closed_and_is_logged() {
    let world = World::new();
    let log = Log::default();
    let guard = log.begin(tracing::Level::INFO);
    let counts = Arc::new(Counts::default());
    let layer = any(&world).metrics(counts.clone());
    let answer = call(layer, AskPolicy::new(unavailable()), world.request(WEB)).await;
    assert_eq!(answer, down(PolicyFailure::Failed));
    let only_ops = AskPolicy::new(Fake::only(OPS));
    assert_eq!(
        call(any(&world), only_ops, world.request(WEB)).await,
        DENIED
    );
    drop(guard);
    let text = log.text();
    assert_eq!(
        log.levels("callers cannot be authorized"),
        ["WARN"],
        "{text}"
    );
    assert!(
        text.contains("policy_reason=\"connection refused\""),
        "{text}"
    );
    assert!(text.contains("policy_reason=\"not on the list\""), "{text}");
    let counted = ("policy-unavailable".to_owned(), "failed".to_owned(), true);
    assert_eq!(
        *counts.0.lock().unwrap(),
        [counted],
        "a request is counted twice"
    );
}

#[tokio::test]
async fn a_fallback_decides_if_the_policy_does_not() {
    let world = World::new();
    let ask = || AskPolicy::new(unavailable()).fallback(Allow::id(WEB).unwrap());
    assert_eq!(
        call(any(&world), ask(), world.request(WEB)).await,
        (200, None)
    );
    assert_eq!(call(any(&world), ask(), world.request(OPS)).await, DENIED);
    let open = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    assert_eq!(call(open, ask(), Request::default()).await, MISSING);
    // A denial by the policy is final.
    let denied = AskPolicy::new(Fake::only(OPS)).fallback(Allow::any_trust_domain());
    assert_eq!(call(any(&world), denied, world.request(WEB)).await, DENIED);
}

/// If the check for anonymous callers fails, a denied caller is still denied.
#[tokio::test]
async fn a_fallback_does_not_overrule_a_denial() {
    let world = World::new();
    let open = || ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    let fake = Fake::new(|caller, _| match caller {
        Some(_) => Ok(Decision::Deny.into()),
        None => Err(PolicyUnavailable::new("connection refused")),
    });
    let fallback = |policy: Allow| AskPolicy::new(fake.clone()).fallback(policy);
    let verified = fallback(Allow::any_trust_domain());
    assert_eq!(call(open(), verified, world.request(WEB)).await, DENIED);
    let anyone = fallback(Allow::anyone());
    assert_eq!(call(open(), anyone, world.request(WEB)).await, (200, None));
    let none = AskPolicy::new(fake.clone());
    let answer = call(open(), none, world.request(WEB)).await;
    assert_eq!(answer, down(PolicyFailure::Failed));

    // The same with a cached denial; the policy is not called again.
    let fake = fake.keyed();
    let ask = AskPolicy::new(fake.clone())
        .cache(10, Duration::from_secs(9))
        .max_in_flight(1)
        .fallback(Allow::any_trust_domain());
    let service = open().ask(ask).layer(service_fn(ok));
    let send = |id: &str| service.clone().oneshot(world.request(id));
    assert_eq!(send(WEB).await.unwrap().status(), 403);
    fake.open.send_replace(false);
    let asked = fake.asked();
    let running = tokio::spawn(send(OPS));
    while fake.asked() == asked {
        tokio::task::yield_now().await;
    }
    assert_eq!(send(WEB).await.unwrap().status(), 403);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_are_bounded() {
    let world = World::new();
    let fake = Fake::only(WEB).closed();
    let layer = any(&world).ask(AskPolicy::new(fake.clone()).max_in_flight(2));
    let service = layer.layer(service_fn(ok));
    let spawn = || tokio::spawn(service.clone().oneshot(world.request(WEB)));
    let waiting = [spawn(), spawn()];
    while fake.asked() < 2 {
        tokio::task::yield_now().await;
    }
    let turned_away = service.clone().oneshot(world.request(WEB)).await.unwrap();
    let rejection = turned_away.extensions().get::<Rejection>().unwrap();
    let reason = RejectionReason::PolicyUnavailable(PolicyFailure::TooManyInFlight);
    assert_eq!(rejection.reason(), reason);
    assert_eq!(fake.asked(), 2, "the policy is asked about it");
    fake.open.send_replace(true);
    for response in waiting {
        assert_eq!(response.await.unwrap().unwrap().status(), 200);
    }
    let free = service.oneshot(world.request(WEB)).await.unwrap();
    assert_eq!(free.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn dropped_request_cancels_its_decision() {
    let world = World::new();
    let fake = Fake::only(WEB).closed();
    let layer = any(&world).ask(AskPolicy::new(fake.clone()).max_in_flight(1));
    let service = layer.layer(service_fn(ok));
    for round in 1..=3 {
        let request = tokio::spawn(service.clone().oneshot(world.request(WEB)));
        while fake.asked() < round {
            tokio::task::yield_now().await;
        }
        assert_eq!(fake.alive.load(Ordering::SeqCst), 1);
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        assert_eq!(fake.alive.load(Ordering::SeqCst), 0);
    }
    fake.open.send_replace(true);
    let response = service.oneshot(world.request(WEB)).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn no_permit_is_held_while_the_policy_waits() {
    let world = World::new();
    let fake = Fake::only(WEB).closed();
    let limited = ConcurrencyLimit::new(service_fn(ok), 1);
    let layer = any(&world).ask(AskPolicy::new(fake.clone()));
    let mut service = layer.layer(limited.clone());
    let waiting = service.ready().await.unwrap().call(world.request(WEB));
    let waiting = tokio::spawn(waiting);
    tokio::task::yield_now().await;
    assert_eq!(fake.asked(), 1);
    let permit = tokio::time::timeout(Duration::from_millis(1), limited.clone().ready_oneshot());
    drop(permit.await.expect("the permit is not released").unwrap());
    fake.open.send_replace(true);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    let permit = tokio::time::timeout(Duration::from_millis(1), limited.ready_oneshot());
    assert!(permit.await.is_ok());
}

struct Late {
    world: World,
    clock: PausedClock,
    fake: Fake,
    response: tokio::task::JoinHandle<(u16, Option<RejectionReason>)>,
}

async fn late() -> Late {
    let clock = PausedClock::new(SystemClock::shared().now());
    let world = World::with(|builder| builder.clock(clock.shared()));
    let now = clock.now().secs();
    let changes = json!({ "iat": now, "exp": now + 60 });
    let token = world.issuer.token_with(WEB, changes);
    let fake = Fake::only(WEB).closed();
    let ask = AskPolicy::new(fake.clone()).timeout(Duration::from_secs(600));
    let request = with_authorization(&bearer(&token));
    let response = tokio::spawn(call(any(&world), ask, request));
    while fake.asked() == 0 {
        tokio::task::yield_now().await;
    }
    Late {
        world,
        clock,
        fake,
        response,
    }
}

#[tokio::test(start_paused = true)]
async fn token_is_checked_again_after_the_decision() {
    let Late { fake, response, .. } = late().await;
    fake.open.send_replace(true);
    assert_eq!(response.await.unwrap(), (200, None));

    let Late {
        clock,
        fake,
        response,
        ..
    } = late().await;
    clock.step_wall(120);
    fake.open.send_replace(true);
    let expired = RejectionReason::Token(ValidateReason::Expired);
    assert_eq!(response.await.unwrap(), (401, Some(expired)));

    let Late {
        world,
        fake,
        response,
        ..
    } = late().await;
    let other = crate::support::Signer::new("x", "k2");
    world.bundles.set([other.bundle()]);
    fake.open.send_replace(true);
    let unknown = RejectionReason::Token(ValidateReason::KeyUnknown);
    assert_eq!(response.await.unwrap(), (401, Some(unknown)));
}

#[tokio::test(start_paused = true)]
async fn audit_reports_and_forwards() {
    let world = World::new();
    let fakes = [Fake::only(OPS), unavailable(), Fake::only(WEB).closed()];
    let outcomes = ["not-allowed", "policy-unavailable", "policy-unavailable"];
    for (fake, outcome) in fakes.into_iter().zip(outcomes) {
        let counts = Arc::new(Counts::default());
        let policy = Allow::any_trust_domain();
        let layer = ValidateJwtSvidLayer::audit(world.validator.clone(), policy)
            .metrics(counts.clone())
            .ask(AskPolicy::new(fake));
        let service = layer.layer(service_fn(ok));
        let response = service.oneshot(world.request(WEB)).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &**response.body()),
            (200, "audit")
        );
        let counted = counts.0.lock().unwrap().clone();
        assert_eq!(counted.len(), 1);
        assert_eq!((&*counted[0].0, counted[0].2), (outcome, false));
    }
}

fn cached(fake: &Fake, world: &World, ttl: u64) -> tower_spiffe::server::AsyncValidateJwtSvidLayer {
    let ask = AskPolicy::new(fake.clone()).cache(100, Duration::from_secs(ttl));
    any(world).ask(ask)
}

#[tokio::test(start_paused = true)]
async fn decisions_are_cached_by_key_and_caller() {
    let clock = PausedClock::new(SystemClock::shared().now());
    let world = World::with(|builder| builder.clock(clock.shared()));
    let fake = Fake::only(WEB).keyed();
    let layer = cached(&fake, &world, 10);
    let send = async |id: &str, path: &str| {
        let mut request = world.request(id);
        *request.uri_mut() = path.parse().unwrap();
        let service = layer.layer(service_fn(ok));
        let response = service.oneshot(request).await.unwrap();
        response.status().as_u16()
    };
    for _ in 0..3 {
        assert_eq!(send(WEB, "/a").await, 200);
        assert_eq!(send(OPS, "/a").await, 403);
        assert_eq!(send(WEB, "/b").await, 200);
    }
    assert_eq!(fake.asked(), 3);
    tokio::time::advance(Duration::from_secs(9)).await;
    assert_eq!((send(WEB, "/a").await, fake.asked()), (200, 3));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!((send(WEB, "/a").await, fake.asked()), (200, 4));
}

#[tokio::test(start_paused = true)]
async fn no_decision_outlives_its_token() {
    // A whole second, as in tokens: the limit is exact.
    let now = SystemClock::shared().now().secs();
    let clock = PausedClock::new(UnixTime::from_secs(now));
    let world = World::with(|builder| builder.clock(clock.shared()));
    let fake = Fake::only(WEB).keyed();
    let layer = cached(&fake, &world, 3600);
    let send = async |exp: i64| {
        let changes = json!({ "iat": now, "exp": exp });
        let token = world.issuer.token_with(WEB, changes);
        let request = with_authorization(&bearer(&token));
        let service = layer.layer(service_fn(ok));
        service.oneshot(request).await.unwrap().status().as_u16()
    };
    assert_eq!((send(now + 20).await, fake.asked()), (200, 1));
    clock.step_wall(19);
    assert_eq!((send(now + 900).await, fake.asked()), (200, 1));
    clock.step_wall(1);
    assert_eq!((send(now + 900).await, fake.asked()), (200, 2));
}

#[tokio::test]
async fn only_keyed_decisions_are_cached() {
    let world = World::new();
    for (fake, asked) in [
        (Fake::only(WEB), 3),
        (unavailable().keyed(), 3),
        (Fake::only(WEB).keyed(), 1),
    ] {
        let layer = cached(&fake, &world, 10);
        for _ in 0..3 {
            let service = layer.layer(service_fn(ok));
            service.oneshot(world.request(WEB)).await.unwrap();
        }
        assert_eq!(fake.asked(), asked);
    }
    let fake = Fake::only(WEB).keyed();
    for cache in [(0, 10), (10, 0)] {
        let ask = AskPolicy::new(fake.clone()).cache(cache.0, Duration::from_secs(cache.1));
        let layer = any(&world).ask(ask);
        for _ in 0..2 {
            let service = layer.layer(service_fn(ok));
            service.oneshot(world.request(WEB)).await.unwrap();
        }
    }
    assert_eq!(fake.asked(), 4);
}

/// Callers choose the path, and so the size of an entry.
#[tokio::test]
async fn decisions_with_long_keys_are_not_cached() {
    let world = World::new();
    let fake = Fake::only(WEB).keyed();
    let layer = cached(&fake, &world, 10);
    for (len, asked) in [(4096, 1), (4097, 2)] {
        let before = fake.asked();
        for _ in 0..2 {
            let mut request = world.request(WEB);
            *request.uri_mut() = format!("/{}", "a".repeat(len - 1)).parse().unwrap();
            let service = layer.layer(service_fn(ok));
            assert_eq!(service.oneshot(request).await.unwrap().status(), 200);
        }
        assert_eq!(fake.asked() - before, asked, "{len}");
    }
}

#[test]
fn reasons_of_cached_decisions_are_cut() {
    let decision = AsyncDecision::from(Decision::Deny);
    let cut = decision.clone().because("ü".repeat(200));
    assert_eq!(cut, decision.clone().because("ü".repeat(128)));
    assert_ne!(cut, decision.because("ü".repeat(127)));
}

#[tokio::test]
async fn the_decision_cache_is_bounded() {
    let world = World::new();
    let fake = Fake::only(WEB).keyed();
    let ask = AskPolicy::new(fake.clone()).cache(10, Duration::from_secs(60));
    let layer = any(&world).ask(ask);
    let send = async |n: usize| {
        let mut request = world.request(WEB);
        *request.uri_mut() = format!("/{n}").parse().unwrap();
        layer.layer(service_fn(ok)).oneshot(request).await.unwrap();
    };
    for n in 0..1000 {
        send(n).await;
    }
    let before = fake.asked();
    for n in 0..1000 {
        send(n).await;
    }
    assert!(fake.asked() - before >= 900, "{}", fake.asked() - before);
}

/// A policy that decides at once and allocates nothing itself.
struct AtOnce;

impl AsyncPolicy for AtOnce {
    fn decide(&self, _: Option<&VerifiedSvid>, _: &Parts) -> DecisionFuture {
        Box::pin(std::future::ready(Ok(Decision::Allow.into())))
    }
}

#[test]
fn immediate_decision_costs_two_allocations() {
    let world = World::new();
    let inner = service_fn(|request: Request<String>| {
        drop(request);
        std::future::ready(Ok::<_, Infallible>(Response::new(String::new())))
    });
    fn count<S>(mut service: S, world: &World) -> u64
    where
        S: Service<Request<String>, Response = Response<String>, Error = Infallible>,
    {
        let mut call = |request| {
            let future = pin!(service.call(request));
            match future.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(response)) => assert_eq!(response.status(), 200),
                _ => panic!("the call is pending"),
            }
        };
        let value = world.bearer(WEB);
        call(with_authorization(&value));
        call(with_authorization(&value));
        let request = with_authorization(&value);
        allocation_counter::measure(|| call(request)).count_total
    }
    let plain = count(any(&world).layer(inner), &world);
    let asking = count(any(&world).ask(AskPolicy::new(AtOnce)).layer(inner), &world);
    assert!(asking <= plain + 2, "{asking} instead of {plain}");
}
