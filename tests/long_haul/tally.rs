//! Counts of what happened, to show that the test did something.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! tally {
    ($($name:ident: $what:literal),* $(,)?) => {
        #[derive(Default)]
        pub(crate) struct Tally { $(pub(crate) $name: Count,)* }

        impl Tally {
            /// Returns a count that is zero but must not be in a long run.
            pub(crate) fn missing(&self) -> Option<&'static str> {
                let all = [$((&self.$name, stringify!($name), $what),)*];
                all.into_iter()
                    .find(|(count, name, _)| count.get() == 0 && !MAYBE.contains(name))
                    .map(|(_, _, what)| what)
            }
        }

        impl std::fmt::Display for Tally {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $(write!(f, "{} {}, ", self.$name.get(), $what)?;)*
                Ok(())
            }
        }
    };
}

/// These may be zero.
const MAYBE: [&str; 3] = ["unclear", "failed", "starts_failed"];

tally! {
    accepted: "accepted tokens",
    rejected: "rejected tokens",
    unavailable: "results without bundles",
    unclear: "results while the set changed",
    removed_keys: "rejected tokens of removed keys",
    sent: "tokens sent",
    answered: "responses",
    failed: "requests that failed with a `TokenError`",
    abandoned: "abandoned",
    calls: "calls without the cache",
    starts: "sources started",
    starts_failed: "sources that failed to start",
}

#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
