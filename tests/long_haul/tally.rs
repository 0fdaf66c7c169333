//! What was done, to show that the test did something.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! tally {
    ($($name:ident: $what:literal),* $(,)?) => {
        #[derive(Default)]
        pub(crate) struct Tally { $(pub(crate) $name: Count,)* }

        impl Tally {
            /// What never happened, of all that must in any long run.
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

/// A matter of luck.
const MAYBE: [&str; 3] = ["unclear", "failed", "starts_failed"];

tally! {
    admitted: "verdicts that admitted",
    refused: "that refused",
    could_not_judge: "that could not judge",
    unclear: "while the set changed",
    gone: "refusals of a key that was served before",
    sent: "tokens sent",
    answered: "requests answered",
    failed: "failed with an error of ours",
    abandoned: "abandoned",
    calls: "calls without the cache",
    starts: "sources started",
    starts_failed: "that could not start",
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
