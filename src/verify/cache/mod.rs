//! The verified cache: tokens that were verified, and the authorities that they were verified with.
//!
//! Two levels. The second is shared, bounded by bytes, and resists scans: many new tokens do not evict
//! frequent ones. The first is small and belongs to one thread, because reference counts on a shared
//! cache line are slow. Entries of one validator there never exceed the limit of its second level.

mod first;
mod second;
mod stats;
#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use quick_cache::DefaultHashBuilder;

use self::first::Owner;
use self::second::SecondLevel;
use self::stats::Counters;
pub use self::stats::VerifiedCacheStats;
use super::VerifiedSvid;
use super::verified::Verified;
use crate::bundle::{BundleAnswer, BundleSource};

pub(super) struct VerifiedCache {
    owner: Arc<Owner>,
    // A new seed for each cache.
    hasher: DefaultHashBuilder,
    second: SecondLevel,
    counters: Arc<Counters>,
}

impl Drop for VerifiedCache {
    fn drop(&mut self) {
        self.owner.mark_dropped();
    }
}

/// Whether the times of an entry are valid.
pub(super) enum Time {
    Valid,
    /// It is not valid now, but may be later.
    NotNow,
    /// It has expired.
    Past,
}

impl VerifiedCache {
    pub(super) fn new(bytes: usize) -> Self {
        let counters = Arc::new(Counters::default());
        Self {
            owner: Arc::new(Owner::new(bytes)),
            hasher: DefaultHashBuilder::default(),
            second: SecondLevel::new(bytes, Arc::clone(&counters)),
            counters,
        }
    }

    pub(super) fn hash(&self, token: &str) -> u64 {
        self.hasher.hash_one(token.as_bytes())
    }

    /// The verified token with exactly this text, if its times are valid and the source still has its
    /// authority.
    pub(super) fn get(
        &self,
        hash: u64,
        token: &str,
        revision: u64,
        source: &dyn BundleSource,
        time: impl Fn(&Verified) -> Time,
    ) -> Option<VerifiedSvid> {
        let found = first::get(&self.owner, hash, token);
        let (svid, seen_at, wants_touch) = match found {
            Some(found) => (found.svid, Some(found.revision), found.wants_touch),
            None => {
                let verified = self.second.get(hash, token)?;
                (VerifiedSvid::new(verified), None, false)
            }
        };
        match time(svid.shared()) {
            Time::Valid => {}
            Time::NotNow => return None,
            // It will not be valid again, and takes space from valid entries.
            Time::Past => {
                self.remove(hash, token);
                return None;
            }
        }
        if seen_at == Some(revision) {
            if wants_touch {
                self.second.touch(hash, token);
            }
            return Some(svid);
        }
        if !is_current(svid.shared(), revision, source) {
            self.remove(hash, token);
            return None;
        }
        first::put(&self.owner, revision, &svid);
        Some(svid)
    }

    /// Counts a lookup.
    pub(super) fn count(&self, hit: bool) {
        if hit {
            self.counters.hits.increment();
        } else {
            self.counters.misses.increment();
        }
    }

    fn remove(&self, hash: u64, token: &str) {
        first::remove(&self.owner, hash, token);
        self.second.remove(hash, token);
    }

    /// Stores a token that was just verified. In the first level it replaces no entry: only tokens that
    /// are seen again do.
    pub(super) fn insert(&self, svid: &VerifiedSvid) {
        let revision = svid.shared().revision.load(Ordering::Acquire);
        first::put_if_free(&self.owner, revision, svid);
        self.second.insert(svid.shared());
    }

    pub(super) fn stats(&self) -> VerifiedCacheStats {
        self.counters.read(self.second.len(), self.second.bytes())
    }
}

/// Whether the source still has this authority for the trust domain and key ID: the same key, not only
/// the same ID.
fn is_current(verified: &Verified, revision: u64, source: &dyn BundleSource) -> bool {
    if verified.revision.load(Ordering::Acquire) == revision {
        return true;
    }
    let Some(authority) = verified.signer.authority() else {
        return false;
    };
    let BundleAnswer::Ready(bundle) = source.bundle(verified.spiffe_id.trust_domain_name()) else {
        return false;
    };
    let current = bundle
        .authority(authority.key_id())
        .is_some_and(|current| Arc::ptr_eq(current, authority) || current == authority);
    if current {
        // The revision was read before the bundle, so it is never newer.
        verified.revision.store(revision, Ordering::Release);
    }
    current
}
