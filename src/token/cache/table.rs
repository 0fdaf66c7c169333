//! The entries by request; bounded.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::entry::Entry;
use crate::token::SvidRequest;

const SHARDS: usize = 16;
/// The sample size of an eviction: the least recently used entry of the sample is evicted.
const SAMPLE: usize = 8;

/// The entries by request.
pub(crate) struct Table {
    shards: [RwLock<Shard>; SHARDS],
    len: AtomicUsize,
    /// The number of pinned entries.
    pinned: AtomicUsize,
    /// The maximum number of entries that are not pinned.
    max: usize,
    evicted: AtomicU64,
}

#[derive(Default)]
struct Shard {
    index: HashSet<Keyed>,
    /// The same entries, to pick one at random. Each entry stores its index.
    slots: Vec<Arc<Entry>>,
}

/// An entry as a member of a set, by its request.
struct Keyed(Arc<Entry>);

impl Borrow<SvidRequest> for Keyed {
    fn borrow(&self) -> &SvidRequest {
        &self.0.request
    }
}

impl PartialEq for Keyed {
    fn eq(&self, other: &Self) -> bool {
        self.0.request == other.0.request
    }
}

impl Eq for Keyed {}

impl Hash for Keyed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.request.hash(state);
    }
}

impl Table {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            shards: Default::default(),
            len: AtomicUsize::new(0),
            pinned: AtomicUsize::new(0),
            max: max.max(1),
            evicted: AtomicU64::new(0),
        }
    }

    fn shard(&self, request: &SvidRequest) -> &RwLock<Shard> {
        let [first, ..] = &self.shards;
        self.shards.get(request.shard(SHARDS)).unwrap_or(first)
    }

    pub(crate) fn get(&self, request: &SvidRequest) -> Option<Arc<Entry>> {
        self.with(request, Arc::clone)
    }

    /// Looks at the entry of `request` without cloning it.
    pub(crate) fn with<T>(
        &self,
        request: &SvidRequest,
        look: impl FnOnce(&Arc<Entry>) -> T,
    ) -> Option<T> {
        read(self.shard(request))
            .index
            .get(request)
            .map(|keyed| look(&keyed.0))
    }

    /// Returns the entry of `request`, or adds the one from `make`. With `pin`, it is pinned before
    /// it can be evicted. `None` if the table is full of entries that cannot be evicted.
    pub(crate) fn get_or_insert(
        &self,
        request: &SvidRequest,
        pin: bool,
        make: impl FnOnce() -> Arc<Entry>,
    ) -> Option<Arc<Entry>> {
        if !pin {
            if let Some(entry) = self.get(request) {
                return Some(entry);
            }
            // Done before the lock, because it reads every shard.
            if !self.make_room() {
                return None;
            }
        }
        let mut shard = write(self.shard(request));
        let entry = match shard.index.get(request) {
            Some(keyed) => keyed.0.clone(),
            None => {
                let entry = make();
                entry.place.store(shard.slots.len(), Ordering::Relaxed);
                shard.slots.push(entry.clone());
                shard.index.insert(Keyed(entry.clone()));
                self.len.fetch_add(1, Ordering::Relaxed);
                entry
            }
        };
        if pin && entry.pins.fetch_add(1, Ordering::Relaxed) == 0 {
            self.pinned.fetch_add(1, Ordering::Relaxed);
        }
        Some(entry)
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// The number of evicted entries.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Returns all current entries.
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.shards
            .iter()
            .flat_map(|shard| read(shard).slots.clone())
            .collect()
    }

    /// Makes room for one more entry. Evicts one, and a second one if there are still too many.
    /// Returns whether there is room.
    fn make_room(&self) -> bool {
        let mut evicted = 0;
        while evicted < 2 && self.is_full() && self.evict_one() {
            evicted += 1;
        }
        evicted > 0 || !self.is_full()
    }

    fn is_full(&self) -> bool {
        let pinned = self.pinned.load(Ordering::Relaxed);
        self.len() >= self.max.saturating_add(pinned)
    }

    fn evict_one(&self) -> bool {
        // Tries a random sample first, then all entries.
        let sample = (0..SAMPLE * 2)
            .filter_map(|_| self.any())
            .filter(|entry| entry.may_be_evicted());
        let oldest = |entries: &mut dyn Iterator<Item = Arc<Entry>>| {
            entries.min_by_key(|entry| entry.used.load(Ordering::Relaxed))
        };
        if oldest(&mut sample.take(SAMPLE)).is_some_and(|entry| self.evict(&entry)) {
            return true;
        }
        let mut all = self.all();
        all.sort_by_key(|entry| entry.used.load(Ordering::Relaxed));
        all.iter().any(|entry| self.evict(entry))
    }

    fn any(&self) -> Option<Arc<Entry>> {
        let shard = read(self.shards.get(fastrand::usize(..SHARDS))?);
        if shard.slots.is_empty() {
            return None;
        }
        shard
            .slots
            .get(fastrand::usize(..shard.slots.len()))
            .cloned()
    }

    fn evict(&self, entry: &Arc<Entry>) -> bool {
        let removed = self.remove(entry, Entry::retire);
        if removed {
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
        removed
    }

    /// The last pin of an entry was dropped. Removes the entry if it never started a fetch.
    pub(crate) fn unpinned(&self, entry: &Arc<Entry>) {
        self.pinned.fetch_sub(1, Ordering::Relaxed);
        self.remove(entry, Entry::retire_unused);
    }

    fn remove(&self, entry: &Arc<Entry>, retire: impl FnOnce(&Entry) -> bool) -> bool {
        let mut shard = write(self.shard(&entry.request));
        // With the shard locked it cannot be pinned, and a retired entry starts no fetch.
        if !retire(entry) || !shard.index.remove(&entry.request) {
            return false;
        }
        let place = entry.place.load(Ordering::Relaxed);
        if place < shard.slots.len() {
            shard.slots.swap_remove(place);
        }
        if let Some(moved) = shard.slots.get(place) {
            moved.place.store(place, Ordering::Relaxed);
        }
        self.len.fetch_sub(1, Ordering::Relaxed);
        true
    }
}

fn read(shard: &RwLock<Shard>) -> RwLockReadGuard<'_, Shard> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(shard: &RwLock<Shard>) -> RwLockWriteGuard<'_, Shard> {
    shard.write().unwrap_or_else(PoisonError::into_inner)
}
