//! A model of a key change: every interleaving of a writer and a reader with up to three preemptions.
//! It models the source (`src/source/agent/shared.rs`) and a validator with its cache (`src/verify`).
//!
//! The model has one atomic per atomic of the code, because safety depends on the order of the steps.
//! Each fault below changes the position of one step, and each must be found. The code itself is
//! tested under load in `src/source/agent/rotation_tests.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::thread;

/// A step in the wrong position.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The source raises its revision before it publishes the new keys.
    RaisesFirst,
    /// The source resets the time of a withdrawal before it raises its revision.
    TakesBackFirst,
    /// The source removes its keys before it publishes the withdrawal.
    EmptiesFirst,
    /// The reader reads the revision before the time of a withdrawal.
    ReadsMomentLast,
    /// The validator reads the revision for its cache after the bundle.
    ReadsRevisionLast,
    /// An age check reads the status first, and raises the revision in a second step.
    AgesInTwoSteps,
    /// An age check sets the time of the next check even if a message has set another time meanwhile.
    AgesOverMessages,
    /// An age check does not read the snapshot again after it has set the time of the next check.
    AgesWithoutSecondLook,
}

const READY: u64 = 0;
const WITHDRAWN: u64 = 2;
const BITS: u32 = 2;
const NEVER: u64 = u64::MAX;

/// A set of keys: whether it has the trust domain, and its keys.
const NOTHING: u64 = 0;
const DOMAIN: u64 = 1;
const KEPT: u64 = 2;
const LOST: u64 = 4;

struct Source {
    fault: Fault,
    snapshot: AtomicU64,
    /// The revision and the status.
    word: AtomicU64,
    withdrawn_at: AtomicU64,
    /// The next time at which keys become stale, and the same in the snapshot after [`AGED`].
    aged_at: AtomicU64,
    next_in_snapshot: AtomicU64,
}

/// The time of the age checks.
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

    /// Raises the revision and sets the status, like the source.
    fn turn(&self, status: u64) {
        let raised = |word| Some((((word >> BITS) + 1) << BITS) | status);
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

    /// `Shared::take_in`, just before [`AGED`]. The stale keys are kept, and others become stale earlier
    /// than before.
    fn take_in_aging(&self) {
        self.next_in_snapshot.store(AGED + 10, Release);
        // A store in the source. For loom it could come before an exchange that did not see it.
        self.aged_at.swap(AGED, AcqRel);
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

    /// `Shared::revision`, at a time after every withdrawal time except `NEVER`.
    fn revision(&self) -> Option<u64> {
        let early = (self.fault == Fault::ReadsMomentLast).then(|| self.word.load(Acquire));
        let withdrawn_at = self.withdrawn_at.load(Acquire);
        let word = early.unwrap_or_else(|| self.word.load(Acquire));
        let is_usable = is_ready(word) && withdrawn_at == NEVER;
        is_usable.then_some(word >> BITS)
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

/// The first revision of the source.
const BEGINS: u64 = 1;

/// A validator's cache on one thread, with one verified token.
struct Cached {
    key: u64,
    /// The entry of this thread, and the entry that all threads share.
    first: Option<u64>,
    entry: Option<Arc<AtomicU64>>,
}

impl Cached {
    /// Creates the cache of another thread, which has no entry of its own.
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
        // Validated like a new token.
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
            Answer::UnknownTrustDomain => panic!("the trust domain was never removed"),
        }
    }
}

/// Returns the revision that a result is cached for.
fn under(source: &Source, revision: u64) -> u64 {
    match source.fault {
        Fault::ReadsRevisionLast => source.revision().unwrap_or(revision),
        _ => revision,
    }
}

/// The maximum number of preemptions. Without a limit the correct order takes five minutes, and passes
/// too.
const SWITCHES: usize = 3;

fn explore(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(SWITCHES);
    model.check(run);
}

type Write = fn(&Source, &dyn Fn());

/// Runs a reader and a writer. After the writer reports the change, a token of the removed key must be
/// rejected. A token of the kept key may be rejected only if bundles `may_be_unavailable`.
fn check(fault: Fault, withdrawn_at: u64, may_be_unavailable: bool, write: Write) {
    // Cached at the current revision, and at an older one.
    for verified_at in [BEGINS, BEGINS - 1] {
        explore(move || {
            let (source, reported, writer) = start(fault, withdrawn_at, write);
            let entry = Arc::new(AtomicU64::new(verified_at));
            let mut lost = Cached::new(LOST, &entry);
            for _ in 0..2 {
                let removed = reported.load(Acquire) == 1;
                assert!(!(lost.validate(&source) && removed), "its key is removed");
            }
            writer.join().unwrap();
            assert!(!lost.validate(&source), "its key is removed");
            // Another thread.
            let mut other = Cached::new(LOST, &entry);
            assert!(!other.validate(&source), "its key is removed");
        });
        explore(move || {
            let (source, _, writer) = start(fault, withdrawn_at, write);
            let mut kept = Cached::new(KEPT, &Arc::new(AtomicU64::new(verified_at)));
            assert!(
                kept.validate(&source) || may_be_unavailable,
                "its key is still trusted"
            );
            writer.join().unwrap();
            assert!(kept.validate(&source), "its key is still trusted");
        });
    }
}

fn start(
    fault: Fault,
    withdrawn_at: u64,
    write: Write,
) -> (Arc<Source>, Arc<AtomicU64>, thread::JoinHandle<()>) {
    let source = Arc::new(Source::new(fault, withdrawn_at));
    let reported = Arc::new(AtomicU64::new(u64::from(withdrawn_at != NEVER)));
    let (shared, report) = (source.clone(), reported.clone());
    let writer = thread::spawn(move || write(&shared, &|| report.store(1, Release)));
    (source, reported, writer)
}

/// A key is removed.
fn key_is_removed(fault: Fault) {
    check(fault, NEVER, false, |source, report| {
        source.take_in(DOMAIN | KEPT);
        report();
    });
}

/// A withdrawal that took effect by its time is restored with fewer keys.
fn past_withdrawal_is_restored(fault: Fault) {
    check(fault, 0, true, |source, _| source.take_in(DOMAIN | KEPT));
}

/// A withdrawal takes effect, and is restored with fewer keys.
fn withdrawal_is_restored(fault: Fault) {
    check(fault, NEVER, true, |source, report| {
        source.withdraw_now();
        report();
        source.take_in(DOMAIN | KEPT);
    });
}

#[test]
fn a22_no_result_outlives_its_key_in_any_interleaving() {
    key_is_removed(Fault::None);
    past_withdrawal_is_restored(Fault::None);
    withdrawal_is_restored(Fault::None);
}

#[test]
#[should_panic(expected = "its key is removed")]
fn revision_before_keys_is_found() {
    key_is_removed(Fault::RaisesFirst);
}

#[test]
#[should_panic(expected = "its key is removed")]
fn reset_before_revision_is_found() {
    past_withdrawal_is_restored(Fault::TakesBackFirst);
}

#[test]
#[should_panic(expected = "the trust domain was never removed")]
fn keys_removed_before_withdrawal_are_found() {
    withdrawal_is_restored(Fault::EmptiesFirst);
}

#[test]
#[should_panic(expected = "its key is removed")]
fn withdrawal_time_read_last_is_found() {
    past_withdrawal_is_restored(Fault::ReadsMomentLast);
}

#[test]
#[should_panic(expected = "its key is removed")]
fn revision_read_after_bundle_is_found() {
    key_is_removed(Fault::ReadsRevisionLast);
}

/// A validator checks the age of keys while the source withdraws them.
fn withdrawal_during_an_age_check(fault: Fault) {
    explore(move || {
        let source = Arc::new(Source::new(fault, NEVER));
        let shared = source.clone();
        let writer = thread::spawn(move || shared.withdraw_now());
        source.age();
        writer.join().unwrap();
        assert_eq!(source.revision(), None, "the withdrawal is lost");
    });
}

/// A validator checks the age of keys while a message is applied.
fn message_during_an_age_check(fault: Fault) {
    explore(move || {
        let source = Arc::new(Source::new(fault, NEVER));
        let shared = source.clone();
        let writer = thread::spawn(move || shared.take_in_aging());
        source.age();
        writer.join().unwrap();
        let checked = source.aged_at.load(Acquire);
        let due = source.next_in_snapshot.load(Acquire);
        assert!(checked <= due, "keys are used for too long");
    });
}

#[test]
fn age_check_loses_no_withdrawal_or_message() {
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
