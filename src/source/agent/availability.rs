//! Whether the bundles of the source are usable, and their revision. Validation reads both for each
//! token.

use std::sync::atomic::{AtomicU64, Ordering};

/// Whether the bundles may be used, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ready = 0,
    NotReady = 1,
    Withdrawn = 2,
    Closed = 3,
}

/// The revision and the status in one atomic word, so that a reader never gets an old one with a new
/// one.
pub(super) struct Availability(AtomicU64);

/// How many bits of the word are the status.
const BITS: u32 = 2;

impl Availability {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(Status::NotReady as u64))
    }

    pub(super) fn get(&self) -> (Status, u64) {
        let word = self.0.load(Ordering::Acquire);
        (Status::of(word), word >> BITS)
    }

    pub(super) fn status(&self) -> Status {
        self.get().0
    }

    pub(super) fn revision(&self) -> u64 {
        self.get().1
    }

    /// Sets the status and raises the revision in one step, after the change itself is visible. Returns
    /// the new revision; `None` if the source is closed, which is final.
    pub(super) fn set(&self, status: Status) -> Option<u64> {
        self.set_if(|before| before != Status::Closed, status)
    }

    /// Raises the revision if the source is ready. Other threads than the task call this, and must not
    /// undo a status that the task sets meanwhile.
    pub(super) fn raise_if_ready(&self) -> Option<u64> {
        self.set_if(|before| before == Status::Ready, Status::Ready)
    }

    fn set_if(&self, applies: impl Fn(Status) -> bool, status: Status) -> Option<u64> {
        let set = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let raised = ((word >> BITS) + 1) << BITS;
                applies(Status::of(word)).then_some(raised | status as u64)
            });
        set.ok().map(|before| (before >> BITS) + 1)
    }
}

impl Status {
    const fn of(word: u64) -> Self {
        match word & ((1 << BITS) - 1) {
            0 => Self::Ready,
            1 => Self::NotReady,
            2 => Self::Withdrawn,
            _ => Self::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Status; 4] = [
        Status::Ready,
        Status::NotReady,
        Status::Withdrawn,
        Status::Closed,
    ];

    #[test]
    fn changes_raise_the_revision_and_closed_is_final() {
        let availability = Availability::new();
        assert_eq!(availability.get(), (Status::NotReady, 0));
        for (revision, status) in (1..).zip(ALL) {
            assert_eq!(availability.set(status), Some(revision));
            assert_eq!(availability.get(), (status, revision));
            assert_eq!(
                (availability.status(), availability.revision()),
                availability.get()
            );
        }
        for status in ALL {
            assert_eq!(availability.set(status), None);
        }
        assert_eq!(availability.get(), (Status::Closed, 4));
    }

    #[test]
    fn only_a_ready_source_has_its_revision_raised() {
        for status in [Status::NotReady, Status::Withdrawn, Status::Closed] {
            let availability = Availability::new();
            availability.set(status);
            let before = availability.get();
            assert_eq!(availability.raise_if_ready(), None);
            assert_eq!(availability.get(), before);
        }
        let availability = Availability::new();
        availability.set(Status::Ready);
        assert_eq!(availability.raise_if_ready(), Some(2));
    }

    /// Validators raise the revision when they notice stale keys. This must not undo a withdrawal.
    #[test]
    fn concurrent_raises_do_not_undo_a_withdrawal() {
        for _ in 0..200 {
            let availability = Availability::new();
            availability.set(Status::Ready);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| (0..2000).for_each(|_| _ = availability.raise_if_ready()));
                }
                scope.spawn(|| availability.set(Status::Withdrawn));
            });
            assert_eq!(availability.status(), Status::Withdrawn);
        }
    }
}
