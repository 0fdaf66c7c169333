//! Counts of a cache that threads do not fight over.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const STRIPES: usize = 16;

/// What a cache did since it was made.
#[derive(Default)]
pub(crate) struct Counters {
    hits: [Stripe; STRIPES],
    misses: AtomicU64,
    errors: AtomicU64,
    fetches: AtomicU64,
    failures: AtomicU64,
    unchanged: AtomicU64,
    lost: AtomicU64,
    rejections: AtomicU64,
    breaker_opened: AtomicU64,
    unmatched: AtomicU64,
}

/// A count with a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Stripe(AtomicU64);

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

fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.try_with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
        }
        mine.get()
    })
    .unwrap_or(0)
}

impl Counters {
    #[inline]
    pub(crate) fn hit(&self) {
        if let Some(stripe) = self.hits.get(stripe()) {
            stripe.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn missed(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fetched(&self, ok: bool) {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        if !ok {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn unchanged(&self) {
        self.unchanged.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn rejected(&self) {
        self.rejections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unmatched(&self) {
        self.unmatched.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn breaker_opened(&self) {
        self.breaker_opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self, entries: usize, evicted: u64, breaker_open: bool) -> SvidCacheStats {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        SvidCacheStats {
            hits: self.hits.iter().map(|stripe| get(&stripe.0)).sum(),
            misses: get(&self.misses),
            errors: get(&self.errors),
            fetches: get(&self.fetches),
            failures: get(&self.failures),
            unchanged: get(&self.unchanged),
            lost: get(&self.lost),
            evicted,
            rejections: get(&self.rejections),
            breaker_opened: get(&self.breaker_opened),
            unmatched: get(&self.unmatched),
            entries,
            breaker_open,
        }
    }
}
