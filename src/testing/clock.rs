//! A clock for tests.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::clock::{Clock, UnixTime};

/// A clock that follows tokio's: in a runtime with paused time, it advances only when the test advances
/// time, or when all tasks sleep. Clones are the same clock.
///
/// On every thread it shows the time of the runtime that it was created in. If it was created
/// outside a runtime, it starts at `start` and runs like the system clock.
///
/// ```
/// use std::time::Duration;
/// use tower_spiffe::testing::PausedClock;
/// use tower_spiffe::clock::{Clock, UnixTime};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
/// tokio::time::sleep(Duration::from_secs(60)).await; // takes no time
/// assert_eq!(clock.now().secs(), 1_790_000_060);
///
/// // Wall time can step; monotonic time cannot.
/// clock.step_wall(-30);
/// assert_eq!(clock.now().secs(), 1_790_000_030);
/// assert_eq!(clock.monotonic(), Duration::from_secs(60));
/// # }
/// ```
#[derive(Clone)]
pub struct PausedClock {
    shared: Arc<Times>,
}

struct Times {
    start: UnixTime,
    origin: Instant,
    // The sum of all steps of the wall time, in seconds.
    stepped: AtomicI64,
    // tokio's time is paused per runtime, and is visible only inside that runtime.
    runtime: Option<Handle>,
}

impl PausedClock {
    /// Creates a clock that shows `start` now.
    pub fn new(start: UnixTime) -> Self {
        Self {
            shared: Arc::new(Times {
                start,
                origin: Instant::now(),
                stepped: AtomicI64::new(0),
                runtime: Handle::try_current().ok(),
            }),
        }
    }

    /// Steps the wall time by this many seconds, backwards if negative, as an administrator or a time
    /// server does. The monotonic time is not affected.
    pub fn step_wall(&self, seconds: i64) {
        // Saturating, so that many huge steps do not wrap around.
        let _ = self
            .shared
            .stepped
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |stepped| {
                Some(stepped.saturating_add(seconds))
            });
    }

    /// Returns this clock as a shared handle, for functions that take a clock.
    pub fn shared(&self) -> Arc<dyn Clock> {
        Arc::new(self.clone())
    }
}

impl Clock for PausedClock {
    fn now(&self) -> UnixTime {
        let wall = self.shared.start.saturating_add(self.monotonic());
        stepped(wall, self.shared.stepped.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        let _inside = self.shared.runtime.as_ref().map(Handle::enter);
        Instant::now().saturating_duration_since(self.shared.origin)
    }
}

impl fmt::Debug for PausedClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PausedClock")
            .field("now", &self.now())
            .field("monotonic", &self.monotonic())
            .finish_non_exhaustive()
    }
}

/// `time`, this many seconds later, or earlier if negative.
pub(super) fn stepped(time: UnixTime, seconds: i64) -> UnixTime {
    let step = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        time.saturating_sub(step)
    } else {
        time.saturating_add(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixTime = UnixTime::from_secs(1_000);

    #[tokio::test(start_paused = true)]
    async fn paused_clock_works_on_any_thread() {
        let clock = PausedClock::new(START);
        tokio::time::advance(Duration::from_secs(5)).await;
        let elsewhere = clock.clone();
        let seen = std::thread::spawn(move || (elsewhere.now(), elsewhere.monotonic()))
            .join()
            .unwrap();
        assert_eq!(seen, (UnixTime::from_secs(1_005), Duration::from_secs(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn step_changes_only_the_wall_time() {
        let clock = PausedClock::new(START);
        let seen_by_another: Arc<dyn Clock> = clock.shared();
        clock.step_wall(3_600);
        clock.step_wall(-60);
        assert_eq!(seen_by_another.now(), UnixTime::from_secs(4_540));
        assert_eq!(seen_by_another.monotonic(), Duration::ZERO);
        clock.step_wall(i64::MAX);
        clock.step_wall(i64::MAX);
        assert_eq!(seen_by_another.now(), UnixTime::MAX);
    }

    #[test]
    fn clock_without_runtime_begins_at_start() {
        assert_eq!(PausedClock::new(START).now().secs(), 1_000);
    }
}
