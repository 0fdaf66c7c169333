//! The shared level: bounded by bytes, scan-resistant.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, Weighter};

use super::stats::Counters;
use crate::verify::verified::Verified;

/// By the hash of the token. The whole token is compared too, so hash collisions cannot be exploited:
/// of two tokens with one hash, the later one stays.
pub(super) struct SecondLevel {
    cache: Cache<u64, Arc<Verified>, Bytes, Prehashed, CountEvictions>,
}

impl SecondLevel {
    pub(super) fn new(bytes: usize, counters: Arc<Counters>) -> Self {
        // With an estimate of 2 KiB per entry, no shard is smaller than 64 KiB: each can hold the
        // longest token.
        let entries = (bytes / 2048).max(1);
        let evictions = CountEvictions(counters);
        Self {
            cache: Cache::with(entries, bytes as u64, Bytes, Prehashed, evictions),
        }
    }

    pub(super) fn get(&self, hash: u64, token: &str) -> Option<Arc<Verified>> {
        let verified = self.cache.get(&hash)?;
        (*verified.token == *token).then_some(verified)
    }

    /// Marks the entry as used, although the first level returned it.
    pub(super) fn touch(&self, hash: u64, token: &str) {
        let _ = self.get(hash, token);
    }

    pub(super) fn remove(&self, hash: u64, token: &str) {
        self.cache
            .remove_if(&hash, |verified| *verified.token == *token);
    }

    pub(super) fn insert(&self, verified: &Arc<Verified>) {
        self.cache.insert(verified.hash, Arc::clone(verified));
    }

    pub(super) fn len(&self) -> usize {
        self.cache.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.cache.weight()
    }
}

/// The token is hashed once, for both levels.
#[derive(Clone, Copy)]
struct Prehashed;

impl BuildHasher for Prehashed {
    type Hasher = TakeHash;

    fn build_hasher(&self) -> TakeHash {
        TakeHash(0)
    }
}

struct TakeHash(u64);

impl Hasher for TakeHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[derive(Clone, Copy)]
struct Bytes;

impl Weighter<u64, Arc<Verified>> for Bytes {
    fn weight(&self, _: &u64, verified: &Arc<Verified>) -> u64 {
        verified.weight() as u64
    }
}

#[derive(Clone)]
struct CountEvictions(Arc<Counters>);

impl Lifecycle<u64, Arc<Verified>> for CountEvictions {
    // Held until the lock is released.
    type RequestState = Vec<Arc<Verified>>;

    fn on_evict(&self, state: &mut Self::RequestState, _: u64, verified: Arc<Verified>) {
        self.0.evictions.increment();
        state.push(verified);
    }
}
