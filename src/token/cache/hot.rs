//! Each thread's own copies of the tokens that it sends most.
//!
//! Clones of a header share one reference count. If several threads send the same token, each
//! request would contend for that cache line. So a thread that sends a token often gets its own
//! copy, with its own count.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::entry::Entry;
use super::moment::Moment;
use super::token::Token;

const SLOTS: usize = 8;
/// A copy is made after this many hits in a row, with no other audience in the same slot.
const OFTEN: u32 = 8;

struct Slot {
    entry: u64,
    version: u64,
    seen: u32,
    copy: Option<Arc<Token>>,
}

impl Slot {
    // No entry has the number 0.
    const EMPTY: Self = Self {
        entry: 0,
        version: 0,
        seen: 0,
        copy: None,
    };
}

thread_local! {
    static HOT: RefCell<[Slot; SLOTS]> = const { RefCell::new([Slot::EMPTY; SLOTS]) };
}

/// Looks at the token of `entry` if it is fresh. Locks nothing, and allocates only the thread's
/// copy, once per token. After `None`, [`Entry::resolve`] decides.
#[inline]
pub(crate) fn fresh<T>(
    entry: &Entry,
    now: Moment,
    look: impl FnOnce(&Arc<Token>) -> T,
) -> Option<T> {
    // Read before the token, so that any later change invalidates the copy.
    let version = entry.version.load(Ordering::Acquire);
    HOT.try_with(|slots| {
        let mut slots = slots.try_borrow_mut().ok()?;
        let at = usize::try_from(entry.id).unwrap_or_default() % SLOTS;
        let slot = slots.get_mut(at)?;
        if slot.entry == entry.id
            && slot.version == version
            && let Some(copy) = &slot.copy
        {
            return copy.is_fresh(now).then(|| look(copy));
        }
        let token = entry.token.load();
        let token = token.as_ref()?;
        let due = entry.due(token);
        if due.reached(now) || !token.usable(now) {
            return None;
        }
        if slot.entry != entry.id {
            (slot.entry, slot.seen) = (entry.id, 0);
        }
        slot.version = version;
        slot.seen = slot.seen.saturating_add(1);
        slot.copy = None;
        if slot.seen < OFTEN {
            return Some(look(token));
        }
        Some(look(slot.copy.insert(Arc::new(token.replica(due)))))
    })
    .ok()
    .flatten()
}
