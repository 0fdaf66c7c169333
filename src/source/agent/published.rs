//! The bundles that validators read, and whether they may be used.
//!
//! Validators read without a lock, and must never accept a token because they see one part of a change
//! and not another. Every ordering that this needs is in this file:
//!
//! - The task is the only writer, under the lock of its record. Any thread may raise the revision for
//!   stale keys ([`age`](Published::age)).
//! - A change is visible first, then the revision is raised, then watchers are notified.
//!   [`Availability`] keeps revision and status in one word.
//! - The deadlines are read before the revision and written after it: a reader that sees a deadline
//!   reset also sees the new revision. Otherwise a token that was cached before a withdrawal could be
//!   accepted after it, although its key is still withdrawn.
//! - A withdrawal sets the status before it empties the set. Otherwise the empty set would look as if
//!   it did not know the trust domain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::availability::{Availability, Status};
use super::updates::Notice;
use crate::bundle::{BundleAnswer, BundlesUnavailable, JwtBundleSet};
use crate::clock::Clock;
use crate::identity::TrustDomain;
use crate::source::trust_clock::{NEVER, TrustClock, nanos};

pub(crate) struct Published {
    clock: Arc<TrustClock>,
    snapshot: ArcSwap<Snapshot>,
    availability: Availability,
    // Deadlines on the monotonic clock, in nanoseconds, after which no token can be verified. Readers
    // compare them with the clock, so a task that hangs cannot delay them.
    stale_at: AtomicU64,
    withdrawn_at: AtomicU64,
    // The next time at which the keys of one trust domain in the snapshot are older than allowed.
    aged_at: AtomicU64,
    notices: watch::Sender<Notice>,
}

/// The bundles for validation.
#[derive(Default)]
pub(super) struct Snapshot {
    pub(super) set: JwtBundleSet,
    /// Named by the issuer, but their keys were never readable: bundles without keys.
    pub(super) unreadable: JwtBundleSet,
    /// Trust domains whose newest keys could not be read, and when their last good keys are older than
    /// allowed.
    pub(super) aging: Vec<(TrustDomain, u64)>,
}

impl Published {
    pub(super) fn new(clock: Arc<TrustClock>) -> Self {
        Self {
            clock,
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            availability: Availability::new(),
            stale_at: AtomicU64::new(NEVER),
            withdrawn_at: AtomicU64::new(NEVER),
            aged_at: AtomicU64::new(NEVER),
            notices: watch::Sender::new(Notice::default()),
        }
    }

    // === Readers ===

    /// The revision, if the bundles may be used.
    pub(super) fn revision(&self) -> Result<u64, BundlesUnavailable> {
        let aged_at = self.aged_at.load(Ordering::Acquire);
        if aged_at != NEVER {
            self.age(aged_at);
        }
        self.usable()
    }

    /// As [`revision`](Self::revision), without a check for stale keys, so that no watcher is woken.
    pub(super) fn usable(&self) -> Result<u64, BundlesUnavailable> {
        let stale_at = self.stale_at.load(Ordering::Acquire);
        let withdrawn_at = self.withdrawn_at.load(Ordering::Acquire);
        let (status, revision) = self.availability.get();
        match status {
            Status::Ready => {}
            Status::NotReady => return Err(BundlesUnavailable::NotReady),
            Status::Withdrawn => return Err(BundlesUnavailable::Withdrawn),
            Status::Closed => return Err(BundlesUnavailable::Closed),
        }
        if stale_at != NEVER || withdrawn_at != NEVER {
            let now = self.now();
            if now >= withdrawn_at {
                return Err(BundlesUnavailable::Withdrawn);
            }
            if now >= stale_at {
                return Err(BundlesUnavailable::Stale);
            }
        }
        Ok(revision)
    }

    /// Raises the revision if the keys of a trust domain have become stale, so that cached tokens
    /// that they verified are checked again.
    fn age(&self, aged_at: u64) {
        let now = self.now();
        if now < aged_at {
            return;
        }
        let next = self.snapshot.load().aged_after(now);
        // The revision first: a reader that sees the new deadline also sees the new revision. A thread
        // that loses the race has raised it once too often.
        if let Some(revision) = self.availability.raise_if_ready() {
            self.notify(revision);
        }
        let is_ours =
            self.aged_at
                .compare_exchange(aged_at, next, Ordering::AcqRel, Ordering::Relaxed);
        if is_ours.is_ok() {
            // A message that was applied meanwhile may have set the same deadline and an earlier one.
            let next = self.snapshot.load().aged_after(now);
            self.aged_at.fetch_min(next, Ordering::AcqRel);
        }
    }

    pub(crate) fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        loop {
            let revision = match self.revision() {
                Ok(revision) => revision,
                Err(why) => return BundleAnswer::Unavailable(why),
            };
            let snapshot = self.snapshot.load();
            if let Some(bundle) = snapshot.set.get(trust_domain) {
                return match snapshot.has_aged(trust_domain, self.now()) {
                    true => BundleAnswer::Unavailable(BundlesUnavailable::Stale),
                    false => BundleAnswer::Ready(bundle.clone()),
                };
            }
            // A caller that names it gets 401, not 503: all other trust domains are usable.
            if let Some(empty) = snapshot.unreadable.get(trust_domain) {
                return BundleAnswer::Ready(empty.clone());
            }
            // "Unknown" rejects the caller: it must not come from a set that was withdrawn or restored
            // during the lookup.
            if self.revision() == Ok(revision) {
                return BundleAnswer::UnknownTrustDomain;
            }
        }
    }

    pub(crate) fn bundle_set(&self) -> Result<JwtBundleSet, BundlesUnavailable> {
        loop {
            let revision = self.revision()?;
            let set = self.snapshot.load().set.clone();
            // It must not be the empty set of a withdrawal during the call.
            if self.revision() == Ok(revision) {
                return Ok(set);
            }
        }
    }

    /// The snapshot, even if it may not be used.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    pub(super) fn status(&self) -> Status {
        self.availability.status()
    }

    /// The current revision, even if the bundles may not be used.
    pub(super) fn last_revision(&self) -> u64 {
        self.availability.revision()
    }

    pub(super) fn notices(&self) -> watch::Receiver<Notice> {
        self.notices.subscribe()
    }

    // === The task ===

    /// Replaces the bundles, which are stale from `stale_at` on, and ends a withdrawal. Returns whether
    /// they differ, and the new revision: notify it after the record has changed too. `None` if
    /// no result of a validation can change.
    pub(super) fn replace(&self, snapshot: Snapshot, stale_at: u64) -> (bool, Option<u64>) {
        let now = self.now();
        let before = self.snapshot();
        let changed = before.set != snapshot.set || before.unreadable != snapshot.unreadable;
        let raises = changed
            || self.status() != Status::Ready
            || self.withdrawn_at.load(Ordering::Acquire) <= now
            // Stale keys may be valid again, others may have become stale, perhaps unnoticed.
            || before.aged(now).ne(snapshot.aged(now))
            || self.aged_at.load(Ordering::Acquire) <= now;
        let aged_at = snapshot.aged_after(now);
        self.snapshot.store(Arc::new(snapshot));
        let mut raised = raises
            .then(|| self.availability.set(Status::Ready))
            .flatten();
        self.aged_at.store(aged_at, Ordering::Release);
        let was_stale_at = self.stale_at.swap(stale_at, Ordering::AcqRel);
        let was_withdrawn_at = self.withdrawn_at.swap(NEVER, Ordering::AcqRel);
        // Tasks that got `Stale` or `Withdrawn` until now wait for a notice that it is over.
        if raised.is_none() && was_stale_at.min(was_withdrawn_at) <= self.now() {
            raised = self.availability.set(Status::Ready);
        }
        (changed, raised)
    }

    /// Withdraws the bundles at this time.
    pub(super) fn withdraw_at(&self, at: Duration) {
        self.withdrawn_at.store(nanos(at), Ordering::Release);
    }

    pub(super) fn withdrawal_is_due(&self, now: Duration) -> bool {
        self.withdrawn_at.load(Ordering::Acquire) <= nanos(now)
    }

    /// Withdraws the bundles now. Returns the new revision, to be notified.
    pub(super) fn withdraw(&self) -> Option<u64> {
        let revision = self.availability.set(Status::Withdrawn)?;
        self.snapshot.store(Arc::new(Snapshot::default()));
        self.withdrawn_at.store(NEVER, Ordering::Release);
        Some(revision)
    }

    /// Closes: every later call returns `Closed`.
    pub(super) fn close(&self) {
        let revision = self.availability.set(Status::Closed).unwrap_or_default();
        self.snapshot.store(Arc::new(Snapshot::default()));
        // In one step: otherwise watchers would see the end as a change.
        self.notices.send_modify(|notice| {
            notice.closed = true;
            notice.revision = notice.revision.max(revision);
        });
    }

    /// Wakes the watchers, after all changes are visible.
    pub(super) fn notify(&self, revision: u64) {
        self.notices
            .send_modify(|notice| notice.revision = notice.revision.max(revision));
    }

    fn now(&self) -> u64 {
        nanos(self.clock.monotonic())
    }
}

impl Snapshot {
    /// The trust domains whose keys are older than allowed.
    fn aged(&self, now: u64) -> impl Iterator<Item = &(TrustDomain, u64)> {
        self.aging.iter().filter(move |(_, at)| *at <= now)
    }

    /// The next time after `now` at which keys are older than allowed.
    fn aged_after(&self, now: u64) -> u64 {
        let times = self.aging.iter().map(|(_, at)| *at);
        times.filter(|at| *at > now).min().unwrap_or(NEVER)
    }

    fn has_aged(&self, trust_domain: &str, now: u64) -> bool {
        self.aged(now)
            .any(|(domain, _)| domain.name() == trust_domain)
    }
}
