//! The shared level: bounded by bytes, scan-resistant.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Lifecycle, Weighter};

use super::stats::Counters;
use crate::verify::verified::Verified;

pub(super) struct SecondLevel {
    cache: Cache<Key, Arc<Verified>, Bytes, Prehashed, CountEvictions>,
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
        self.cache.get(&Wanted { hash, token })
    }

    /// Marks the entry as used, although the first level returned it.
    pub(super) fn touch(&self, hash: u64, token: &str) {
        let _ = self.get(hash, token);
    }

    pub(super) fn remove(&self, hash: u64, token: &str) {
        self.cache.remove(&Wanted { hash, token });
    }

    pub(super) fn insert(&self, verified: &Arc<Verified>) {
        self.cache
            .insert(Key(Arc::clone(verified)), Arc::clone(verified));
    }

    pub(super) fn len(&self) -> usize {
        self.cache.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.cache.weight()
    }
}

/// An entry is its own key. The whole token is compared, so hash collisions cannot be exploited.
#[derive(Clone)]
struct Key(Arc<Verified>);

struct Wanted<'a> {
    hash: u64,
    token: &'a str,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.token == other.0.token
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl Hash for Wanted<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Equivalent<Key> for Wanted<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.hash == key.0.hash && *self.token == *key.0.token
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

impl Weighter<Key, Arc<Verified>> for Bytes {
    fn weight(&self, _: &Key, verified: &Arc<Verified>) -> u64 {
        verified.weight() as u64
    }
}

#[derive(Clone)]
struct CountEvictions(Arc<Counters>);

impl Lifecycle<Key, Arc<Verified>> for CountEvictions {
    // Held until the lock is released.
    type RequestState = Vec<Arc<Verified>>;

    fn on_evict(&self, state: &mut Self::RequestState, _: Key, verified: Arc<Verified>) {
        self.0.evictions.increment();
        state.push(verified);
    }
}
