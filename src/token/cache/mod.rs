//! The cache of this workload's tokens: one token for each audience, refreshed before it expires.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;

use crate::clock::Clock;
use crate::metrics::{MetricsRecorder, SvidCacheEvent};
use crate::presentable::debug_fields;
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

/// A cache of this workload's tokens, one for each [`SvidRequest`]. Clones share the cache.
#[derive(Clone)]
#[doc(alias = "refresh")]
pub struct SvidCache {
    core: Arc<Core>,
    // Dropped with the last clone and pin of this cache.
    alive: Option<Arc<dyn Any + Send + Sync>>,
}

struct Core {
    cx: Arc<Context>,
    table: Table,
}

impl SvidCache {
    /// Creates a cache over `fetcher` with the defaults.
    pub fn new(fetcher: impl FetchSvid) -> Self {
        Self::builder(fetcher).build()
    }

    /// Creates a builder for a cache over `fetcher`.
    pub fn builder(fetcher: impl FetchSvid) -> SvidCacheBuilder {
        SvidCacheBuilder::new(fetcher)
    }

    /// Returns the cache, which keeps `alive` until the last of its clones and pins is dropped.
    #[cfg(feature = "workload-api")]
    #[must_use]
    pub(crate) fn keeping_alive(self, alive: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            alive: Some(alive),
            ..self
        }
    }

    /// Returns the token for `request`: the cached one, or a fetched one.
    ///
    /// # Errors
    /// Returns a [`TokenError`] if no token can be sent and none arrived in time.
    pub async fn get(&self, request: &SvidRequest) -> Result<JwtSvid, TokenError> {
        Ok(self.issue(request)?.settle().await?.svid())
    }

    /// Returns the token for `request` as the value of an `authorization` header: `Bearer …`,
    /// marked sensitive.
    ///
    /// # Errors
    /// Returns the same errors as [`get`](Self::get).
    pub async fn header(&self, request: &SvidRequest) -> Result<HeaderValue, TokenError> {
        if let Some(header) = self.hit(request) {
            return Ok(header);
        }
        Ok(self.issue(request)?.settle().await?.header())
    }

    /// Returns the header if a token can be sent now; otherwise returns `None` and starts a fetch.
    /// Never waits. For a [`single_use`](SvidRequest::single_use) request it always returns `None`,
    /// without a fetch.
    pub fn try_header(&self, request: &SvidRequest) -> Option<HeaderValue> {
        if request.is_single_use() {
            return None;
        }
        if let Some(header) = self.hit(request) {
            return Some(header);
        }
        Some(self.issue(request).ok()?.at_once()?.header())
    }

    /// Returns a handle on the token for `request` that needs no look-up. Its audience is never
    /// evicted.
    pub fn pin(&self, request: SvidRequest) -> PinnedSvid {
        let make = || self.core.entry(&request);
        // A pin is accepted even if the table is full.
        let entry = self.core.table.get_or_insert(&request, true, make);
        let entry = entry.unwrap_or_else(|| self.core.entry(&request));
        PinnedSvid::new(entry, Arc::downgrade(&self.core), self.alive.clone())
    }

    /// Keeps the tokens for these requests fresh even if no request needs them, with one task for
    /// all of them, until the returned value is dropped.
    ///
    /// It does not keep the source open: when the source is shut down, the task ends. Requests for
    /// [`single_use`](SvidRequest::single_use) tokens are ignored.
    ///
    /// # Errors
    /// There is no tokio runtime with timers here, and the cache was not built on one.
    pub fn keep_warm(
        &self,
        requests: impl IntoIterator<Item = SvidRequest>,
    ) -> Result<KeepWarm, TokenError> {
        let mut here = self.clone();
        here.alive = None;
        let pins = requests.into_iter().map(|request| here.pin(request));
        warm::keep(&self.core.cx, pins.collect())
    }

    /// Reports that signing keys were removed: `removed` is called with the name of a trust domain
    /// and a key ID. The next request for a token that such a key signed waits up to 250 ms for
    /// another one, once per removal, then sends the old one. Tokens without requests, which are
    /// only kept warm, are refreshed within 5 s.
    #[cfg(feature = "workload-api")]
    pub(crate) fn authorities_removed(&self, removed: &dyn Fn(&str, &str) -> bool) {
        let now = self.core.cx.moment();
        let signed_by_removed = |token: &Token| {
            let trust_domain = token.svid.spiffe_id().trust_domain_name();
            let key_id = token.svid.key_id();
            key_id.is_some_and(|key_id| removed(trust_domain, key_id))
        };
        // In a fixed order: each entry draws a random delay, and tests with a seed must be
        // repeatable.
        let mut entries = self.core.table.all();
        entries.sort_unstable_by_key(|entry| entry.id);
        for entry in entries {
            entry.keys_removed(signed_by_removed, now);
        }
        self.core.cx.nudge.notify_waiters();
    }

    /// Reports that a service rejected the token in `header`. If it is still the current one, the
    /// next request starts a refresh, at most once per 10 s. Returns whether it does.
    pub fn report_refused(&self, request: &SvidRequest, header: &HeaderValue) -> bool {
        let Some(entry) = self.core.table.get(request) else {
            return false;
        };
        let token = entry.token.load_full();
        let sent = token.filter(|token| token.header == *header);
        sent.is_some_and(|token| pin::rejected(&entry, token.generation))
    }

    /// Ends the fetches in progress. From now on every request fails with
    /// [`TokenErrorReason::Closed`].
    pub fn close(&self) {
        self.core.cx.close();
        for entry in self.core.table.all() {
            entry.end_fetch();
        }
    }

    /// Returns the counts since the cache was built.
    pub fn stats(&self) -> SvidCacheStats {
        let cx = &self.core.cx;
        let table = &self.core.table;
        cx.counts
            .stats(table.len(), table.evicted(), cx.breaker.is_open())
    }

    /// Returns the current state of every audience in the cache, in any order.
    pub fn snapshot(&self) -> Vec<AudienceSnapshot> {
        let (now, entries) = (self.core.cx.moment(), self.core.table.all());
        let snapshot = |entry: &Arc<Entry>| AudienceSnapshot::of(entry, now);
        entries.iter().map(snapshot).collect()
    }

    /// Returns the current state of one audience. `None` if it is not in the cache.
    pub fn snapshot_of(&self, request: &SvidRequest) -> Option<AudienceSnapshot> {
        let entry = self.core.table.get(request)?;
        Some(AudienceSnapshot::of(&entry, self.core.cx.moment()))
    }

    /// The recorder, for objects that are made from this cache.
    pub(crate) fn recorder(&self) -> Arc<dyn MetricsRecorder> {
        match &self.core.cx.metrics {
            Some(metrics) => metrics.clone(),
            None => Arc::new(()),
        }
    }

    #[cfg(feature = "oauth")]
    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.core.cx.clock
    }

    /// The time on the monotonic clock of the cache.
    pub(crate) fn monotonic(&self) -> Duration {
        self.core.cx.clock.monotonic()
    }

    /// Counts a request to an origin without an audience.
    pub(crate) fn passed_without_token(&self) {
        self.core.cx.record(SvidCacheEvent::Unmatched);
    }

    /// Returns a fresh token, without cloning its entry.
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
        cx.record(SvidCacheEvent::Hit);
        Some(header)
    }

    /// A token, or the wait for one.
    pub(crate) fn issue(&self, request: &SvidRequest) -> Result<Issue, TokenError> {
        loop {
            let make = || self.core.entry(request);
            let entry = self.core.table.get_or_insert(request, false, make);
            let entry = entry.ok_or_else(|| {
                self.core.cx.record(SvidCacheEvent::Miss);
                self.core.cx.record(SvidCacheEvent::Error);
                TokenError::full(request)
            })?;
            // An entry that was evicted after the look-up is looked up again.
            if let Some(issue) = pin::issue(&entry) {
                return issue;
            }
        }
    }
}

impl Core {
    fn entry(&self, request: &SvidRequest) -> Arc<Entry> {
        // From 1, because 0 means no entry.
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

debug_fields!(SvidCache, |it| { stats: it.stats() });
