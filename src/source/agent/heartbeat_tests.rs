//! The heartbeat of the task, on both clocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::intake;
use super::limits::{ResourceLimits, WithdrawalPolicy};
use super::shared::Shared;
use crate::clock::{Clock, UnixTime};
use crate::source::trust_clock::TrustClock;
use crate::testing::Issuer;
use crate::workload_api::WorkloadApiClient;

/// Both clocks, in seconds.
#[derive(Default)]
struct Hands {
    wall: AtomicI64,
    monotonic: AtomicU64,
}

impl Clock for Hands {
    fn now(&self) -> UnixTime {
        UnixTime::from_secs(1_790_000_000 + self.wall.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.monotonic.load(Ordering::SeqCst))
    }
}

/// A source with bundles, whose task is this test.
fn source() -> (Arc<Hands>, Shared) {
    let clock = Arc::new(Hands::default());
    let client = WorkloadApiClient::with_connector(|| async {
        Err::<tokio::io::DuplexStream, _>(std::io::ErrorKind::NotFound.into())
    });
    let shared = Shared::new(
        client.build().unwrap(),
        Arc::new(TrustClock::new(clock.clone())),
        Arc::new(()),
        WithdrawalPolicy::Immediate,
        None,
    );
    let jwks = Issuer::new("x").unwrap().jwks();
    let message = [("spiffe://x".to_owned(), jwks.into())].into();
    let read = intake::read(message, &shared.known(), &ResourceLimits::default());
    shared.take_in(read.unwrap());
    (clock, shared)
}

/// Healthy, connected, overdue.
fn seen(shared: &Shared) -> (bool, bool, bool) {
    let state = shared.state();
    (state.is_healthy(), state.connected, state.overdue)
}

const WELL: (bool, bool, bool) = (true, true, false);
const OVERDUE: (bool, bool, bool) = (false, false, true);

#[tokio::test]
async fn e20_silent_task_is_overdue_after_5_s() {
    for on_the_wall in [false, true] {
        let (clock, shared) = source();
        let pass = |seconds: u64| match on_the_wall {
            true => clock.wall.fetch_add(seconds as i64, Ordering::SeqCst) as u64,
            false => clock.monotonic.fetch_add(seconds, Ordering::SeqCst),
        };
        for _ in 0..20 {
            pass(5);
            assert_eq!(seen(&shared), WELL);
            shared.beat();
        }
        pass(6);
        assert_eq!(seen(&shared), OVERDUE);
        // Tokens are still verified: only `max_staleness` ends that.
        assert!(shared.state().is_ready());
        shared.beat();
        assert_eq!(seen(&shared), WELL);
    }
}

#[tokio::test]
async fn e20_waiting_message_is_overdue_after_5_s() {
    let (clock, shared) = source();
    let reading = shared.reading();
    for second in 1..=6 {
        clock.monotonic.store(second, Ordering::SeqCst);
        shared.beat();
        let expected = if second <= 5 { WELL } else { OVERDUE };
        assert_eq!(seen(&shared), expected, "{second} s");
    }
    drop(reading);
    assert_eq!(seen(&shared), WELL);
}
