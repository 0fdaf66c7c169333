//! Which entry is for which request; bounded.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::entry::Entry;
use crate::token::SvidRequest;

const SHARDS: usize = 16;
/// Of so many, the one that was not used for the longest time goes.
const SAMPLE: usize = 8;

/// The entries, by what they were asked for.
pub(crate) struct Table {
    shards: [RwLock<Shard>; SHARDS],
    len: AtomicUsize,
    /// Of them, those that are pinned.
    pinned: AtomicUsize,
    /// The most of the others.
    max: usize,
    evicted: AtomicU64,
}

#[derive(Default)]
struct Shard {
    index: HashSet<Keyed, BuildHasherDefault<AsIs>>,
    /// The same entries, to draw from; an entry knows its place here.
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

/// Hashes what brings its own hash, as a request does.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    #[inline]
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

fn hash(request: &SvidRequest) -> u64 {
    let mut hasher = AsIs::default();
    request.hash(&mut hasher);
    hasher.finish()
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
        // Other bits than those that choose the place in the shard.
        usize::try_from(hash(request) >> 32)
            .ok()
            .and_then(|at| self.shards.get(at % SHARDS))
            .unwrap_or(first)
    }

    pub(crate) fn get(&self, request: &SvidRequest) -> Option<Arc<Entry>> {
        read(self.shard(request))
            .index
            .get(request)
            .map(|keyed| keyed.0.clone())
    }

    /// Looks at the entry of `request` without taking hold of it.
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

    /// The entry of `request`, made with `make` where there is none; pinned before anyone could
    /// evict it, where `pin`. `None` where the table is full of entries that must stay.
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
            // Before the lock: it looks into every shard.
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

    /// How many gave way to others.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Every entry there is now.
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.shards
            .iter()
            .flat_map(|shard| read(shard).slots.clone())
            .collect()
    }

    /// Makes room for one more. One goes for it; and another, where pins left more than there
    /// should be. Whether there is room.
    fn make_room(&self) -> bool {
        let mut gone = 0;
        while gone < 2 && self.is_full() && self.evict_one() {
            gone += 1;
        }
        gone > 0 || !self.is_full()
    }

    fn is_full(&self) -> bool {
        let pinned = self.pinned.load(Ordering::Relaxed);
        self.len() >= self.max.saturating_add(pinned)
    }

    fn evict_one(&self) -> bool {
        // A few at random; only where none of them may go, all.
        let sample = (0..SAMPLE * 2)
            .filter_map(|_| self.any())
            .filter(|entry| entry.may_go());
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
        let gone = self.remove(entry, Entry::retire);
        if gone {
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
        gone
    }

    /// The last pin of an entry is gone; with it the entry, where it was never asked for.
    pub(crate) fn unpinned(&self, entry: &Arc<Entry>) {
        self.pinned.fetch_sub(1, Ordering::Relaxed);
        self.remove(entry, Entry::retire_unused);
    }

    fn remove(&self, entry: &Arc<Entry>, retire: impl FnOnce(&Entry) -> bool) -> bool {
        let mut shard = write(self.shard(&entry.request));
        // With the shard locked nobody can pin it; from here on it starts no fetch.
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
