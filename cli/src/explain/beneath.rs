//! What lies beneath a validator: bundles that can be swapped, and clocks that are told the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tower_spiffe::bundle::{BundleAnswer, BundleSource, BundlesUnavailable, JwtBundleSet};
use tower_spiffe::clock::{Clock, UnixTime};

/// Bundles that are swapped while validators stand on them.
#[derive(Clone, Default)]
pub(crate) struct Swapped(Arc<State>);

#[derive(Default)]
struct State {
    set: RwLock<JwtBundleSet>,
    revision: AtomicU64,
}

impl Swapped {
    pub(crate) fn set(&self, set: JwtBundleSet) {
        *self.0.set.write().unwrap_or_else(PoisonError::into_inner) = set;
        // Raised after the change can be seen, as the contract says.
        self.0.revision.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn get(&self) -> JwtBundleSet {
        let set = self.0.set.read();
        set.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl BundleSource for Swapped {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        Ok(self.0.revision.load(Ordering::Acquire))
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        match self.get().get(trust_domain) {
            Some(bundle) => BundleAnswer::Ready(bundle.clone()),
            None => BundleAnswer::UnknownTrustDomain,
        }
    }
}

/// A clock that stands where it was put.
pub(crate) struct StillClock(RwLock<UnixTime>);

impl StillClock {
    pub(crate) fn at(now: UnixTime) -> Arc<Self> {
        Arc::new(Self(RwLock::new(now)))
    }

    pub(crate) fn set(&self, now: UnixTime) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

impl Clock for StillClock {
    fn now(&self) -> UnixTime {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}
