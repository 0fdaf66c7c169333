//! Limits of concurrent fetches and of fetches per second.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, watch};

use super::moment::nanos;
use super::settings::Settings;
use crate::clock::Clock;

/// Shared by all audiences of a cache.
pub(crate) struct Limits {
    all: Arc<Semaphore>,
    background: Arc<Semaphore>,
    // Permits for slow calls, so that they do not block others.
    slow: Arc<Semaphore>,
    /// When the next fetch may begin if there is no burst.
    turn: Mutex<i64>,
    interval: i64,
    burst: i64,
}

/// A permit for one call.
pub(crate) struct Permit {
    _all: OwnedSemaphorePermit,
    _background: Option<OwnedSemaphorePermit>,
}

impl Limits {
    pub(crate) fn new(settings: &Settings) -> Self {
        let concurrency = settings.concurrency.clamp(1, Semaphore::MAX_PERMITS);
        let interval = 1_000_000_000 / i64::from(settings.rate.max(1));
        Self {
            all: Arc::new(Semaphore::new(concurrency)),
            background: Arc::new(Semaphore::new(settings.background.clamp(1, concurrency))),
            slow: Arc::new(Semaphore::new(concurrency)),
            turn: Mutex::new(i64::MIN),
            interval,
            burst: interval.saturating_mul(i64::try_from(concurrency).unwrap_or(i64::MAX)),
        }
    }

    /// Waits for a permit. Fewer permits are available to a fetch that is not urgent: without a
    /// waiting request.
    pub(crate) async fn room(&self, urgent: &watch::Sender<bool>) -> Result<Permit, AcquireError> {
        let mut urgent = urgent.subscribe();
        let urgent = pin!(urgent.wait_for(|urgent| *urgent));
        let background = pin!(self.background.clone().acquire_owned());
        let background = match select(urgent, background).await {
            Either::Left(_) => None,
            Either::Right((permit, _)) => Some(permit?),
        };
        Ok(Permit {
            _all: self.all.clone().acquire_owned().await?,
            _background: background,
        })
    }

    /// Waits until the rate allows one more fetch.
    pub(crate) async fn turn(&self, clock: &dyn Clock) {
        // Signed, so that a burst is also allowed right after the clock started.
        let now = i64::try_from(nanos(clock.monotonic())).unwrap_or(i64::MAX);
        let turn = {
            let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            *turn = (*turn)
                .max(now.saturating_sub(self.burst))
                .saturating_add(self.interval);
            *turn
        };
        if let Some(wait) = turn
            .checked_sub(now)
            .and_then(|wait| u64::try_from(wait).ok())
        {
            tokio::time::sleep(Duration::from_nanos(wait)).await;
        }
    }

    /// Returns a permit for a slow call, in place of its first one; `None` if there are too many.
    pub(crate) fn slow_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.slow.clone().try_acquire_owned().ok()
    }
}
