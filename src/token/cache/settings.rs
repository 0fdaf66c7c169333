//! The settings of the cache, with their reasons.

use std::time::Duration;

/// Delays and limits of the cache. [`SvidCacheBuilder`](super::SvidCacheBuilder) sets or limits
/// some of them; the others are constants.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The share of a token's lifetime after which it is refreshed: a random value between these
    /// two, drawn once per token, so that many processes do not call at the same time. An agent
    /// returns its cached token for about half of its lifetime, so it never returns the same one
    /// then.
    pub(crate) refresh: (f64, f64),
    /// With this much of the lifetime left or less, requests wait briefly for the next token.
    pub(crate) soft_margin: Margin,
    /// With this much left or less, a token is never sent: it could expire on its way.
    pub(crate) hard_margin: Margin,
    /// The time limit of one call to the issuer. SPIRE's agent can take 30 s.
    pub(crate) fetch_deadline: Duration,
    /// A call that takes longer than this lets other calls start, and counts as a failure of the
    /// issuer.
    pub(crate) slow_after: Duration,
    /// How long a request waits if there is no token to send.
    pub(crate) max_wait: Duration,
    /// How long after the start of a fetch a request within the soft margin still waits for it.
    pub(crate) soft_wait: Duration,
    /// Delays after failures while there is a token to send.
    pub(crate) with_token: Pace,
    /// Delays after failures while there is no token to send.
    pub(crate) without_token: Pace,
    /// Delays if the issuer denies the identity.
    pub(crate) denied: Pace,
    /// The delay after an invalid request.
    pub(crate) invalid: Duration,
    /// Delays after the issuer returned the token that the cache already has.
    pub(crate) unchanged: Pace,
    /// The time in which at most one fetch is started because a service rejected the token.
    pub(crate) rejected_every: Duration,
    /// Spreads the fetches after a key was removed.
    pub(crate) removal_jitter: Duration,
    /// Delays between the probes of an issuer that does not respond.
    pub(crate) breaker: Pace,
    /// Failures in a row that open the breaker.
    pub(crate) breaker_after: u32,
    /// Concurrent fetches.
    pub(crate) concurrency: usize,
    /// The maximum of those without a waiting request.
    pub(crate) background: usize,
    /// Fetches per second.
    pub(crate) rate: u32,
    /// Audiences in the cache.
    pub(crate) max_entries: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let (secs, millis) = (Duration::from_secs, Duration::from_millis);
        Self {
            refresh: (0.55, 0.65),
            soft_margin: Margin::new(secs(30), 0.10),
            hard_margin: Margin::new(secs(2), 0.02),
            fetch_deadline: secs(35),
            slow_after: secs(5),
            max_wait: secs(5),
            soft_wait: millis(250),
            with_token: Pace::new(secs(1), 1.6, secs(30)),
            without_token: Pace::new(millis(250), 2.0, secs(5)),
            denied: Pace::new(secs(1), 2.0, secs(10)),
            invalid: secs(60),
            unchanged: Pace::new(secs(5), 1.6, secs(30)),
            rejected_every: secs(10),
            removal_jitter: secs(5),
            breaker: Pace::new(millis(250), 2.0, secs(5)),
            breaker_after: 3,
            concurrency: 16,
            background: 12,
            rate: 200,
            max_entries: 1024,
        }
    }
}

/// The last part of a token's life: a share of it, limited to `most`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Margin {
    pub(crate) most: Duration,
    pub(crate) share: f64,
}

impl Margin {
    fn new(most: Duration, share: f64) -> Self {
        Self { most, share }
    }

    pub(crate) fn of(self, life: Duration) -> Duration {
        self.most.min(life.mul_f64(self.share))
    }
}

/// A delay that grows with each failure, with jitter, and is never longer than its cap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) first: Duration,
    pub(crate) factor: f64,
    pub(crate) cap: Duration,
}

/// A delay is longer or shorter by up to this share.
const JITTER: f64 = 0.2;

impl Pace {
    fn new(first: Duration, factor: f64, cap: Duration) -> Self {
        Self { first, factor, cap }
    }

    /// The delay after the `failures`th failure in a row, counted from 1.
    pub(crate) fn after(self, failures: u32) -> Duration {
        // Beyond 64 every delay is at its cap.
        let power = i32::try_from(failures.saturating_sub(1).min(64)).unwrap_or(64);
        let jitter = 1.0 + JITTER * (2.0 * fastrand::f64() - 1.0);
        let secs = self.first.as_secs_f64() * self.factor.powi(power) * jitter;
        // Limited after the jitter, so that no delay is longer than the cap.
        Duration::try_from_secs_f64(secs)
            .unwrap_or(self.cap)
            .min(self.cap)
    }
}
