//! The verified cache: tokens that were verified, and the authorities that they were verified with.
//!
//! Two levels. The second is shared, bounded by bytes, and resists scans: a flood of fresh tokens
//! does not push out the regulars. The first is each thread's own and small, because threads that
//! count on one cache line stand in each other's way.

mod first;
mod second;
mod stats;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::DefaultHashBuilder;

use self::second::SecondLevel;
pub use self::stats::CacheStats;
use self::stats::Counters;
use super::VerifiedSvid;
use super::verified::Verified;
use crate::bundle::{BundleAnswer, BundleSource};

pub(super) struct VerifiedCache {
    // The first level is shared by all validators of a thread: this tells them apart.
    id: u64,
    // Seeded anew for each cache.
    hasher: DefaultHashBuilder,
    second: SecondLevel,
    counters: Arc<Counters>,
}

impl VerifiedCache {
    pub(super) fn new(bytes: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let counters = Arc::new(Counters::default());
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            hasher: DefaultHashBuilder::default(),
            second: SecondLevel::new(bytes, Arc::clone(&counters)),
            counters,
        }
    }

    pub(super) fn hash(&self, token: &str) -> u64 {
        self.hasher.hash_one(token.as_bytes())
    }

    /// What was verified under this very text, if the authority is still the one that the source
    /// has. The times are the caller's to judge.
    pub(super) fn get(
        &self,
        hash: u64,
        token: &str,
        revision: u64,
        source: &dyn BundleSource,
    ) -> Option<VerifiedSvid> {
        let found = first::get(self.id, hash, token);
        let svid = match found {
            Some(found) if found.revision == revision => {
                if found.wants_touch {
                    self.second.touch(hash, token);
                }
                self.counters.hit();
                return Some(found.svid);
            }
            Some(found) => found.svid,
            None => match self.second.get(hash, token) {
                Some(verified) => VerifiedSvid::new(verified),
                None => {
                    self.counters.miss();
                    return None;
                }
            },
        };
        if !is_current(svid.shared(), revision, source) {
            first::remove(self.id, hash, token);
            self.second.remove(hash, token);
            self.counters.miss();
            return None;
        }
        first::put(self.id, revision, &svid);
        self.counters.hit();
        Some(svid)
    }

    /// Keeps what was just verified. It does not push anything out of the first level: only what
    /// is seen again may.
    pub(super) fn insert(&self, svid: &VerifiedSvid) {
        let revision = svid.shared().revision.load(Ordering::Acquire);
        first::put_if_free(self.id, revision, svid);
        self.second.insert(svid.shared());
    }

    pub(super) fn stats(&self) -> CacheStats {
        self.counters.read(self.second.len(), self.second.bytes())
    }
}

/// Whether the authority is still the one that the source has for this trust domain and key ID:
/// the same key, not only the same name.
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
        // The revision was read before the bundle, so that it is never newer than it.
        verified.revision.store(revision, Ordering::Release);
    }
    current
}
