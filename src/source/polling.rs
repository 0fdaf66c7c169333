//! The time of the next check of a file.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::trust_clock::TrustClock;

/// Timers stop while a machine is suspended, so the clocks are also read between two checks.
pub(crate) const NAP: Duration = Duration::from_secs(1);

/// The age of the last check that the states of files report as overdue.
pub(crate) fn overdue_after(every: Duration) -> Duration {
    every
        .saturating_mul(2)
        .saturating_add(Duration::from_secs(2))
}

/// The time until the next check: the interval, or zero after a jump of the wall clock.
pub(crate) struct NextCheck {
    every: Duration,
    left: Duration,
    jumps: watch::Receiver<u64>,
}

impl NextCheck {
    /// The first check is due after `first`.
    pub(crate) fn new(clock: &TrustClock, every: Duration, first: Duration) -> Self {
        Self {
            every,
            left: first,
            jumps: clock.jumps(),
        }
    }

    /// Waits for the next check, for at most this long. Then read the clock, which notices a jump.
    pub(crate) async fn nap(&mut self, longest: Duration) {
        if self.left.is_zero() {
            return;
        }
        let began = Instant::now();
        let jumped = tokio::time::timeout(self.left.min(longest), self.jumps.changed()).await;
        self.left = match jumped {
            Ok(Ok(())) => Duration::ZERO,
            _ => self.left.saturating_sub(began.elapsed()),
        };
    }

    /// Returns whether a check is due. `age` is the time since the last one.
    pub(crate) fn is_due(&self, age: Duration) -> bool {
        self.left.is_zero() || age >= self.every
    }

    /// A check begins: a jump from now on makes the next one due.
    pub(crate) fn restart(&mut self) {
        self.jumps.mark_unchanged();
        self.left = self.every;
    }

    /// Makes the next check due within this time.
    #[cfg(feature = "policy-file")]
    pub(crate) fn hasten(&mut self, within: Duration) {
        self.left = self.left.min(within);
    }
}
