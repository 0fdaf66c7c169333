//! The options of a cache.

use std::sync::Arc;
use std::time::Duration;

use super::SvidCache;
use super::settings::Settings;
use crate::clock::{Clock, SystemClock};
use crate::metrics::MetricsRecorder;
use crate::token::FetchSvid;

/// Sets how a [`SvidCache`] paces itself. The defaults suit SPIRE's agent.
#[must_use = "a builder does nothing until it is built"]
pub struct SvidCacheBuilder {
    fetcher: Arc<dyn FetchSvid>,
    clock: Arc<dyn Clock>,
    metrics: Option<Arc<dyn MetricsRecorder>>,
    settings: Settings,
}

impl std::fmt::Debug for SvidCacheBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SvidCacheBuilder")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl SvidCacheBuilder {
    pub(crate) fn new(fetcher: impl FetchSvid) -> Self {
        Self {
            fetcher: Arc::new(fetcher),
            clock: SystemClock::shared(),
            metrics: None,
            settings: Settings::default(),
        }
    }

    /// The clock that tells when a token expires. The machine's own by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Who is told of hits, misses, refreshes and fetches. Nobody by default.
    pub fn metrics(mut self, metrics: Arc<dyn MetricsRecorder>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// The most audiences that are kept; beyond it, one that was not used for long gives way.
    /// 1024 by default. Audiences that a layer was made for, or that are kept warm, never do, and
    /// take nobody's place: they are kept besides.
    pub fn max_entries(mut self, max: usize) -> Self {
        self.settings.max_entries = max;
        self
    }

    /// After which share of its life a token is refreshed: drawn once per token between the two.
    /// 0.55 to 0.65 by default: SPIRE's agent hands out its own cached token until 45 to 55 % of
    /// the life is gone, so that an earlier call would bring nothing. Kept within 0 and 1.
    pub fn refresh_between(mut self, from: f64, to: f64) -> Self {
        let (from, to) = (share(from, 0.6), share(to, 0.6));
        self.settings.refresh = (from.min(to), from.max(to));
        self
    }

    /// With this much of a token's life left, at most, a request waits a little for the next one
    /// before it sends this one. 30 s or 10 % of the life by default, whichever is less.
    pub fn soft_margin(mut self, most: Duration) -> Self {
        self.settings.soft_margin.most = most;
        self
    }

    /// The share of a token's life that [`soft_margin`](Self::soft_margin) is no more than. 0.10 by
    /// default; kept within 0 and 1.
    pub fn soft_margin_share(mut self, most: f64) -> Self {
        self.settings.soft_margin.share = share(most, self.settings.soft_margin.share);
        self
    }

    /// With this much of its life left, at most, a token is never sent. 2 s or 2 % of the life by
    /// default, whichever is less.
    pub fn hard_margin(mut self, most: Duration) -> Self {
        self.settings.hard_margin.most = most;
        self
    }

    /// The share of a token's life that [`hard_margin`](Self::hard_margin) is no more than. 0.02 by
    /// default; kept within 0 and 1.
    pub fn hard_margin_share(mut self, most: f64) -> Self {
        self.settings.hard_margin.share = share(most, self.settings.hard_margin.share);
        self
    }

    /// The longest that one call to the issuer may take. 35 s by default: SPIRE's agent takes up
    /// to 30 s while its server is away.
    pub fn fetch_deadline(mut self, deadline: Duration) -> Self {
        self.settings.fetch_deadline = deadline;
        self
    }

    /// A call that takes longer makes room for others, and speaks against the issuer. 5 s by
    /// default.
    pub fn slow_after(mut self, after: Duration) -> Self {
        self.settings.slow_after = after;
        self
    }

    /// How long a request waits if there is no token to send. 5 s by default. If a token has expired
    /// and the issuer does not answer, requests wait for [`soft_wait`](Self::soft_wait) only: the
    /// call under way has taken longer than [`slow_after`](Self::slow_after), or the last one ended
    /// without an answer.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.settings.max_wait = wait;
        self
    }

    /// How long after a fetch began a request inside the soft margin waits for it. 250 ms by
    /// default.
    pub fn soft_wait(mut self, wait: Duration) -> Self {
        self.settings.soft_wait = wait;
        self
    }

    /// The first and the longest delay between failures while there is a token to send. 1 s and
    /// 30 s by default.
    pub fn backoff_with_token(mut self, first: Duration, cap: Duration) -> Self {
        self.settings.with_token.first = first;
        self.settings.with_token.cap = cap;
        self
    }

    /// The first and the longest delay between failures while there is none. 250 ms and 5 s by
    /// default.
    pub fn backoff_without_token(mut self, first: Duration, cap: Duration) -> Self {
        self.settings.without_token.first = first;
        self.settings.without_token.cap = cap;
        self
    }

    /// The same, where the issuer denies the identity. 1 s and 10 s by default.
    pub fn backoff_denied(mut self, first: Duration, cap: Duration) -> Self {
        self.settings.denied.first = first;
        self.settings.denied.cap = cap;
        self
    }

    /// The delay after a request that can never succeed. 60 s by default.
    pub fn backoff_invalid(mut self, delay: Duration) -> Self {
        self.settings.invalid = delay;
        self
    }

    /// The first and the longest delay after the issuer answered with the token that was there
    /// already. 5 s and 30 s by default.
    pub fn backoff_unchanged(mut self, first: Duration, cap: Duration) -> Self {
        self.settings.unchanged.first = first;
        self.settings.unchanged.cap = cap;
        self
    }

    /// By which factor each delay is longer than the one before it: while there is a token to send,
    /// and while there is none (that of calls to an issuer that does not answer, too). 1.6 and 2 by
    /// default; never below 1.
    pub fn backoff_growth(mut self, with_token: f64, without_token: f64) -> Self {
        let settings = &mut self.settings;
        for pace in [&mut settings.with_token, &mut settings.unchanged] {
            pace.factor = factor(with_token, pace.factor);
        }
        for pace in [
            &mut settings.without_token,
            &mut settings.denied,
            &mut settings.breaker,
        ] {
            pace.factor = factor(without_token, pace.factor);
        }
        self
    }

    /// By which share every such delay is longer or shorter, at random, so that many processes do
    /// not ask in step. 0.2 by default; kept within 0 and 1.
    pub fn backoff_jitter(mut self, most: f64) -> Self {
        let settings = &mut self.settings;
        for pace in [
            &mut settings.with_token,
            &mut settings.without_token,
            &mut settings.denied,
            &mut settings.unchanged,
            &mut settings.breaker,
        ] {
            pace.jitter = share(most, pace.jitter);
        }
        self
    }

    /// Over how long the fetches are spread that no request asks for, after a signing key was
    /// removed. 5 s by default. A request asks at once.
    pub fn refetch_after_key_loss_within(mut self, within: Duration) -> Self {
        self.settings.gone_jitter = within;
        self
    }

    /// At most one fetch per this much, for each audience, because a service refused the token.
    /// 10 s by default.
    pub fn refetch_rejected_every(mut self, every: Duration) -> Self {
        self.settings.rejected_every = every;
        self
    }

    /// After so many calls in a row that could not connect or were not answered in time, the
    /// issuer is asked by one call at a time, until one is answered. 3 by default.
    pub fn breaker_after(mut self, failures: u32) -> Self {
        self.settings.breaker_after = failures.max(1);
        self
    }

    /// The first and the longest delay between those calls. 250 ms and 5 s by default.
    ///
    /// A delay ends as soon as either the monotonic or the wall clock says so: time in which the
    /// machine is suspended counts.
    pub fn breaker_pace(mut self, first: Duration, cap: Duration) -> Self {
        self.settings.breaker.first = first;
        self.settings.breaker.cap = cap;
        self
    }

    /// The most calls to the issuer at once, and how many of them may be calls that nobody waits
    /// for. 16 and 12 by default. As many again may be under way that the issuer is slow to
    /// answer.
    pub fn concurrency(mut self, all: usize, background: usize) -> Self {
        self.settings.concurrency = all.max(1);
        self.settings.background = background.max(1);
        self
    }

    /// The most calls to the issuer per second. 200 by default.
    pub fn rate(mut self, per_second: u32) -> Self {
        self.settings.rate = per_second.max(1);
        self
    }

    /// The cache.
    ///
    /// Built inside a tokio runtime, it can also refresh where it is asked outside of one.
    pub fn build(self) -> SvidCache {
        SvidCache::of(self.fetcher, self.clock, self.metrics, self.settings)
    }
}

/// What is no share, as before.
fn share(share: f64, before: f64) -> f64 {
    if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        before
    }
}

fn factor(factor: f64, before: f64) -> f64 {
    if factor.is_finite() {
        factor.max(1.0)
    } else {
        before
    }
}
