//! How a source ends, and who can use it until then.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use tower_spiffe::bundle::{BundleSource, BundlesUnavailable};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::metrics::{MetricsRecorder, SvidCacheEvent};
use tower_spiffe::source::JwtSourceErrorReason;
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault};
use tower_spiffe::token::SvidRequest;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::{JwtSource, SvidCache, Validator};

use crate::agent;
use crate::support::*;

const CLOSED: JwtSourceErrorReason = JwtSourceErrorReason::Closed;

#[tokio::test(start_paused = true)]
async fn dependents_keep_the_source_open_until_dropped() {
    let world = World::new().await;
    let source = world.source().await;
    let validator = world.validator(&source);
    let cache = SvidCache::from(&source);
    drop(source);
    tokio::time::sleep(secs(1)).await;
    assert!(validator.validate(&world.token()).is_ok());
    drop(validator);
    let request = SvidRequest::new([AUD]).unwrap();
    tokio::time::sleep(secs(1)).await;
    assert!(cache.header(&request).await.is_ok());
    let agent = &world.agent;
    assert_eq!(agent.counts().open_connections, 1);
    drop(cache);
    eventually("the end", || agent.counts().open_connections == 0).await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_clone_ends_connection_attempts() {
    let world = World::new().await;
    let source = world.source().await;
    world.agent.stop().await;
    tokio::time::sleep(secs(60)).await;
    drop(source);
    settle().await;
    world.agent.start_again().await.unwrap();
    assert_eq!(world.openings(secs(60)).await, [Duration::ZERO; 0]);
    assert_eq!(world.agent.counts().open_connections, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_shutdowns_all_return_after_the_end() {
    let agent = agent::start(TD).await;
    for _ in 0..20 {
        let source = agent.source().await.unwrap();
        let shutdowns = (0..50).map(|n| {
            let source = source.clone();
            tokio::spawn(async move {
                match n % 3 {
                    0 => source.shutdown().await,
                    1 => source.shutdown_with_timeout(secs(10)).await.unwrap(),
                    _ => source.shutdown_configured().await.unwrap(),
                }
                assert!(!source.state().connected);
            })
        });
        let ended = soon("every shutdown", join_all(shutdowns)).await;
        assert!(ended.iter().all(Result::is_ok), "{ended:?}");
        // Another shutdown returns too.
        soon("one more", source.shutdown()).await;
    }
    eventually("the sockets' end", || agent.counts().open_connections == 0).await;
}

#[tokio::test(start_paused = true)]
async fn after_shutdown_every_method_returns_closed() {
    let world = World::new().await;
    let source = world.source().await;
    let clone = source.clone();
    let validator = world.validator(&source);
    let token = world.token();
    assert!(validator.validate(&token).is_ok());
    source.get_jwt_svid([AUD]).await.unwrap();
    let mut updates = source.updated();
    source.shutdown().await;

    let reason_of = |error: tower_spiffe::source::JwtSourceError| {
        assert!(!error.is_retryable());
        assert!(error.to_string().contains("build a new one"), "{error}");
        error.reason()
    };
    assert_eq!(reason_of(clone.bundle_set().unwrap_err()), CLOSED);
    let trust_domain = td(TD);
    let asked = clone.bundle_for_trust_domain(&trust_domain);
    assert_eq!(reason_of(asked.unwrap_err()), CLOSED);
    assert!(clone.try_bundle_for_trust_domain(&trust_domain).is_none());
    // A cached token is not returned either.
    assert_eq!(
        reason_of(clone.get_jwt_svid([AUD]).await.unwrap_err()),
        CLOSED
    );
    assert_eq!(
        reason_of(clone.fetch_jwt_svid([AUD]).await.unwrap_err()),
        CLOSED
    );
    assert_eq!(
        reason_of(clone.authorization(AUD).await.unwrap_err()),
        CLOSED
    );
    assert_eq!(reason_of(clone.ready().await.unwrap_err()), CLOSED);
    assert_eq!(reason_of(updates.changed().await.unwrap_err()), CLOSED);
    assert_eq!(
        reason_of(updates.wait_for(|_| true).await.unwrap_err()),
        CLOSED
    );
    assert_eq!(updates.next().await, None);
    let cannot = Some(ValidateReason::BundlesUnavailable(
        BundlesUnavailable::Closed,
    ));
    assert_eq!(reason(validator.validate(&token)), cannot);
    assert_eq!(clone.revision(), Err(BundlesUnavailable::Closed));
    let state = clone.state();
    assert!(!clone.is_healthy() && !state.connected && !state.is_ready());
    assert_eq!(state.trust_domains, []);
    assert_eq!(state.bundles_unavailable, Some(BundlesUnavailable::Closed));
    // Other errors of the arguments are still reported.
    let wrong = clone.get_jwt_svid([""]).await.unwrap_err().reason();
    assert!(matches!(wrong, JwtSourceErrorReason::InvalidRequest(_)));
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_all_waits() {
    let world = World::new().await;
    let source = world.source().await;
    world.agent.fail(Fault::Hang);
    let waits: Vec<_> = (0..4)
        .map(|n| {
            let source = source.clone();
            tokio::spawn(async move {
                match n {
                    0 => drop(source.fetch_jwt_svid([AUD]).await.unwrap_err()),
                    1 => drop(source.get_jwt_svid([AUD]).await.unwrap_err()),
                    2 => drop(source.updated().changed().await.unwrap_err()),
                    _ => drop(source.updated().wait_for(|it| it > 9).await.unwrap_err()),
                }
            })
        })
        .collect();
    settle().await;
    assert!(waits.iter().all(|wait| !wait.is_finished()));
    let began = tokio::time::Instant::now();
    source.shutdown().await;
    assert!(began.elapsed() <= millis(1));
    for wait in waits {
        wait.await.unwrap();
    }
    assert!(began.elapsed() <= millis(1), "{:?}", began.elapsed());
    // A dead connection is closed too.
    let source = {
        world.agent.recover();
        world.source().await
    };
    world.agent.half_open();
    source.shutdown().await;
    assert!(began.elapsed() <= millis(5), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn unpolled_calls_do_not_block_shutdown() {
    let world = World::new().await;
    let source = world.source().await;
    world.agent.fail(Fault::Hang);
    let mut call = Box::pin(source.fetch_jwt_svid([AUD]));
    assert!(futures_util::poll!(call.as_mut()).is_pending());
    settle().await;
    let began = tokio::time::Instant::now();
    source.shutdown().await;
    assert!(began.elapsed() <= millis(1));
    assert_eq!(call.await.unwrap_err().reason(), CLOSED);
}

/// A source on a runtime that is not driven, so its task cannot end.
fn stuck(shutdown: Option<Duration>) -> (tokio::runtime::Runtime, FakeAgent, JwtSource) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (agent, source) = runtime.block_on(async {
        let agent = FakeAgent::start_in_memory(TD).await.unwrap();
        let source = JwtSource::builder()
            .connector(agent.connector())
            .shutdown_timeout(shutdown)
            .build()
            .await
            .unwrap();
        (agent, source)
    });
    (runtime, agent, source)
}

#[test]
fn timed_shutdown_aborts_the_task() {
    let paused = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    for configured in [false, true] {
        let (runtime, agent, source) = stuck(Some(secs(5)));
        let error = paused.block_on(async {
            let began = tokio::time::Instant::now();
            let ended = match configured {
                true => source.shutdown_configured().await,
                false => source.shutdown_with_timeout(secs(5)).await,
            };
            assert_eq!(began.elapsed().as_secs(), 5);
            ended.unwrap_err()
        });
        assert_eq!(error.reason(), JwtSourceErrorReason::ShutdownTimeout);
        assert!(error.to_string().contains("within 5s"), "{error}");
        // The source is closed from the start of the shutdown.
        assert_eq!(source.bundle_set().unwrap_err().reason(), CLOSED);
        // When the runtime runs again, the task ends, and a shutdown returns.
        runtime.block_on(async {
            soon("the end", source.shutdown_configured()).await.unwrap();
            eventually("the connection's", || agent.counts().open_connections == 0).await;
        });
    }
    // Without a timeout, shutdown waits until the task ends.
    let (runtime, _agent, source) = stuck(None);
    paused.block_on(async {
        let ended = tokio::time::timeout(secs(86_400), source.shutdown_configured());
        assert!(ended.await.is_err());
    });
    runtime
        .block_on(soon("the end", source.shutdown_configured()))
        .unwrap();
}

/// Panics at every call, and counts them.
#[derive(Default)]
struct Panics(AtomicU64);

impl Panics {
    fn now(&self) -> ! {
        self.0.fetch_add(1, Ordering::Relaxed);
        // `resume_unwind` prints no panic message.
        std::panic::resume_unwind(Box::new("the recorder's own fault"));
    }
}

impl MetricsRecorder for Panics {
    fn record_update(&self) {
        self.now()
    }
    fn record_reconnect(&self) {
        self.now()
    }
    fn record_error(&self, _: &'static str) {
        self.now()
    }
    fn record_withdrawal(&self, _: bool) {
        self.now()
    }
    fn record_bundle_age(&self, _: Duration) {
        self.now()
    }
    fn record_contact(&self, _: UnixTime) {
        self.now()
    }
    fn record_svid_fetch(&self, _: &'static str, _: Duration) {
        self.now()
    }
    fn record_svid_cache(&self, _: SvidCacheEvent) {
        self.now()
    }
}

#[tokio::test(start_paused = true)]
async fn panicking_recorder_stops_nothing() {
    let world = World::new().await;
    let (source, panics) = world.recorded_source::<Panics>().await;
    source.get_jwt_svid([AUD]).await.unwrap();
    source.fetch_jwt_svid([AUD]).await.unwrap();
    let mut updates = source.updated();
    let new = world.agent.rotate_now();
    soon("the update", updates.changed()).await.unwrap();
    world.agent.withdraw();
    soon("the withdrawal", updates.changed()).await.unwrap();
    world.agent.restore();
    soon("the restoration", updates.changed()).await.unwrap();
    tokio::time::sleep(secs(120)).await;
    world.agent.cut_connections().await;
    world.agent.federate_raw(OTHER, "not a JWK Set").unwrap();
    tokio::time::sleep(secs(10)).await;
    assert!(key_ids(&source, TD).contains(&new));
    assert!(source.is_ready() && source.state().connected);
    assert!(panics.0.load(Ordering::Relaxed) > 10);
    source.shutdown().await;
}

/// A recorder that reads the state of its source.
#[derive(Default)]
struct Looks(std::sync::Mutex<Option<JwtSource>>, AtomicU64);

impl Looks {
    fn look(&self) {
        let source = self.0.lock().unwrap().clone();
        if let Some(source) = source {
            let _ = (source.state().revision, source.is_healthy());
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl MetricsRecorder for Looks {
    fn record_update(&self) {
        self.look();
    }
    fn record_error(&self, _: &'static str) {
        self.look();
    }
    fn record_withdrawal(&self, _: bool) {
        self.look();
    }
    fn record_bundle_age(&self, _: Duration) {
        self.look();
    }
    fn record_reconnect(&self) {
        self.look();
    }
}

#[tokio::test(start_paused = true)]
async fn recorder_may_read_the_source() {
    let world = World::new().await;
    let (source, looks) = world.recorded_source::<Looks>().await;
    *looks.0.lock().unwrap() = Some(source.clone());
    assert!(source.is_healthy());
    let mut updates = source.updated();
    world.agent.rotate_now();
    soon("the update", updates.changed()).await.unwrap();
    world.agent.withdraw();
    soon("the withdrawal", updates.changed()).await.unwrap();
    tokio::time::sleep(secs(120)).await;
    assert!(looks.1.load(Ordering::Relaxed) > 5);
    *looks.0.lock().unwrap() = None;
}

fn multi_threaded() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Runs a future on a runtime, with a time limit.
fn on<T>(runtime: &tokio::runtime::Runtime, what: &str, wait: impl Future<Output = T>) -> T {
    runtime.block_on(soon(what, wait))
}

#[test]
fn ended_runtime_closes_its_source() {
    let agents = multi_threaded();
    let agent = on(&agents, "an agent", agent::start(TD));
    let its_own = multi_threaded();
    let source = on(&its_own, "a source", agent.source()).unwrap();
    let validator = Validator::builder(source.clone())
        .audience(AUD)
        .build()
        .unwrap();
    let token = agent.token(WEB, AUD);
    assert!(validator.validate(&token).is_ok());

    let other = multi_threaded();
    let waits = other.spawn({
        let source = source.clone();
        async move { source.updated().changed().await }
    });
    its_own.shutdown_timeout(secs(10));
    let error = on(&other, "the end", waits).unwrap().unwrap_err();
    assert_eq!(error.reason(), CLOSED);
    // No validation with keys that are no longer updated.
    let cannot = Some(ValidateReason::BundlesUnavailable(
        BundlesUnavailable::Closed,
    ));
    assert_eq!(reason(validator.validate(&token)), cannot);
    on(&other, "a shutdown", source.shutdown());
    let error = on(&other, "an error", source.get_jwt_svid([AUD])).unwrap_err();
    assert_eq!(error.reason(), CLOSED);
    let error = on(&other, "an error", source.ready()).unwrap_err();
    assert_eq!(error.reason(), CLOSED);
    drop(source);
}

#[test]
fn source_is_usable_from_two_runtimes() {
    let home = multi_threaded();
    let agent = on(&home, "an agent", agent::start(TD));
    let source = on(&home, "a source", agent.source()).unwrap();
    let guest = multi_threaded();
    on(&guest, "what is there", source.ready()).unwrap();
    let fetched = on(&guest, "a token", source.fetch_jwt_svid([AUD])).unwrap();
    assert_eq!(fetched.audiences().len(), 1);
    on(&guest, "a cached one", source.get_jwt_svid([AUD])).unwrap();
    let mut updates = source.updated();
    let rotated = on(&home, "a rotation", agent.rotate());
    on(&guest, "the rotation", updates.changed()).unwrap();
    assert!(key_ids(&source, TD).contains(&rotated));

    // The guest runtime ends during a call that others wait for too.
    agent.fail_call(AgentCall::FetchJwtSvid, Fault::Slow(millis(300)));
    let begun = agent.counts().fetch_jwt_svid;
    let leader = source.clone();
    guest.spawn(async move { leader.get_jwt_svid(["another"]).await });
    on(&home, "the call", async {
        eventually("the call", || agent.counts().fetch_jwt_svid > begun).await;
    });
    let follower = home.spawn({
        let source = source.clone();
        async move { source.get_jwt_svid(["another"]).await }
    });
    guest.shutdown_timeout(secs(10));
    on(&home, "the token", follower).unwrap().unwrap();
    // The connection runs on the runtime that built the source.
    on(&home, "a token", source.fetch_jwt_svid([AUD])).unwrap();
    assert_eq!(agent.counts().connections, 1);
    on(&home, "the end", source.shutdown());
}
