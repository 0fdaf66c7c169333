//! How a change of keys reaches a verdict, in every interleaving of a writer and a reader that takes
//! each of them off its turn up to three times: a model of what the source does
//! (`src/source/agent/shared.rs`, `judge.rs`) and of what a validator does (`src/verify/judge.rs`, `cache`).
//!
//! It is the order of the steps that is modelled, one atomic for one atomic, and that order is what
//! makes it safe: each fault below is one step out of its place, and each is found. What the code
//! itself does under load is for the stress test in `src/source/agent/rotation_tests.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::thread;

/// A step out of its place.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The source raises its revision before the new keys can be seen.
    RaisesFirst,
    /// The source takes the moment of a withdrawal back before it raises its revision.
    TakesBackFirst,
    /// The source lets the keys go before it says that they are withdrawn.
    EmptiesFirst,
    /// The revision is read before the moment from which on nothing can be judged.
    ReadsMomentLast,
    /// The validator reads the revision, under which it keeps a verdict, after the bundle.
    ReadsRevisionLast,
    /// An age check reads the verdict first, and raises the revision in a second step.
    AgesInTwoSteps,
    /// An age check sets the next moment even if a message has set another one meanwhile.
    AgesOverMessages,
    /// An age check does not look at the snapshot again after it has set the next moment.
    AgesWithoutSecondLook,
}

const READY: u64 = 0;
const WITHDRAWN: u64 = 2;
const BITS: u32 = 2;
const NEVER: u64 = u64::MAX;

/// A set of keys: the trust domain is in it, and which keys it has.
const NOTHING: u64 = 0;
const DOMAIN: u64 = 1;
const KEPT: u64 = 2;
const LOST: u64 = 4;

struct Source {
    fault: Fault,
    snapshot: AtomicU64,
    /// The revision and the verdict.
    word: AtomicU64,
    withdrawn_at: AtomicU64,
    /// When keys are too old next, and the same as the snapshot has it after [`AGED`].
    aged_at: AtomicU64,
    next_in_snapshot: AtomicU64,
}

/// The moment of the age checks.
const AGED: u64 = 10;

#[derive(Debug, PartialEq)]
enum Answer {
    Keys(u64),
    UnknownTrustDomain,
    BundlesUnavailable,
}

impl Source {
    fn new(fault: Fault, withdrawn_at: u64) -> Self {
        Self {
            fault,
            snapshot: AtomicU64::new(DOMAIN | KEPT | LOST),
            word: AtomicU64::new((BEGINS << BITS) | READY),
            withdrawn_at: AtomicU64::new(withdrawn_at),
            aged_at: AtomicU64::new(AGED),
            next_in_snapshot: AtomicU64::new(AGED + 20),
        }
    }

    /// `Judge::turn`.
    fn turn(&self, verdict: u64) {
        let raised = |word| Some((((word >> BITS) + 1) << BITS) | verdict);
        self.word.fetch_update(AcqRel, Acquire, raised).unwrap();
    }

    /// `Shared::take_in`.
    fn take_in(&self, set: u64) {
        if self.fault == Fault::TakesBackFirst {
            self.withdrawn_at.store(NEVER, Release);
        }
        if self.fault == Fault::RaisesFirst {
            self.turn(READY);
        }
        self.snapshot.store(set, Release);
        if self.fault != Fault::RaisesFirst {
            self.turn(READY);
        }
        self.withdrawn_at.store(NEVER, Release);
    }

    /// `Shared::withdraw_now`.
    fn withdraw_now(&self) {
        if self.fault == Fault::EmptiesFirst {
            self.snapshot.store(NOTHING, Release);
        }
        self.turn(WITHDRAWN);
        self.snapshot.store(NOTHING, Release);
        self.withdrawn_at.store(NEVER, Release);
    }

    /// `Shared::take_in`, just before [`AGED`]: the keys that are too old then stay, and others are too
    /// old earlier than before.
    fn take_in_aging(&self) {
        self.next_in_snapshot.store(AGED + 10, Release);
        self.aged_at.store(AGED, Release);
    }

    /// `Shared::age`, at [`AGED`].
    fn age(&self) {
        let next = self.next_in_snapshot.load(Acquire);
        if self.fault == Fault::AgesInTwoSteps {
            if is_ready(self.word.load(Acquire)) {
                self.turn(READY);
            }
        } else {
            let raised = |word| is_ready(word).then_some((((word >> BITS) + 1) << BITS) | READY);
            let _ = self.word.fetch_update(AcqRel, Acquire, raised);
        }
        if self.fault == Fault::AgesOverMessages {
            self.aged_at.store(next, Release);
            return;
        }
        let set = self.aged_at.compare_exchange(AGED, next, AcqRel, Relaxed);
        if set.is_ok() && self.fault != Fault::AgesWithoutSecondLook {
            let next = self.next_in_snapshot.load(Acquire);
            self.aged_at.fetch_min(next, AcqRel);
        }
    }

    /// `Shared::revision`, at a time at which every moment but `NEVER` is past.
    fn revision(&self) -> Option<u64> {
        let early = (self.fault == Fault::ReadsMomentLast).then(|| self.word.load(Acquire));
        let withdrawn_at = self.withdrawn_at.load(Acquire);
        let word = early.unwrap_or_else(|| self.word.load(Acquire));
        let can_judge = is_ready(word) && withdrawn_at == NEVER;
        can_judge.then_some(word >> BITS)
    }

    /// `Shared::bundle`.
    fn bundle(&self) -> Answer {
        loop {
            let Some(revision) = self.revision() else {
                return Answer::BundlesUnavailable;
            };
            let set = self.snapshot.load(Acquire);
            if set & DOMAIN != 0 {
                return Answer::Keys(set);
            }
            if self.revision() == Some(revision) {
                return Answer::UnknownTrustDomain;
            }
        }
    }
}

fn is_ready(word: u64) -> bool {
    word & ((1 << BITS) - 1) == READY
}

/// The revision that the source begins at.
const BEGINS: u64 = 1;

/// A validator's cache on one thread, with one token in it, that was verified before.
struct Cached {
    key: u64,
    /// The thread's own level, and the entry that all threads share.
    first: Option<u64>,
    entry: Option<Arc<AtomicU64>>,
}

impl Cached {
    /// As of another thread: the entry is not in this one's own level.
    fn new(key: u64, entry: &Arc<AtomicU64>) -> Self {
        Self {
            key,
            first: None,
            entry: Some(entry.clone()),
        }
    }

    /// Whether the token is accepted.
    fn validate(&mut self, source: &Source) -> bool {
        let Some(revision) = source.revision() else {
            return false;
        };
        if let Some(entry) = &self.entry {
            if self.first == Some(revision) || entry.load(Acquire) == revision {
                self.first = Some(revision);
                return true;
            }
            if self.has_key(source) {
                entry.store(under(source, revision), Release);
                self.first = Some(revision);
                return true;
            }
            (self.first, self.entry) = (None, None);
        }
        // Judged like a token never seen.
        if !self.has_key(source) {
            return false;
        }
        let revision = under(source, revision);
        self.entry = Some(Arc::new(AtomicU64::new(revision)));
        self.first = Some(revision);
        true
    }

    fn has_key(&self, source: &Source) -> bool {
        match source.bundle() {
            Answer::Keys(set) => set & self.key != 0,
            Answer::BundlesUnavailable => false,
            Answer::UnknownTrustDomain => panic!("the trust domain was there all the time"),
        }
    }
}

/// The revision that a verdict is kept under.
fn under(source: &Source, revision: u64) -> u64 {
    match source.fault {
        Fault::ReadsRevisionLast => source.revision().unwrap_or(revision),
        _ => revision,
    }
}

/// So often a thread is taken off its turn at most. Without a bound the right order takes five
/// minutes, and passes too.
const SWITCHES: usize = 3;

fn explore(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(SWITCHES);
    model.check(run);
}

type Write = fn(&Source, &dyn Fn());

/// A reader beside a writer. A verdict on the key that is lost, begun after the writer told so, is
/// a refusal; and the key that is kept is refused only where the source `may_be_blind`.
fn check(fault: Fault, withdrawn_at: u64, may_be_blind: bool, write: Write) {
    // Verified at the revision that there is, and before.
    for verified_at in [BEGINS, BEGINS - 1] {
        explore(move || {
            let (source, told, writer) = start(fault, withdrawn_at, write);
            let entry = Arc::new(AtomicU64::new(verified_at));
            let mut lost = Cached::new(LOST, &entry);
            for _ in 0..2 {
                let gone = told.load(Acquire) == 1;
                assert!(!(lost.validate(&source) && gone), "its key is gone");
            }
            writer.join().unwrap();
            assert!(!lost.validate(&source), "its key is gone");
            // What yet another thread finds.
            let mut other = Cached::new(LOST, &entry);
            assert!(!other.validate(&source), "its key is gone");
        });
        explore(move || {
            let (source, _, writer) = start(fault, withdrawn_at, write);
            let mut kept = Cached::new(KEPT, &Arc::new(AtomicU64::new(verified_at)));
            assert!(kept.validate(&source) || may_be_blind, "its key stands");
            writer.join().unwrap();
            assert!(kept.validate(&source), "its key stands");
        });
    }
}

fn start(
    fault: Fault,
    withdrawn_at: u64,
    write: Write,
) -> (Arc<Source>, Arc<AtomicU64>, thread::JoinHandle<()>) {
    let source = Arc::new(Source::new(fault, withdrawn_at));
    let told = Arc::new(AtomicU64::new(u64::from(withdrawn_at != NEVER)));
    let (beside, tells) = (source.clone(), told.clone());
    let writer = thread::spawn(move || write(&beside, &|| tells.store(1, Release)));
    (source, told, writer)
}

/// A key goes.
fn a_key_goes(fault: Fault) {
    check(fault, NEVER, false, |source, tell| {
        source.take_in(DOMAIN | KEPT);
        tell();
    });
}

/// A withdrawal that struck by itself is taken back, and not all keys come back with it.
fn a_withdrawal_that_struck_is_taken_back(fault: Fault) {
    check(fault, 0, true, |source, _| source.take_in(DOMAIN | KEPT));
}

/// A withdrawal takes effect, and is taken back in the same way.
fn a_withdrawal_takes_effect(fault: Fault) {
    check(fault, NEVER, true, |source, tell| {
        source.withdraw_now();
        tell();
        source.take_in(DOMAIN | KEPT);
    });
}

#[test]
fn a22_no_verdict_outlives_its_key_in_any_interleaving() {
    a_key_goes(Fault::None);
    a_withdrawal_that_struck_is_taken_back(Fault::None);
    a_withdrawal_takes_effect(Fault::None);
}

#[test]
#[should_panic(expected = "its key is gone")]
fn a_revision_raised_before_the_keys_can_be_seen_is_found() {
    a_key_goes(Fault::RaisesFirst);
}

#[test]
#[should_panic(expected = "its key is gone")]
fn a_moment_taken_back_before_the_revision_is_raised_is_found() {
    a_withdrawal_that_struck_is_taken_back(Fault::TakesBackFirst);
}

#[test]
#[should_panic(expected = "the trust domain was there all the time")]
fn keys_that_go_before_it_is_said_are_found() {
    a_withdrawal_takes_effect(Fault::EmptiesFirst);
}

#[test]
#[should_panic(expected = "its key is gone")]
fn a_moment_read_after_the_revision_is_found() {
    a_withdrawal_that_struck_is_taken_back(Fault::ReadsMomentLast);
}

#[test]
#[should_panic(expected = "its key is gone")]
fn a_revision_read_after_the_bundle_is_found() {
    a_key_goes(Fault::ReadsRevisionLast);
}

/// A validator checks the age of keys while the source withdraws them.
fn withdrawal_during_an_age_check(fault: Fault) {
    explore(move || {
        let source = Arc::new(Source::new(fault, NEVER));
        let beside = source.clone();
        let writer = thread::spawn(move || beside.withdraw_now());
        source.age();
        writer.join().unwrap();
        assert_eq!(source.revision(), None, "the withdrawal is lost");
    });
}

/// A validator checks the age of keys while a message is applied.
fn message_during_an_age_check(fault: Fault) {
    explore(move || {
        let source = Arc::new(Source::new(fault, NEVER));
        let beside = source.clone();
        let writer = thread::spawn(move || beside.take_in_aging());
        source.age();
        writer.join().unwrap();
        // Loom's loads may return a value that was overwritten by a thread without knowledge of it;
        // its read-modify-writes may not.
        let checked = source.aged_at.fetch_min(NEVER, AcqRel);
        let due = source.next_in_snapshot.load(Acquire);
        assert!(checked <= due, "keys are used for too long");
    });
}

#[test]
fn age_check_loses_no_withdrawal_and_no_message() {
    withdrawal_during_an_age_check(Fault::None);
    message_during_an_age_check(Fault::None);
}

#[test]
#[should_panic(expected = "the withdrawal is lost")]
fn age_check_in_two_steps_is_found() {
    withdrawal_during_an_age_check(Fault::AgesInTwoSteps);
}

#[test]
#[should_panic(expected = "keys are used for too long")]
fn age_check_over_a_message_is_found() {
    message_during_an_age_check(Fault::AgesOverMessages);
}

#[test]
#[should_panic(expected = "keys are used for too long")]
fn age_check_without_second_look_is_found() {
    message_during_an_age_check(Fault::AgesWithoutSecondLook);
}
