//! A clock that returns the time that was set.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tower_spiffe::clock::{Clock, UnixTime};

pub(crate) struct StillClock(RwLock<UnixTime>);

impl StillClock {
    pub(crate) fn at(now: UnixTime) -> Arc<Self> {
        Arc::new(Self(RwLock::new(now)))
    }

    pub(crate) fn set(&self, now: UnixTime) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

impl Clock for StillClock {
    fn now(&self) -> UnixTime {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}
