//! What the cache counts, without threads getting in each other's way.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

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

/// Each thread counts on one of these; there is a cache line (or two, as some machines fetch them
/// in pairs) between them.
#[derive(Default)]
#[repr(align(128))]
struct Stripe {
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
}

const STRIPES: usize = 16;

#[derive(Default)]
pub(super) struct Counters {
    stripes: [Stripe; STRIPES],
}

impl Counters {
    pub(super) fn hit(&self) {
        self.count(|stripe| &stripe.hits);
    }

    pub(super) fn miss(&self) {
        self.count(|stripe| &stripe.misses);
    }

    pub(super) fn eviction(&self) {
        self.count(|stripe| &stripe.evictions);
    }

    fn count(&self, counter: impl Fn(&Stripe) -> &AtomicU64) {
        if let Some(stripe) = self.stripes.get(stripe_of_thread()) {
            counter(stripe).fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self, entries: usize, bytes: u64) -> VerifiedCacheStats {
        let sum = |counter: fn(&Stripe) -> &AtomicU64| {
            let counts = self.stripes.iter().map(counter);
            counts.map(|count| count.load(Ordering::Relaxed)).sum()
        };
        VerifiedCacheStats {
            hits: sum(|stripe| &stripe.hits),
            misses: sum(|stripe| &stripe.misses),
            evictions: sum(|stripe| &stripe.evictions),
            entries,
            bytes,
        }
    }
}

/// Threads take the stripes in turn.
fn stripe_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    STRIPE
        .try_with(|stripe| {
            if stripe.get() == usize::MAX {
                stripe.set(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
            }
            stripe.get()
        })
        .unwrap_or(0)
}
