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

/// How many caches are gone. A thread that finds more of them than before clears what they left.
static GONE: AtomicU64 = AtomicU64::new(0);

/// Whose an entry is: all validators of a thread share its table.
pub(super) struct Owner {
    max_weight: usize,
    gone: AtomicBool,
}

impl Owner {
    /// The owner of entries that, all together, are not heavier than this.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            max_weight: MAX_WEIGHT.min(bytes / (SETS * WAYS)),
            gone: AtomicBool::new(false),
        }
    }

    /// Each thread drops what it has of it, as soon as it puts something in.
    pub(super) fn leave(&self) {
        self.gone.store(true, Ordering::Release);
        GONE.fetch_add(1, Ordering::Release);
    }
}

/// After so many hits, the second level learns that the entry is in use.
const TOUCH_EVERY: u32 = 512;

/// What a thread has under a token.
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
    // Counts uses; wraps, which only makes one choice of what to replace a poor one.
    clock: u32,
    // How many caches were gone when it was cleared last.
    gone: u64,
}

thread_local! {
    static LEVEL: RefCell<FirstLevel> = const { RefCell::new(FirstLevel { sets: Vec::new(), clock: 0, gone: 0 }) };
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

/// Puts in what was seen again; what was used longest ago makes room.
pub(super) fn put(owner: &Arc<Owner>, revision: u64, svid: &VerifiedSvid) {
    place(owner, revision, svid, true);
}

/// Puts in what was seen first, where there is room.
pub(super) fn put_if_free(owner: &Arc<Owner>, revision: u64, svid: &VerifiedSvid) {
    place(owner, revision, svid, false);
}

pub(super) fn remove(owner: &Arc<Owner>, hash: u64, token: &str) {
    // Dropped outside: the last handle of an entry may free much.
    let _gone = with(|level| {
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
    let _left = with(|level| level.clear_gone());
    let _gone = with(|level| {
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

/// `None` too where the thread is ending, or a source of bundles calls back into a validator.
fn with<T>(work: impl FnOnce(&mut FirstLevel) -> Option<T>) -> Option<T> {
    LEVEL
        .try_with(|level| work(&mut *level.try_borrow_mut().ok()?))
        .ok()
        .flatten()
}

impl FirstLevel {
    /// Takes out what no cache owns any more.
    fn clear_gone(&mut self) -> Option<Vec<Way>> {
        let gone = GONE.load(Ordering::Acquire);
        if std::mem::replace(&mut self.gone, gone) == gone {
            return None;
        }
        let is_left = |way: &mut Way| way.owner.gone.load(Ordering::Acquire);
        let ways = self.sets.iter_mut().flatten();
        Some(ways.filter_map(|way| way.take_if(is_left)).collect())
    }

    fn set(&mut self, hash: u64) -> Option<&mut [Option<Way>; WAYS]> {
        // The top bits: the second level goes by the others.
        let set = (hash >> (u64::BITS - SETS.ilog2())) as usize;
        self.sets.get_mut(set)
    }
}

impl Way {
    fn is(&self, owner: &Arc<Owner>, hash: u64, token: &str) -> bool {
        Arc::ptr_eq(&self.owner, owner) && self.hash == hash && *self.svid.shared().token == *token
    }
}
