//! What counts as contact and as a reconnection, and how changes are published.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tower_spiffe::metrics::MetricsRecorder;
use tower_spiffe::source::SourceState;
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault};
use tower_spiffe::token::GrpcCode;
use tracing::Level;

use crate::log::Log;
use crate::support::*;

#[tokio::test(start_paused = true)]
async fn e24_error_status_is_contact() {
    for code in [GrpcCode::PermissionDenied, GrpcCode::Unavailable] {
        let world = World::new().await;
        world.agent.fail(Fault::Refuse(code));
        let source = world.builder().build_lazy().unwrap();
        tokio::time::sleep(secs(120)).await;
        let contact = source.state().last_contact;
        assert!(contact.is_some_and(|age| age <= secs(10)), "{contact:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn e24_failed_connection_is_not_contact() {
    let world = World::new().await;
    world.agent.stop().await;
    let source = world.builder().build_lazy().unwrap();
    tokio::time::sleep(secs(120)).await;
    assert_eq!(source.state().last_contact, None);
}

#[tokio::test(start_paused = true)]
async fn e24_token_is_contact() {
    let world = World::new().await;
    world
        .agent
        .fail_call(AgentCall::FetchJwtBundles, Fault::Hang);
    let source = world.builder().build_lazy().unwrap();
    tokio::time::sleep(secs(5)).await;
    assert_eq!(source.state().last_contact, None);
    source.fetch_jwt_svid([AUD]).await.unwrap();
    assert!(source.state().last_contact.unwrap() <= millis(5));
}

#[derive(Default)]
struct Counts {
    reconnects: AtomicU64,
    attempts: AtomicU64,
}

impl MetricsRecorder for Counts {
    fn record_reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }
    fn record_reconnect_attempt(&self) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn e24_reconnects_counts_only_successes() {
    let world = World::new().await;
    let counts = Arc::new(Counts::default());
    world.agent.stop().await;
    let builder = world.builder().metrics(counts.clone());
    let source = builder.build_lazy().unwrap();
    let seen = |state: &SourceState| {
        let seen = (state.reconnects, state.reconnect_attempts);
        let recorded = (&counts.reconnects, &counts.attempts);
        let recorded = (
            recorded.0.load(Ordering::Relaxed),
            recorded.1.load(Ordering::Relaxed),
        );
        assert_eq!(seen, recorded);
        seen
    };
    tokio::time::sleep(secs(60)).await;
    world.agent.start_again().await.unwrap();
    world.time_until(|| source.state().connected).await;
    // The first connection is not a reconnection, even after many attempts.
    let (reconnects, first_attempts) = seen(&source.state());
    assert_eq!(reconnects, 0);
    assert!(first_attempts >= 5);
    for n in 1..=3 {
        world.agent.stop().await;
        tokio::time::sleep(secs(60)).await;
        assert_eq!(seen(&source.state()).0, n - 1);
        world.agent.start_again().await.unwrap();
        world.time_until(|| source.state().connected).await;
        assert_eq!(seen(&source.state()).0, n);
    }
    assert!(seen(&source.state()).1 > first_attempts + 10);
}

#[tokio::test(start_paused = true)]
async fn e24_no_reconnecting_before_the_first_connection() {
    let log = Log::default();
    let _guard = log.begin(Level::DEBUG);
    let world = World::new().await;
    world.agent.stop().await;
    let source = world.builder().build_lazy().unwrap();
    tokio::time::sleep(secs(60)).await;
    assert_eq!(log.lines_with("reconnecting"), 0);
    assert!(log.lines_with("retrying the first connection") > 3);
    world.agent.start_again().await.unwrap();
    soon("the bundles", source.ready()).await.unwrap();
    log.clear();
    world.agent.cut_connections().await;
    tokio::time::sleep(secs(5)).await;
    assert!(log.lines_with("reconnecting") > 0);
    assert_eq!(log.lines_with("retrying the first connection"), 0);
}

/// Checks that all parts of the state are from the same side of the change.
fn is_whole(state: &SourceState) {
    let keys: usize = state.trust_domains.iter().map(|td| td.key_ids.len()).sum();
    match &state.withdrawn {
        Some(withdrawal) => {
            assert!(withdrawal.in_force, "{state:?}");
            assert!(!state.is_ready() && !state.connected, "{state:?}");
            assert_eq!(keys, 0, "{state:?}");
            let error = state.last_error.as_ref().expect("the denial");
            assert_eq!(error.kind, "permission-denied", "{state:?}");
        }
        None => {
            assert!(state.is_ready() && keys > 0, "{state:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e24_withdrawal_is_published_at_once() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let source = agent.source().await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let watcher = std::thread::spawn({
        let (source, done) = (source.clone(), done.clone());
        move || {
            while !done.load(Ordering::Relaxed) {
                is_whole(&source.state());
            }
        }
    });
    let mut updates = source.updated();
    for _ in 0..20 {
        agent.withdraw();
        soon("the withdrawal", updates.changed()).await.unwrap();
        is_whole(&source.state());
        agent.restore();
        soon("the restoration", updates.changed()).await.unwrap();
        is_whole(&source.state());
    }
    done.store(true, Ordering::Relaxed);
    watcher.join().unwrap();
}
