//! Counts of the verified cache.

use crate::metrics::{Count, StripedCount};

/// The counters of a verified cache since it was created, and its size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifiedCacheStats {
    /// Lookups that found a token whose authority and times are still valid.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Entries that were evicted to make space.
    pub evictions: u64,
    /// The number of entries now.
    pub entries: usize,
    /// Their approximate size in bytes, without the entries that each thread keeps
    /// ([`cache_bytes`](crate::verify::ValidatorBuilder::cache_bytes)).
    pub bytes: u64,
}

/// Hits are counted on the hot path of every thread; the others come with a signature check.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) hits: StripedCount,
    pub(super) misses: Count,
    pub(super) evictions: Count,
}

impl Counters {
    pub(super) fn read(&self, entries: usize, bytes: u64) -> VerifiedCacheStats {
        VerifiedCacheStats {
            hits: self.hits.get(),
            misses: self.misses.get(),
            evictions: self.evictions.get(),
            entries,
            bytes,
        }
    }
}
