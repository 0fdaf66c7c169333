//! Counters that start at zero.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const STRIPES: usize = 16;

/// A count.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A count for hot paths, spread over stripes so that threads do not share a cache line. Threads
/// take the stripes in turn.
#[derive(Default)]
pub(crate) struct StripedCount([Stripe; STRIPES]);

/// 128 bytes, because some machines fetch cache lines in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Stripe(Count);

impl StripedCount {
    #[inline]
    pub(crate) fn increment(&self) {
        if let Some(Stripe(count)) = self.0.get(stripe_of_thread()) {
            count.increment();
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.iter().map(|Stripe(count)| count.get()).sum()
    }
}

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
