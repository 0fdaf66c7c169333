//! Whether the source can judge at all, and at which revision: what validation asks for each token.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the source says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Ready,
    NotReady,
    Withdrawn,
    Closed,
}

/// The revision and the verdict, in one word, so that a validator asks once and never gets one of
/// before with the other of after.
pub(super) struct Judge(AtomicU64);

/// The verdict's part of the word.
const BITS: u32 = 2;

impl Judge {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(Verdict::NotReady.word()))
    }

    pub(super) fn get(&self) -> (Verdict, u64) {
        let word = self.0.load(Ordering::Acquire);
        (Verdict::of(word), word >> BITS)
    }

    pub(super) fn verdict(&self) -> Verdict {
        self.get().0
    }

    pub(super) fn revision(&self) -> u64 {
        self.get().1
    }

    /// Sets the verdict and raises the revision in one step, after the change itself is visible. Returns
    /// the new revision; `None` if the source is closed, which is final.
    pub(super) fn turn(&self, verdict: Verdict) -> Option<u64> {
        self.turn_if(|before| before != Verdict::Closed, verdict)
    }

    /// Raises the revision, only if the source can judge: other threads than the task call this, and
    /// must not undo a verdict that the task sets meanwhile.
    pub(super) fn raise_if_ready(&self) -> Option<u64> {
        self.turn_if(|before| before == Verdict::Ready, Verdict::Ready)
    }

    fn turn_if(&self, applies: impl Fn(Verdict) -> bool, verdict: Verdict) -> Option<u64> {
        let turned = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let raised = ((word >> BITS) + 1) << BITS;
                applies(Verdict::of(word)).then_some(raised | verdict.word())
            });
        turned.ok().map(|before| (before >> BITS) + 1)
    }
}

impl Verdict {
    const fn word(self) -> u64 {
        match self {
            Self::Ready => 0,
            Self::NotReady => 1,
            Self::Withdrawn => 2,
            Self::Closed => 3,
        }
    }

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

    const ALL: [Verdict; 4] = [
        Verdict::Ready,
        Verdict::NotReady,
        Verdict::Withdrawn,
        Verdict::Closed,
    ];

    #[test]
    fn each_turn_raises_the_revision_and_closed_is_for_good() {
        let judge = Judge::new();
        assert_eq!(judge.get(), (Verdict::NotReady, 0));
        for (revision, verdict) in (1..).zip(ALL) {
            assert_eq!(judge.turn(verdict), Some(revision));
            assert_eq!(judge.get(), (verdict, revision));
            assert_eq!((judge.verdict(), judge.revision()), judge.get());
        }
        for verdict in ALL {
            assert_eq!(judge.turn(verdict), None);
        }
        assert_eq!(judge.get(), (Verdict::Closed, 4));
    }

    #[test]
    fn only_a_source_that_can_judge_has_its_revision_raised_beside_the_task() {
        for verdict in [Verdict::NotReady, Verdict::Withdrawn, Verdict::Closed] {
            let judge = Judge::new();
            judge.turn(verdict);
            let before = judge.get();
            assert_eq!(judge.raise_if_ready(), None);
            assert_eq!(judge.get(), before);
        }
        let judge = Judge::new();
        judge.turn(Verdict::Ready);
        assert_eq!(judge.raise_if_ready(), Some(2));
    }

    /// Validators find out at any moment that one trust domain's keys are too old, and raise the
    /// revision; the withdrawal of all of them must stand whenever it comes.
    #[test]
    fn a_withdrawal_stands_however_many_raise_the_revision_meanwhile() {
        for _ in 0..200 {
            let judge = Judge::new();
            judge.turn(Verdict::Ready);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| (0..2000).for_each(|_| _ = judge.raise_if_ready()));
                }
                scope.spawn(|| judge.turn(Verdict::Withdrawn));
            });
            assert_eq!(judge.verdict(), Verdict::Withdrawn);
        }
    }
}
