//! What a source records about its bundles and its stream.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tower_spiffe::metrics::MetricsRecorder;
use tower_spiffe::source::WithdrawalPolicy;
use tower_spiffe::testing::Fault;
use tracing::Level;

use crate::log::Log;
use crate::support::*;

#[derive(Default)]
struct Recorded {
    ready: Mutex<Vec<bool>>,
    updates: AtomicU64,
    reconnects: AtomicU64,
}

impl Recorded {
    fn ready(&self) -> Vec<bool> {
        self.ready.lock().unwrap().clone()
    }

    fn updates(&self) -> u64 {
        self.updates.load(Ordering::Relaxed)
    }

    fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }
}

impl MetricsRecorder for Recorded {
    fn record_ready(&self, ready: bool) {
        self.ready.lock().unwrap().push(ready);
    }

    fn record_update(&self) {
        self.updates.fetch_add(1, Ordering::Relaxed);
    }

    fn record_reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn each_change_is_one_recorded_update() {
    let world = World::new().await;
    let (source, recorded) = world.recorded_source::<Recorded>().await;
    assert_eq!(recorded.updates(), 1);
    let domains = || source.state().trust_domains.len();
    world.agent.federate(OTHER).unwrap();
    world.time_until(|| domains() == 2).await;
    assert_eq!(recorded.updates(), 2);
    world.agent.unfederate(OTHER);
    world.time_until(|| domains() == 1).await;
    assert_eq!(recorded.updates(), 3);
    // The same bundles on another connection are no change.
    world.agent.cut_connections().await;
    world.time_until(|| source.state().reconnects == 1).await;
    assert_eq!((recorded.updates(), recorded.reconnects()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn wa29_readiness_ends_with_an_immediate_withdrawal() {
    let world = World::new().await;
    let (source, recorded) = world.recorded_source::<Recorded>().await;
    world.agent.cut_connections().await;
    world.time_until(|| source.state().reconnects == 1).await;
    let before = recorded.ready();
    let first = before.iter().position(|ready| *ready).unwrap();
    assert!(!before[first..].contains(&false), "{before:?}");
    world.agent.withdraw();
    world.time_until(|| !source.state().is_ready()).await;
    assert_eq!(recorded.ready()[before.len()..].first(), Some(&false));
    world.agent.restore();
    world.time_until(|| source.is_healthy()).await;
    assert_eq!(recorded.ready().last(), Some(&true));
}

#[tokio::test(start_paused = true)]
async fn wa29_reconnects_during_a_withdrawal_are_recorded() {
    let world = World::new().await;
    let (source, recorded) = world.recorded_source::<Recorded>().await;
    world.agent.withdraw();
    world.time_until(|| !source.state().is_ready()).await;
    assert_eq!((source.state().reconnects, recorded.reconnects()), (0, 0));
    // The only bundle cannot be read.
    world.agent.fail(Fault::Garbage);
    world.agent.restore();
    world.time_until(|| source.state().connected).await;
    assert!(source.state().withdrawn.is_some());
    assert_eq!((source.state().reconnects, recorded.reconnects()), (1, 1));
    world.agent.recover();
    world.time_until(|| source.is_healthy()).await;
    assert_eq!(source.state().reconnects, recorded.reconnects());
}

#[tokio::test(start_paused = true)]
async fn wa29_effect_of_a_withdrawal_is_logged_once() {
    let log = Log::default();
    let _guard = log.begin(Level::WARN);
    let world = World::new().await;
    let after = WithdrawalPolicy::After(secs(5));
    let source = world.builder().withdrawal(after).build().await.unwrap();
    let logged = || log.lines_with("the withdrawal of the bundles takes effect");
    world.agent.withdraw();
    world
        .time_until(|| source.state().withdrawn.is_some())
        .await;
    assert!(source.state().is_ready());
    assert_eq!(logged(), 0);
    world.time_until(|| !source.state().is_ready()).await;
    tokio::time::sleep(secs(10)).await;
    assert_eq!(logged(), 1);
}
