//! A counter for hot paths: threads that count do not share a cache line.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const STRIPES: usize = 16;

/// A count, spread over stripes; threads take the stripes in turn.
#[derive(Default)]
pub(crate) struct StripedCount([Stripe; STRIPES]);

/// 128 bytes, because some machines fetch cache lines in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Stripe(AtomicU64);

impl StripedCount {
    #[inline]
    pub(crate) fn increment(&self) {
        if let Some(Stripe(count)) = self.0.get(stripe_of_thread()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn sum(&self) -> u64 {
        self.0
            .iter()
            .map(|Stripe(count)| count.load(Ordering::Relaxed))
            .sum()
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
