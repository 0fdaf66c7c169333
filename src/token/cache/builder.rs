//! The options of a cache.

use std::sync::Arc;
use std::time::Duration;

use super::context::Context;
use super::settings::Settings;
use super::table::Table;
use super::{Core, SvidCache};
use crate::clock::{Clock, SystemClock};
use crate::metrics::MetricsRecorder;
use crate::presentable::debug_fields;
use crate::token::FetchSvid;

/// Options of a [`SvidCache`]. The defaults suit SPIRE's agent; they are in one table in the
/// [`source` docs](crate::source#defaults).
#[must_use = "a builder does nothing until it is built"]
pub struct SvidCacheBuilder {
    fetcher: Arc<dyn FetchSvid>,
    clock: Arc<dyn Clock>,
    metrics: Option<Arc<dyn MetricsRecorder>>,
    settings: Settings,
}

debug_fields!(SvidCacheBuilder, |it| { settings: it.settings });

impl SvidCacheBuilder {
    pub(crate) fn new(fetcher: impl FetchSvid) -> Self {
        Self {
            fetcher: Arc::new(fetcher),
            clock: SystemClock::shared(),
            metrics: None,
            settings: Settings::default(),
        }
    }

    /// Sets the clock for the expiry of tokens. The system clock by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Sets the recorder of hits, misses, refreshes and fetches. None by default.
    pub fn metrics(mut self, metrics: Arc<dyn MetricsRecorder>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Limits the number of audiences. Beyond it, one that was not used for a long time is evicted.
    /// 1024 by default. Audiences that a layer uses or that are kept warm are never evicted and do
    /// not count.
    pub fn max_entries(mut self, max: usize) -> Self {
        self.settings.max_entries = max;
        self
    }

    /// Limits one call to the issuer. 35 s by default: SPIRE's agent takes up to 30 s while its
    /// server is unreachable.
    ///
    /// After 5 s, or a third of this limit if that is shorter, a call counts as slow: other calls
    /// may start, and requests whose token has expired no longer wait for it.
    pub fn fetch_timeout(mut self, limit: Duration) -> Self {
        self.settings.fetch_deadline = limit;
        self.settings.slow_after = Settings::default().slow_after.min(limit / 3);
        self
    }

    /// Limits how long a request waits if there is no token to send. 5 s by default. While a token
    /// can still be sent, or if the issuer does not respond, a request waits for at most 250 ms.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.settings.max_wait = wait;
        self
    }

    /// Sets the shortest and the longest delay before the issuer is called again after a failure,
    /// after a response without a newer token, and after a service rejected the token. 250 ms and
    /// 60 s by default; the delays of each case are in the [module docs](crate::token#retries), and
    /// stay within these two limits.
    ///
    /// Delays are 20 % longer or shorter at random, but never longer than `longest`.
    pub fn retry(mut self, shortest: Duration, longest: Duration) -> Self {
        let longest = longest.max(shortest);
        let within = |delay: Duration| delay.clamp(shortest, longest);
        let defaults = Settings::default();
        let settings = &mut self.settings;
        for (pace, default) in [
            (&mut settings.with_token, defaults.with_token),
            (&mut settings.without_token, defaults.without_token),
            (&mut settings.denied, defaults.denied),
            (&mut settings.unchanged, defaults.unchanged),
            (&mut settings.breaker, defaults.breaker),
        ] {
            pace.first = within(default.first);
            pace.cap = within(default.cap);
        }
        settings.invalid = within(defaults.invalid);
        settings.rejected_every = within(defaults.rejected_every);
        self
    }

    /// Limits the concurrent calls to the issuer. 16 by default; at most three quarters of them are
    /// calls that no request waits for. In addition, the same number of slow calls may be in
    /// progress.
    pub fn concurrency(mut self, calls: usize) -> Self {
        self.settings.concurrency = calls.max(1);
        self.settings.background = (calls - calls / 4).max(1);
        self
    }

    /// Limits the calls to the issuer per second. 200 by default.
    pub fn rate(mut self, per_second: u32) -> Self {
        self.settings.rate = per_second.max(1);
        self
    }

    /// Builds the cache.
    ///
    /// If it is built inside a tokio runtime, it can also refresh for calls from outside of one.
    pub fn build(self) -> SvidCache {
        let table = Table::new(self.settings.max_entries);
        let cx = Context::new(self.fetcher, self.clock, self.metrics, self.settings);
        let cx = Arc::new(cx);
        SvidCache {
            core: Arc::new(Core { cx, table }),
            alive: None,
        }
    }
}
