//! Counts of the token cache.

use crate::metrics::{Count, StripedCount};

/// What a cache did since it was made.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) hits: StripedCount,
    pub(crate) misses: Count,
    pub(crate) errors: Count,
    pub(crate) fetches: Count,
    pub(crate) failures: Count,
    pub(crate) unchanged: Count,
    pub(crate) lost: Count,
    pub(crate) rejections: Count,
    pub(crate) breaker_opened: Count,
    pub(crate) unmatched: Count,
}

/// What a [`SvidCache`](super::SvidCache) did since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SvidCacheStats {
    /// Requests for which a token was there.
    pub hits: u64,
    /// Requests that had to wait, or failed.
    pub misses: u64,
    /// Requests that got no token.
    pub errors: u64,
    /// Calls to the issuer that ended.
    pub fetches: u64,
    /// Of them, those that brought no token.
    pub failures: u64,
    /// Of them, those that brought the token that was there already.
    pub unchanged: u64,
    /// Fetches whose task was lost, with its runtime.
    pub lost: u64,
    /// Audiences that gave way to others.
    pub evicted: u64,
    /// Tokens that were refreshed early because a service refused them.
    pub rejections: u64,
    /// How often the issuer was given up for a while.
    pub breaker_opened: u64,
    /// Requests whose origin was none that a token may go to.
    pub unmatched: u64,
    /// Audiences in the cache now.
    pub entries: usize,
    /// Whether the issuer is given up for a while now.
    pub breaker_open: bool,
}

impl Counters {
    pub(crate) fn stats(&self, entries: usize, evicted: u64, breaker_open: bool) -> SvidCacheStats {
        SvidCacheStats {
            hits: self.hits.get(),
            misses: self.misses.get(),
            errors: self.errors.get(),
            fetches: self.fetches.get(),
            failures: self.failures.get(),
            unchanged: self.unchanged.get(),
            lost: self.lost.get(),
            evicted,
            rejections: self.rejections.get(),
            breaker_opened: self.breaker_opened.get(),
            unmatched: self.unmatched.get(),
            entries,
            breaker_open,
        }
    }
}
