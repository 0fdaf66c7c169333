//! Limits of concurrent fetches and of fetches per second.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{AcquireError, Notify, OwnedSemaphorePermit, Semaphore};

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

/// Whether a request waits for a fetch.
#[derive(Default)]
pub(crate) struct Urgency {
    urgent: AtomicBool,
    raised: Notify,
}

impl Urgency {
    pub(crate) fn new(urgent: bool) -> Self {
        Self {
            urgent: AtomicBool::new(urgent),
            raised: Notify::new(),
        }
    }

    pub(crate) fn raise(&self) {
        if !self.urgent.swap(true, Ordering::AcqRel) {
            self.raised.notify_waiters();
        }
    }

    async fn raised(&self) {
        let raised = self.raised.notified();
        let mut raised = std::pin::pin!(raised);
        // Registered before the flag is read, so that no call in between is missed.
        raised.as_mut().enable();
        if self.urgent.load(Ordering::Acquire) {
            return;
        }
        raised.await;
    }
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

    /// Waits for a permit. Fewer permits are available to a fetch without a waiting request.
    pub(crate) async fn room(&self, urgency: &Urgency) -> Result<Permit, AcquireError> {
        let background = first(urgency.raised(), self.background.clone().acquire_owned()).await;
        let background = background.transpose()?;
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

/// Returns the output of `right`, or `None` if `left` ends first.
async fn first<T>(left: impl Future<Output = ()>, right: impl Future<Output = T>) -> Option<T> {
    let mut left = std::pin::pin!(left);
    let mut right = std::pin::pin!(right);
    poll_fn(|cx| {
        if left.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(None);
        }
        right.as_mut().poll(cx).map(Some)
    })
    .await
}
