//! A clock for deadlines that guard trust: a suspended machine does not stop it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::clock::{Clock, UnixTime};

/// A clock whose monotonic time follows the clock of the machine that has moved more: the monotonic
/// clock or the wall clock.
///
/// The monotonic clock may stop while a machine is suspended; only the wall clock shows that time has
/// passed. A backward step of the wall clock counts as zero.
pub(crate) struct TrustClock {
    clock: Arc<dyn Clock>,
    base: ArcSwap<Base>,
    folding: Mutex<()>,
    jumps: watch::Sender<u64>,
}

/// What the clocks showed at one moment, and the time that was counted until then.
struct Base {
    wall: UnixTime,
    monotonic: Duration,
    time: Duration,
}

/// A moment that never comes, in [`nanos`].
#[cfg(any(feature = "workload-api", feature = "https-bundles"))]
pub(crate) const NEVER: u64 = u64::MAX;

/// A moment of the clock for an atomic.
#[cfg(any(feature = "workload-api", feature = "https-bundles"))]
pub(crate) fn nanos(moment: Duration) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(NEVER)
}

/// The clocks may differ by this much before the difference is counted.
const TOLERANCE: Duration = Duration::from_millis(100);

/// A forward step of the wall clock by this much or more is a jump.
const JUMP: Duration = Duration::from_secs(1);

impl TrustClock {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let (wall, monotonic) = (clock.now(), clock.monotonic());
        let base = Base {
            wall,
            monotonic,
            time: monotonic,
        };
        Self {
            clock,
            base: ArcSwap::from_pointee(base),
            folding: Mutex::new(()),
            jumps: watch::Sender::new(0),
        }
    }

    /// Counts the forward jumps of the wall clock. A jump is noticed when the clock is read.
    pub(crate) fn jumps(&self) -> watch::Receiver<u64> {
        self.jumps.subscribe()
    }

    /// Counts the difference between the clocks, and returns the time.
    #[cold]
    fn fold(&self) -> Duration {
        let _one = self.folding.lock().unwrap_or_else(PoisonError::into_inner);
        // Read again: another thread may have counted it, and `both` may be a millisecond old.
        let (wall, monotonic) = (self.clock.now(), self.clock.monotonic());
        let base = self.base.load();
        if !base.differs(wall, monotonic) {
            return base.time_at(monotonic);
        }
        let by_wall = wall.saturating_since(base.wall);
        let by_monotonic = monotonic.saturating_sub(base.monotonic);
        let time = base.time.saturating_add(by_wall.max(by_monotonic));
        self.base.store(Arc::new(Base {
            wall,
            monotonic,
            time,
        }));
        if by_wall >= by_monotonic.saturating_add(JUMP) {
            self.jumps.send_modify(|jumps| *jumps += 1);
        }
        time
    }
}

impl Base {
    fn time_at(&self, monotonic: Duration) -> Duration {
        let since = monotonic.saturating_sub(self.monotonic);
        self.time.saturating_add(since)
    }

    fn differs(&self, wall: UnixTime, monotonic: Duration) -> bool {
        let expected = self
            .wall
            .saturating_add(monotonic.saturating_sub(self.monotonic));
        wall.saturating_since(expected) >= TOLERANCE || expected.saturating_since(wall) >= TOLERANCE
    }
}

impl Clock for TrustClock {
    fn now(&self) -> UnixTime {
        self.clock.now()
    }

    fn monotonic(&self) -> Duration {
        self.both().1
    }

    fn both(&self) -> (UnixTime, Duration) {
        let (wall, monotonic) = self.clock.both();
        let base = self.base.load();
        if base.differs(wall, monotonic) {
            (wall, self.fold())
        } else {
            (wall, base.time_at(monotonic))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

    use super::*;

    #[derive(Default)]
    struct Hands {
        wall: AtomicI64,
        monotonic: AtomicU64,
    }

    impl Clock for Hands {
        fn now(&self) -> UnixTime {
            UnixTime::from_secs(1_000_000 + self.wall.load(Ordering::Relaxed))
        }

        fn monotonic(&self) -> Duration {
            Duration::from_secs(self.monotonic.load(Ordering::Relaxed))
        }
    }

    /// Moves the wall and the monotonic clock by so many seconds; returns what is counted.
    fn moved(steps: &[(i64, u64)]) -> (u64, u64) {
        let hands = Arc::new(Hands::default());
        let clock = TrustClock::new(hands.clone());
        for (wall, monotonic) in steps {
            hands.wall.fetch_add(*wall, Ordering::Relaxed);
            hands.monotonic.fetch_add(*monotonic, Ordering::Relaxed);
            clock.monotonic();
        }
        (clock.monotonic().as_secs(), *clock.jumps().borrow())
    }

    #[test]
    fn e21_clock_that_advanced_more_counts() {
        assert_eq!(moved(&[(60, 60)]), (60, 0));
        assert_eq!(moved(&[(36_000, 5)]), (36_000, 1));
        assert_eq!(moved(&[(0, 60)]), (60, 0));
    }

    #[test]
    fn e21_backward_step_counts_as_zero() {
        assert_eq!(moved(&[(-3_600, 0)]), (0, 0));
        assert_eq!(moved(&[(-3_600, 10), (20, 20)]), (30, 0));
        // It does not hide a suspend that follows.
        assert_eq!(moved(&[(-3_600, 0), (600, 0)]), (600, 1));
        // A forward step is not taken back.
        assert_eq!(moved(&[(3_600, 0), (-3_600, 0)]), (3_600, 1));
    }

    #[test]
    fn e21_extreme_clocks_saturate() {
        let hands = Arc::new(Hands::default());
        let clock = TrustClock::new(hands.clone());
        for (wall, monotonic) in [(i64::MAX - 1_000_000, 0), (-1_000_000, u64::MAX)] {
            hands.wall.store(wall, Ordering::Relaxed);
            hands.monotonic.store(monotonic, Ordering::Relaxed);
            let time = clock.monotonic();
            assert!(time >= Duration::from_secs(i64::MAX as u64 - 1_000_000));
            assert!(clock.monotonic() >= time);
        }
    }
}
