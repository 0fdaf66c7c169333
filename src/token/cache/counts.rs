//! Counts of the token cache.

use crate::metrics::{Count, StripedCount};

/// The counters of a cache.
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

/// The counts of a [`SvidCache`](super::SvidCache) since it was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SvidCacheStats {
    /// Requests whose token was in the cache.
    pub hits: u64,
    /// Requests that had to wait, or failed.
    pub misses: u64,
    /// Requests that got no token.
    pub errors: u64,
    /// Calls to the issuer that ended.
    pub fetches: u64,
    /// The number of these calls that returned no token.
    pub failures: u64,
    /// The number of these calls that returned the token that the cache already had.
    pub unchanged: u64,
    /// Fetches that were lost because their runtime ended.
    pub lost: u64,
    /// Audiences that were evicted.
    pub evicted: u64,
    /// Tokens that were refreshed early because a service rejected them.
    pub rejections: u64,
    /// The number of times that the breaker opened because the issuer did not respond.
    pub breaker_opened: u64,
    /// Requests to an origin without an audience.
    pub unmatched: u64,
    /// Audiences in the cache now.
    pub entries: usize,
    /// Whether the breaker is open now.
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
