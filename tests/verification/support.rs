//! What these tests share: a source and a clock that can be swapped beneath a validator.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tower_spiffe::bundle::{BundleAnswer, BundleSource, CannotJudge, JwtBundleSet};
use tower_spiffe::{Clock, UnixTime};

/// Bundles that a test swaps; `Err` is a source that cannot judge.
#[derive(Clone)]
pub struct Swappable(Arc<State>);

struct State {
    answer: RwLock<Result<JwtBundleSet, CannotJudge>>,
    revision: AtomicU64,
}

impl Swappable {
    pub fn new(set: JwtBundleSet) -> Self {
        Self(Arc::new(State {
            answer: RwLock::new(Ok(set)),
            revision: AtomicU64::new(0),
        }))
    }

    pub fn set(&self, answer: Result<JwtBundleSet, CannotJudge>) {
        *self.0.answer.write().unwrap() = answer;
        self.0.revision.fetch_add(1, Ordering::SeqCst);
    }
}

impl BundleSource for Swappable {
    fn revision(&self) -> Result<u64, CannotJudge> {
        let judges = self.0.answer.read().unwrap().as_ref().err().copied();
        match judges {
            Some(why) => Err(why),
            None => Ok(self.0.revision.load(Ordering::SeqCst)),
        }
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        match &*self.0.answer.read().unwrap() {
            Err(why) => BundleAnswer::CannotJudge(*why),
            Ok(set) => match set.get(trust_domain) {
                Some(bundle) => BundleAnswer::Ready(bundle.clone()),
                None => BundleAnswer::UnknownTrustDomain,
            },
        }
    }
}

/// A clock that a test sets.
#[derive(Default)]
pub struct HandClock(std::sync::RwLock<Option<UnixTime>>);

impl HandClock {
    pub fn at(secs: i64) -> Arc<Self> {
        let clock = Self::default();
        clock.set(UnixTime::from_secs(secs));
        Arc::new(clock)
    }

    pub fn set(&self, now: UnixTime) {
        *self.0.write().unwrap() = Some(now);
    }
}

impl Clock for HandClock {
    fn now(&self) -> UnixTime {
        self.0.read().unwrap().unwrap()
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}
