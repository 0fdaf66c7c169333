//! The level of each thread: a small four-way table.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::verify::VerifiedSvid;

const SETS: usize = 64;
const WAYS: usize = 4;

/// Heavier entries stay in the second level: no thread holds more than 640 KiB here, the table
/// included.
const MAX_WEIGHT: usize = 2400;

/// The number of dropped caches. If it has risen, a thread removes their entries from its table.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// The cache of an entry: all validators share the table of a thread.
pub(super) struct Owner {
    max_weight: usize,
    dropped: AtomicBool,
}

impl Owner {
    /// The owner of entries that, all together, are not heavier than this.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            max_weight: MAX_WEIGHT.min(bytes / (SETS * WAYS)),
            dropped: AtomicBool::new(false),
        }
    }

    /// Marks the cache as dropped. Each thread removes its entries at its next insertion.
    pub(super) fn mark_dropped(&self) {
        self.dropped.store(true, Ordering::Release);
        DROPPED.fetch_add(1, Ordering::Release);
    }
}

/// After so many hits, the second level learns that the entry is in use.
const TOUCH_EVERY: u32 = 512;

/// An entry that a thread found for a token.
pub(super) struct Found {
    pub(super) svid: VerifiedSvid,
    pub(super) revision: u64,
    pub(super) wants_touch: bool,
}

struct Way {
    owner: Arc<Owner>,
    hash: u64,
    revision: u64,
    hits: u32,
    used_at: u32,
    svid: VerifiedSvid,
}

#[derive(Default)]
struct FirstLevel {
    sets: Vec<[Option<Way>; WAYS]>,
    // Counts uses; wraps, after which one replacement may be a poor choice.
    clock: u32,
    // The number of dropped caches at the last clearing.
    dropped: u64,
}

thread_local! {
    static LEVEL: RefCell<FirstLevel> = const { RefCell::new(FirstLevel { sets: Vec::new(), clock: 0, dropped: 0 }) };
}

pub(super) fn get(owner: &Arc<Owner>, hash: u64, token: &str) -> Option<Found> {
    with(|level| {
        level.clock = level.clock.wrapping_add(1);
        let clock = level.clock;
        let way = level
            .set(hash)?
            .iter_mut()
            .flatten()
            .find(|way| way.is(owner, hash, token))?;
        way.hits = way.hits.wrapping_add(1);
        way.used_at = clock;
        Some(Found {
            svid: way.svid.clone(),
            revision: way.revision,
            wants_touch: way.hits.is_multiple_of(TOUCH_EVERY),
        })
    })
}

/// Inserts a token that was seen again, in place of the least recently used one.
pub(super) fn put(owner: &Arc<Owner>, revision: u64, svid: &VerifiedSvid) {
    place(owner, revision, svid, true);
}

/// Inserts a token that is new, if there is a free slot.
pub(super) fn put_if_free(owner: &Arc<Owner>, revision: u64, svid: &VerifiedSvid) {
    place(owner, revision, svid, false);
}

pub(super) fn remove(owner: &Arc<Owner>, hash: u64, token: &str) {
    // Dropped outside of the borrow: the last handle of an entry may free a lot of memory.
    let _removed = with(|level| {
        let way = level
            .set(hash)?
            .iter_mut()
            .find(|way| way.as_ref().is_some_and(|way| way.is(owner, hash, token)))?;
        way.take()
    });
}

fn place(owner: &Arc<Owner>, revision: u64, svid: &VerifiedSvid, replace: bool) {
    let verified = svid.shared();
    if verified.weight() > owner.max_weight {
        return;
    }
    let _orphans = with(|level| level.clear_dropped());
    let _removed = with(|level| {
        if level.sets.is_empty() {
            level.sets.resize_with(SETS, Default::default);
        }
        level.clock = level.clock.wrapping_add(1);
        let clock = level.clock;
        let way = Way {
            owner: Arc::clone(owner),
            hash: verified.hash,
            revision,
            hits: 0,
            used_at: clock,
            svid: svid.clone(),
        };
        let set = level.set(verified.hash)?;
        if let Some(same) = set
            .iter_mut()
            .flatten()
            .find(|way| way.is(owner, verified.hash, &verified.token))
        {
            return Some(std::mem::replace(same, way));
        }
        let room = match set.iter().position(Option::is_none) {
            Some(free) => set.get_mut(free),
            None if replace => set.iter_mut().max_by_key(|way| {
                way.as_ref()
                    .map_or(u32::MAX, |way| clock.wrapping_sub(way.used_at))
            }),
            None => None,
        };
        room?.replace(way)
    });
}

/// Also `None` if the thread is ending, or if a source of bundles calls back into a validator.
fn with<T>(work: impl FnOnce(&mut FirstLevel) -> Option<T>) -> Option<T> {
    LEVEL
        .try_with(|level| work(&mut *level.try_borrow_mut().ok()?))
        .ok()
        .flatten()
}

impl FirstLevel {
    /// Removes the entries of dropped caches.
    fn clear_dropped(&mut self) -> Option<Vec<Way>> {
        let dropped = DROPPED.load(Ordering::Acquire);
        if std::mem::replace(&mut self.dropped, dropped) == dropped {
            return None;
        }
        let is_orphan = |way: &mut Way| way.owner.dropped.load(Ordering::Acquire);
        let ways = self.sets.iter_mut().flatten();
        Some(ways.filter_map(|way| way.take_if(is_orphan)).collect())
    }

    fn set(&mut self, hash: u64) -> Option<&mut [Option<Way>; WAYS]> {
        // The top bits: the second level uses the others.
        let set = (hash >> (u64::BITS - SETS.ilog2())) as usize;
        self.sets.get_mut(set)
    }
}

impl Way {
    fn is(&self, owner: &Arc<Owner>, hash: u64, token: &str) -> bool {
        Arc::ptr_eq(&self.owner, owner) && self.hash == hash && *self.svid.shared().token == *token
    }
}
