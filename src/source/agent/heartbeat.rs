//! Whether the task runs, as seen by the handles.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::source::on_drop::OnDrop;
use crate::source::trust_clock::{NEVER, TrustClock, nanos};

/// The task reports every second. If there is no report for this long, it is overdue.
const OVERDUE: Duration = Duration::from_secs(5);

pub(super) struct Heartbeat {
    clock: Arc<TrustClock>,
    // When the task last ran, and since when a message has been waiting to be applied.
    beat_at: AtomicU64,
    reading_since: AtomicU64,
}

impl Heartbeat {
    pub(super) fn new(clock: Arc<TrustClock>) -> Self {
        Self {
            beat_at: AtomicU64::new(nanos(clock.monotonic())),
            reading_since: AtomicU64::new(NEVER),
            clock,
        }
    }

    /// Reports that the task runs.
    pub(super) fn beat(&self) {
        self.beat_at.store(self.now(), Ordering::Release);
    }

    /// A message waits to be applied, until the result is dropped.
    pub(super) fn reading(&self) -> impl Drop + use<'_> {
        self.reading_since.store(self.now(), Ordering::Release);
        OnDrop(|| self.reading_since.store(NEVER, Ordering::Release))
    }

    /// Whether the task has not reported for too long, or a message has waited for too long.
    pub(super) fn is_overdue(&self) -> bool {
        let since = self.beat_at.load(Ordering::Acquire);
        let since = since.min(self.reading_since.load(Ordering::Acquire));
        self.now().saturating_sub(since) > nanos(OVERDUE)
    }

    fn now(&self) -> u64 {
        nanos(self.clock.monotonic())
    }
}
