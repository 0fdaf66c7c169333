//! Counts of the verified cache.

use crate::metrics::{Count, StripedCount};

/// What a verified cache did since it was made, and what it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifiedCacheStats {
    /// Tokens that were there, with an authority and a time that still count.
    pub hits: u64,
    /// Tokens that were not.
    pub misses: u64,
    /// Entries that went because room was wanted.
    pub evictions: u64,
    /// Entries now.
    pub entries: usize,
    /// Their size in bytes, about; without what each thread has at hand beside them
    /// ([`cache_bytes`](crate::verify::ValidatorBuilder::cache_bytes)).
    pub bytes: u64,
}

/// Hits are counted on every thread's hot path; the rest comes with a signature check.
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
