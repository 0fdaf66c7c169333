//! The cache of our own tokens: one token for each audience, refreshed before it expires.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;

use crate::clock::Clock;
use crate::metrics::MetricsRecorder;
use crate::token::{FetchSvid, JwtSvid, SvidRequest};

mod breaker;
mod builder;
mod context;
mod counts;
mod entry;
mod error;
mod flight;
mod hot;
mod limits;
mod moment;
#[cfg(any(feature = "workload-api", feature = "tonic"))]
mod peer;
mod pin;
mod settings;
mod single_use;
mod snapshot;
mod successors;
mod table;
mod token;
mod updates;
mod wait;
mod warm;

use context::Context;
use entry::Entry;
use settings::Settings;
use table::Table;
#[cfg(feature = "workload-api")]
use token::Token;

pub use builder::SvidCacheBuilder;
pub use counts::SvidCacheStats;
pub use error::{TokenError, TokenErrorReason};
pub use pin::PinnedSvid;
pub(crate) use pin::{Issue, Issued};
pub use snapshot::{AudienceSnapshot, TokenState};
pub(crate) use successors::Successors;
pub use updates::SvidUpdates;
pub(crate) use wait::Waiter;
pub use warm::KeepWarm;

/// A cache of our own tokens, one for each [`SvidRequest`]. Clones are the same cache.
#[derive(Clone)]
pub struct SvidCache {
    core: Arc<Core>,
    // What must live as long as somebody can ask.
    alive: Option<Arc<dyn Any + Send + Sync>>,
}

struct Core {
    cx: Arc<Context>,
    table: Table,
}

impl SvidCache {
    /// A cache over `fetcher`, with the defaults.
    pub fn new(fetcher: impl FetchSvid) -> Self {
        Self::builder(fetcher).build()
    }

    /// A cache over `fetcher`, with options.
    pub fn builder(fetcher: impl FetchSvid) -> SvidCacheBuilder {
        SvidCacheBuilder::new(fetcher)
    }

    fn of(
        fetcher: Arc<dyn FetchSvid>,
        clock: Arc<dyn Clock>,
        metrics: Option<Arc<dyn MetricsRecorder>>,
        settings: Settings,
    ) -> Self {
        let table = Table::new(settings.max_entries);
        let cx = Arc::new(Context::new(fetcher, clock, metrics, settings));
        Self {
            core: Arc::new(Core { cx, table }),
            alive: None,
        }
    }

    /// The same cache, with something that lives as long as this clone, its clones and whatever
    /// they pin.
    #[cfg(feature = "workload-api")]
    #[must_use]
    pub(crate) fn keeping_alive(self, alive: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            alive: Some(alive),
            ..self
        }
    }

    /// The token for `request`: the cached one, or the one that a fetch brings.
    ///
    /// # Errors
    /// A [`TokenError`] where there is nothing to send, and none came in time.
    pub async fn get(&self, request: &SvidRequest) -> Result<JwtSvid, TokenError> {
        Ok(self.issue(request)?.settle().await?.svid())
    }

    /// The token for `request` as the value of an `authorization` header: `Bearer …`, marked
    /// sensitive.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn header(&self, request: &SvidRequest) -> Result<HeaderValue, TokenError> {
        if let Some(header) = self.hit(request) {
            return Ok(header);
        }
        Ok(self.issue(request)?.settle().await?.header())
    }

    /// The header that can be sent at once; `None` where there is none, and then a fetch begins.
    /// Never waits. Always `None` for a [`single_use`](SvidRequest::single_use) request, without a
    /// fetch.
    pub fn try_header(&self, request: &SvidRequest) -> Option<HeaderValue> {
        if request.is_single_use() {
            return None;
        }
        if let Some(header) = self.hit(request) {
            return Some(header);
        }
        self.issue(request)
            .ok()?
            .at_once()
            .map(|issued| issued.header())
    }

    /// A handle on the token for `request` that needs no look-up, and whose audience never gives
    /// way to another.
    pub fn pin(&self, request: SvidRequest) -> PinnedSvid {
        let make = || self.core.entry(&request);
        // A pin is never refused for want of room.
        let entry = self.core.table.get_or_insert(&request, true, make);
        let entry = entry.unwrap_or_else(|| self.core.entry(&request));
        PinnedSvid::new(entry, Arc::downgrade(&self.core), self.alive.clone())
    }

    /// Keeps the tokens for these requests fresh whether anyone asks for them or not, with one
    /// task for all of them, until what is returned is dropped.
    ///
    /// It does not keep a source open: when that is shut down, the task ends. Requests for
    /// [`single_use`](SvidRequest::single_use) tokens are ignored.
    ///
    /// # Errors
    /// There is no tokio runtime with timers here, and there was none where the cache was built.
    pub fn keep_warm(
        &self,
        requests: impl IntoIterator<Item = SvidRequest>,
    ) -> Result<KeepWarm, TokenError> {
        let mut here = self.clone();
        here.alive = None;
        warm::keep(
            &self.core.cx,
            requests
                .into_iter()
                .map(|request| here.pin(request))
                .collect(),
        )
    }

    /// Reports that signing keys were removed: `removed` is asked with the name of a trust domain and a
    /// key ID. The next request for a token that such a key signed waits for another one, up to
    /// 250 ms and once per removal, then sends what there is. Tokens that are only kept warm are refreshed within 5 s.
    #[cfg(feature = "workload-api")]
    pub(crate) fn authorities_removed(&self, removed: &dyn Fn(&str, &str) -> bool) {
        let now = self.core.cx.moment();
        let signed_by_removed = |token: &Token| {
            let trust_domain = token.svid.spiffe_id().trust_domain_name();
            let key_id = token.svid.key_id();
            key_id.is_some_and(|key_id| removed(trust_domain, key_id))
        };
        // In the order of their making: each draws a moment of its own, and a test that seeds the
        // draw must be able to repeat it.
        let mut entries = self.core.table.all();
        entries.sort_unstable_by_key(|entry| entry.id);
        for entry in entries {
            entry.keys_gone(signed_by_removed, now);
        }
        self.core.cx.nudge.notify_waiters();
    }

    /// Tells that a service refused the token in `header`: the next request has it refreshed,
    /// where it is still the current one, and not more than once per 10 s. Whether it will be.
    pub fn report_refused(&self, request: &SvidRequest, header: &HeaderValue) -> bool {
        let Some(entry) = self.core.table.get(request) else {
            return false;
        };
        let sent = entry
            .token
            .load_full()
            .filter(|token| token.header == *header);
        sent.is_some_and(|token| pin::refused(&entry, token.generation))
    }

    /// Ends all fetches; from now on every request fails with [`TokenErrorReason::Closed`].
    pub fn close(&self) {
        self.core.cx.close();
        for entry in self.core.table.all() {
            entry.ground();
        }
    }

    /// What the cache did since it was made.
    pub fn stats(&self) -> SvidCacheStats {
        let cx = &self.core.cx;
        let table = &self.core.table;
        cx.counts
            .stats(table.len(), table.evicted(), cx.breaker.is_open())
    }

    /// Every audience in the cache, as it is now, in no order.
    pub fn snapshot(&self) -> Vec<AudienceSnapshot> {
        let now = self.core.cx.moment();
        self.core
            .table
            .all()
            .iter()
            .map(|entry| AudienceSnapshot::of(entry, now))
            .collect()
    }

    /// One audience as it is now; `None` where it is not in the cache.
    pub fn snapshot_of(&self, request: &SvidRequest) -> Option<AudienceSnapshot> {
        let now = self.core.cx.moment();
        self.core
            .table
            .get(request)
            .map(|entry| AudienceSnapshot::of(&entry, now))
    }

    /// The time by the cache's clock, which only grows.
    pub(crate) fn monotonic(&self) -> Duration {
        self.core.cx.clock.monotonic()
    }

    /// A request went to an origin that no token may go to.
    pub(crate) fn passed_without_token(&self) {
        self.core.cx.unmatched();
    }

    /// A fresh token, without taking hold of anything.
    #[inline]
    fn hit(&self, request: &SvidRequest) -> Option<HeaderValue> {
        let cx = &self.core.cx;
        if cx.is_closed() {
            return None;
        }
        let now = cx.moment();
        let header = self.core.table.with(request, |entry| {
            entry.touch(now);
            hot::fresh(entry, now, |token| token.header.clone())
        });
        let header = header.flatten()?;
        cx.hit();
        Some(header)
    }

    /// A token, or the wait for one.
    pub(crate) fn issue(&self, request: &SvidRequest) -> Result<Issue, TokenError> {
        loop {
            let make = || self.core.entry(request);
            let entry = self
                .core
                .table
                .get_or_insert(request, false, make)
                .ok_or_else(|| {
                    self.core.cx.missed();
                    self.core.cx.no_token();
                    TokenError::full(request)
                })?;
            // An entry that was evicted after it was found is looked up anew.
            if let Some(issue) = pin::issue(&entry) {
                return issue;
            }
        }
    }
}

impl Core {
    fn entry(&self, request: &SvidRequest) -> Arc<Entry> {
        // From 1: 0 is nobody's.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Entry::new(
            id,
            request.clone(),
            self.cx.clone(),
            self.cx.moment(),
        ))
    }
}

impl fmt::Debug for SvidCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidCache")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
