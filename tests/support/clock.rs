//! A clock that a test sets. For paused time use [`tower_spiffe::testing::PausedClock`].

use std::sync::{Arc, RwLock};
use std::time::Duration;

use tower_spiffe::clock::{Clock, UnixTime};

/// A clock that changes only when a test sets it.
#[derive(Debug)]
pub struct HandClock {
    start: UnixTime,
    shown: RwLock<(UnixTime, Duration)>,
}

impl HandClock {
    /// Creates a clock at this Unix time in seconds; its monotonic time is zero.
    pub fn at(secs: i64) -> Arc<Self> {
        let start = UnixTime::from_secs(secs);
        Arc::new(Self {
            start,
            shown: RwLock::new((start, Duration::ZERO)),
        })
    }

    /// Sets the wall clock only.
    pub fn set(&self, now: UnixTime) {
        self.shown.write().unwrap().0 = now;
    }

    /// Sets both clocks independently of each other.
    pub fn set_both(&self, now: UnixTime, monotonic: Duration) {
        *self.shown.write().unwrap() = (now, monotonic);
    }

    /// Sets both clocks to this time after the start.
    pub fn set_elapsed(&self, elapsed: Duration) {
        self.set_both(self.start.saturating_add(elapsed), elapsed);
    }
}

impl Clock for HandClock {
    fn now(&self) -> UnixTime {
        self.shown.read().unwrap().0
    }

    fn monotonic(&self) -> Duration {
        self.shown.read().unwrap().1
    }
}
