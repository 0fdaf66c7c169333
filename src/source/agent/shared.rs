//! What the source's handles and its background task share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use super::error::JwtSourceError;
use super::hints::Hints;
use super::intake::Intake;
use super::judge::{Judge, Verdict};
use super::limits::WithdrawalPolicy;
use super::record::{Noted, Record};
use super::state::SourceState;
use super::updates::Notice;
use crate::bundle::{BundleAnswer, BundlesUnavailable, JwtBundle, JwtBundleSet};
use crate::clock::Clock;
use crate::grpc_code::GrpcCode;
use crate::identity::TrustDomain;
use crate::metrics::MetricsRecorder;
use crate::source::trust_clock::TrustClock;
use crate::workload_api::{WorkloadApiClient, WorkloadApiError, WorkloadApiErrorReason};

pub(crate) struct Shared {
    pub(crate) client: WorkloadApiClient,
    pub(crate) hints: Hints,
    pub(crate) clock: Arc<TrustClock>,
    pub(crate) metrics: Arc<dyn MetricsRecorder>,
    pub(crate) withdrawal: WithdrawalPolicy,
    pub(crate) max_staleness: Option<Duration>,
    snapshot: ArcSwap<Snapshot>,
    judge: Judge,
    // Moments of the clock, in nanoseconds, from which on no token can be judged. The caller compares
    // them with the clock, so a task that hangs cannot delay them.
    stale_at: AtomicU64,
    withdrawn_at: AtomicU64,
    // The next moment at which the keys of one trust domain in the snapshot are older than allowed.
    aged_at: AtomicU64,
    // When the task last ran, and since when a message has been waiting to be applied.
    beat_at: AtomicU64,
    reading_since: AtomicU64,
    /// Wakes the task: the agent gave a token while the bundle stream was not open.
    pub(crate) token_came: Notify,
    record: Mutex<Record>,
    notices: watch::Sender<Notice>,
    // The permanent error of a start-up, until the agent answers differently.
    refused: watch::Sender<Option<Arc<WorkloadApiError>>>,
    closing: watch::Sender<bool>,
    ended: watch::Sender<bool>,
}

/// The bundles for validation.
#[derive(Default)]
struct Snapshot {
    set: JwtBundleSet,
    // Named by the issuer, but their keys were never readable: known, without keys.
    unreadable: Vec<TrustDomain>,
    // Trust domains whose newest keys could not be read, and the moment at which their last good keys
    // are older than allowed.
    aging: Vec<(TrustDomain, u64)>,
}

const NEVER: u64 = u64::MAX;

/// The task reports every second; without a report for so long it is overdue.
const OVERDUE: Duration = Duration::from_secs(5);

/// How a bundle stream ended, if not cleanly, or why it could not be opened.
pub(crate) struct StreamError<'a> {
    pub(crate) kind: &'static str,
    pub(crate) text: &'a str,
    pub(crate) rpc: Option<&'a WorkloadApiError>,
}

impl<'a> StreamError<'a> {
    pub(crate) fn of(error: &'a WorkloadApiError, text: &'a str) -> Self {
        Self {
            kind: error.kind(),
            text,
            rpc: Some(error),
        }
    }

    fn withdraws(&self) -> bool {
        let reason = self.rpc.map(WorkloadApiError::reason);
        reason == Some(WorkloadApiErrorReason::PermissionDenied)
    }
}

/// What a denial by the agent did to bundles that were in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Withdrew {
    /// They are no longer used.
    AtOnce,
    /// They are used for this long.
    After(Duration),
    /// They stay in use.
    Never,
}

impl Shared {
    pub(crate) fn new(
        client: WorkloadApiClient,
        clock: Arc<TrustClock>,
        metrics: Arc<dyn MetricsRecorder>,
        withdrawal: WithdrawalPolicy,
        max_staleness: Option<Duration>,
    ) -> Self {
        let beat_at = nanos(clock.monotonic());
        Self {
            client,
            hints: Hints::default(),
            clock,
            metrics,
            withdrawal,
            max_staleness,
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            judge: Judge::new(),
            stale_at: AtomicU64::new(NEVER),
            withdrawn_at: AtomicU64::new(NEVER),
            aged_at: AtomicU64::new(NEVER),
            beat_at: AtomicU64::new(beat_at),
            reading_since: AtomicU64::new(NEVER),
            token_came: Notify::new(),
            record: Mutex::new(Record::default()),
            notices: watch::Sender::new(Notice::default()),
            refused: watch::Sender::new(None),
            closing: watch::Sender::new(false),
            ended: watch::Sender::new(false),
        }
    }

    // === For validation ===

    /// The revision, if the source can judge.
    pub(crate) fn revision(&self) -> Result<u64, BundlesUnavailable> {
        let aged_at = self.aged_at.load(Ordering::Acquire);
        if aged_at != NEVER {
            self.age(aged_at);
        }
        self.revision_as_told()
    }

    /// As [`revision`](Self::revision), without a check for stale keys.
    fn revision_as_told(&self) -> Result<u64, BundlesUnavailable> {
        // The moments are read before the revision and written after it: a reader that sees a moment
        // reset also sees its new revision. Otherwise a verdict that was cached before a withdrawal
        // could be valid after it, although its key did not come back.
        let stale_at = self.stale_at.load(Ordering::Acquire);
        let withdrawn_at = self.withdrawn_at.load(Ordering::Acquire);
        let (verdict, revision) = self.judge.get();
        match verdict {
            Verdict::Ready => {}
            Verdict::NotReady => return Err(BundlesUnavailable::NotReady),
            Verdict::Withdrawn => return Err(BundlesUnavailable::Withdrawn),
            Verdict::Closed => return Err(BundlesUnavailable::Closed),
        }
        if stale_at != NEVER || withdrawn_at != NEVER {
            let now = nanos(self.clock.monotonic());
            if now >= withdrawn_at {
                return Err(BundlesUnavailable::Withdrawn);
            }
            if now >= stale_at {
                return Err(BundlesUnavailable::Stale);
            }
        }
        Ok(revision)
    }

    /// Raises the revision if the keys of a trust domain have become stale, so that cached verdicts on
    /// them are checked again. Any thread may do this.
    fn age(&self, aged_at: u64) {
        let now = nanos(self.clock.monotonic());
        if now < aged_at {
            return;
        }
        let next_of = |snapshot: &Snapshot| {
            let moments = snapshot.aging.iter().map(|(_, at)| *at);
            moments.filter(|at| *at > now).min().unwrap_or(NEVER)
        };
        let next = next_of(&self.snapshot.load());
        // The revision first: a reader that sees the new moment also sees the new revision. A thread
        // that loses the race has raised it once too often.
        if let Some(revision) = self.judge.raise_if_ready() {
            self.notify(revision);
        }
        let struck =
            self.aged_at
                .compare_exchange(aged_at, next, Ordering::AcqRel, Ordering::Relaxed);
        if struck.is_ok() {
            // A message that was applied meanwhile may have set the same moment and have earlier ones.
            let next = next_of(&self.snapshot.load());
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
                return match self.has_aged(&snapshot, trust_domain) {
                    true => BundleAnswer::Unavailable(BundlesUnavailable::Stale),
                    false => BundleAnswer::Ready(bundle.clone()),
                };
            }
            // A caller that names it gets 401, not 503: all other trust domains can be judged.
            let mut unreadable = snapshot.unreadable.iter();
            if let Some(known) = unreadable.find(|known| known.name() == trust_domain) {
                return BundleAnswer::Ready(Arc::new(JwtBundle::without_keys(known.clone())));
            }
            // "Unknown" rejects the caller: it must not come from a set that was withdrawn or restored
            // during the lookup.
            if self.revision() == Ok(revision) {
                return BundleAnswer::UnknownTrustDomain;
            }
        }
    }

    fn has_aged(&self, snapshot: &Snapshot, trust_domain: &str) -> bool {
        let mut aging = snapshot.aging.iter();
        aging
            .find(|(domain, _)| domain.name() == trust_domain)
            .is_some_and(|(_, at)| nanos(self.clock.monotonic()) >= *at)
    }

    pub(crate) fn bundle_set(&self) -> Result<JwtBundleSet, BundlesUnavailable> {
        self.revision()?;
        Ok(self.snapshot.load().set.clone())
    }

    // === For the task ===

    /// The set that a message is compared with.
    pub(crate) fn known(&self) -> JwtBundleSet {
        self.snapshot.load().set.clone()
    }

    /// Applies a message. Returns what it changed.
    pub(crate) fn take_in(&self, mut intake: Intake) -> Change {
        let now = self.clock.monotonic();
        // A withdrawal that is due takes effect first. Otherwise it depends on the moment of the next
        // beat whether a message can bring withdrawn keys back.
        self.withdraw_if_due(nanos(now));
        let withdrawn = self.is_withdrawn();
        if withdrawn {
            // The message was read when the keys before the withdrawal were still known.
            intake.forget_kept();
        }
        let before = self.snapshot.load_full();
        let unreadable: Vec<TrustDomain> = intake
            .troubles
            .keys()
            .filter(|domain| intake.set.get(domain.name()).is_none())
            .cloned()
            .collect();
        let same = before.set == intake.set && before.unreadable == unreadable;
        let lost_keys = before.set.iter().any(|old| lost_a_key(old, &intake.set));
        // A message without any bundle neither completes a start nor ends a withdrawal.
        let first = self.judge.verdict() == Verdict::NotReady;
        let nothing = intake.set.is_empty() && (first || withdrawn);
        // Held until everything has changed, so that a state is from before or from after.
        let mut record = self.record();
        let noted = record.note(now, &before.set, &intake, nothing);
        let Noted {
            given_back,
            reconnected,
            aging,
        } = noted;
        if nothing {
            return Change {
                reconnected,
                ..Change::default()
            };
        }
        let aging: Vec<_> = self.max_staleness.map_or_else(Vec::new, |max| {
            let moments = aging.into_iter();
            let moments = moments.map(|(name, updated)| (name, updated.saturating_add(max)));
            moments.map(|(name, at)| (name, nanos(at))).collect()
        });
        let is_past = |at: u64| at <= nanos(now);
        let to_come = aging.iter().map(|(_, at)| *at).filter(|at| !is_past(*at));
        let aged_at = to_come.min().unwrap_or(NEVER);
        // Stale keys may be valid again although they are the same; others may have become stale
        // unnoticed.
        let aged = |of: &[(TrustDomain, u64)], not_in: &[(TrustDomain, u64)]| {
            let mut aged = of.iter().filter(|(_, at)| is_past(*at));
            aged.any(|known| !not_in.contains(known))
        };
        let younger = aged(&before.aging, &aging);
        let older = aged(&aging, &before.aging) || is_past(self.aged_at.load(Ordering::Acquire));
        let snapshot = Snapshot {
            set: intake.set,
            unreadable,
            aging,
        };
        self.snapshot.store(Arc::new(snapshot));
        let changed = first || !same;
        let told = changed || withdrawn || younger || older;
        let mut raised = told.then(|| self.judge.turn(Verdict::Ready)).flatten();
        self.aged_at.store(aged_at, Ordering::Release);
        let stale_at = self
            .max_staleness
            .map_or(NEVER, |max| nanos(now.saturating_add(max)));
        let was_stale_at = self.stale_at.swap(stale_at, Ordering::AcqRel);
        let was_withdrawn_at = self.withdrawn_at.swap(NEVER, Ordering::AcqRel);
        // Tasks that got `Stale` or `Withdrawn` until now wait for a notice that it is over.
        let blind_at = was_stale_at.min(was_withdrawn_at);
        if raised.is_none() && blind_at <= nanos(self.clock.monotonic()) {
            raised = self.judge.turn(Verdict::Ready);
        }
        drop(record);
        self.no_longer_refused();
        // Last: a woken task sees all changes.
        if let Some(revision) = raised {
            self.notify(revision);
        }
        Change {
            changed,
            first,
            given_back,
            reconnected,
            lost_keys,
        }
    }

    /// The stream ended, or could not be opened. If the agent denied the bundles for the first time,
    /// returns what happens to them.
    pub(crate) fn stream_ended(&self, error: Option<&StreamError<'_>>) -> Option<Withdrew> {
        let now = self.clock.monotonic();
        let withdraws = error.filter(|error| error.withdraws());
        // Only the task withdraws, and only here and in `beat`.
        let withdraws = withdraws.filter(|_| {
            self.judge.verdict() == Verdict::Ready && self.record().withdrawn.is_none()
        });
        let withdrew = withdraws.map(|_| match self.withdrawal {
            WithdrawalPolicy::Immediate => Withdrew::AtOnce,
            WithdrawalPolicy::After(delay) => Withdrew::After(delay),
            WithdrawalPolicy::Keep => Withdrew::Never,
        });
        // Recorded before it takes effect, and without the lock: a recorder may read the state.
        if let Some(error) = error {
            self.metrics.record_error(error.kind);
        }
        if withdrew.is_some() {
            self.metrics.record_withdrawal(true);
        }
        if withdrew == Some(Withdrew::AtOnce) {
            self.metrics.record_ready(false);
        }
        let mut record = self.record();
        record.disconnected(now, self.heard());
        // A stream that ends without an error was ended by the agent.
        if error.is_none_or(|error| error.rpc.is_some_and(WorkloadApiError::is_answer)) {
            record.last_contact = record.last_contact.max(Some(now));
        }
        if let Some(error) = error {
            record.failed(now, error.kind, error.text, error.rpc);
        }
        if let Some(error) = withdraws {
            record.withdrawn = Some((now, error.text.into()));
        }
        let revision = match withdrew {
            Some(Withdrew::AtOnce) => self.take_back(&mut record),
            Some(Withdrew::After(delay)) => {
                let at = nanos(now.saturating_add(delay));
                self.withdrawn_at.store(at, Ordering::Release);
                None
            }
            Some(Withdrew::Never) | None => None,
        };
        drop(record);
        if let Some(revision) = revision {
            self.notify(revision);
        }
        withdrew
    }

    fn is_withdrawn(&self) -> bool {
        self.judge.verdict() == Verdict::Withdrawn
    }

    /// The bundles are no longer used. Returns the new revision.
    fn take_back(&self, record: &mut Record) -> Option<u64> {
        // The verdict first: an emptied set must not look like one without the trust domain.
        let revision = self.judge.turn(Verdict::Withdrawn)?;
        self.snapshot.store(Arc::new(Snapshot::default()));
        record.domains.clear();
        self.withdrawn_at.store(NEVER, Ordering::Release);
        Some(revision)
    }

    /// Reports that the task runs, and applies a withdrawal that is due.
    pub(crate) fn beat(&self) {
        let now = nanos(self.clock.monotonic());
        self.beat_at.store(now, Ordering::Release);
        self.withdraw_if_due(now);
    }

    fn withdraw_if_due(&self, now: u64) {
        let due = self.withdrawn_at.load(Ordering::Acquire) <= now;
        if due && self.withdraw_now() {
            log_withdrawal();
        }
    }

    /// A withdrawal takes effect. Returns whether the bundles were in use.
    pub(crate) fn withdraw_now(&self) -> bool {
        if self.judge.verdict() != Verdict::Ready {
            return false;
        }
        self.metrics.record_ready(false);
        let revision = self.take_back(&mut self.record());
        if let Some(revision) = revision {
            self.notify(revision);
        }
        revision.is_some()
    }

    /// Whether the task has not reported for too long, or a message has waited for too long.
    fn is_overdue(&self) -> bool {
        let now = nanos(self.clock.monotonic());
        let since = self.beat_at.load(Ordering::Acquire);
        let since = since.min(self.reading_since.load(Ordering::Acquire));
        now.saturating_sub(since) > nanos(OVERDUE)
    }

    /// A message waits to be applied, until the result is dropped.
    pub(crate) fn reading(&self) -> impl Drop + use<'_> {
        struct Reading<'a>(&'a AtomicU64);
        impl Drop for Reading<'_> {
            fn drop(&mut self) {
                self.0.store(NEVER, Ordering::Release);
            }
        }
        let now = nanos(self.clock.monotonic());
        self.reading_since.store(now, Ordering::Release);
        Reading(&self.reading_since)
    }

    /// A message could not be used.
    pub(crate) fn failed(&self, kind: &'static str, text: &str) {
        let now = self.clock.monotonic();
        self.record().failed(now, kind, text, None);
        self.metrics.record_error(kind);
    }

    /// The agent answered a call, or gave a token for it.
    pub(crate) fn answered(&self, with_token: bool) {
        let now = self.clock.monotonic();
        let mut record = self.record();
        record.last_contact = record.last_contact.max(Some(now));
        let wakes = with_token && !record.connected;
        drop(record);
        if wakes {
            self.token_came.notify_one();
        }
    }

    /// A whole message was discarded: what is known is no longer what the issuer says.
    pub(crate) fn discarding(&self) {
        let now = self.clock.monotonic();
        let mut record = self.record();
        record.discarding = true;
        record.last_contact = record.last_contact.max(Some(now));
    }

    /// Another attempt to open the stream.
    pub(crate) fn reconnecting(&self) {
        self.record().reconnect_attempts += 1;
        self.metrics.record_reconnect_attempt();
        self.record_age();
    }

    /// Whether the stream ever was open and sent bundles.
    pub(crate) fn was_connected(&self) -> bool {
        self.record().was_connected
    }

    /// The start failed with a permanent error.
    pub(crate) fn refuse(&self, error: WorkloadApiError) {
        if self.judge.verdict() == Verdict::NotReady {
            self.refused.send_replace(Some(Arc::new(error)));
        }
    }

    /// The agent answered differently since.
    pub(crate) fn no_longer_refused(&self) {
        self.refused
            .send_if_modified(|refused| refused.take().is_some());
    }

    /// Records the readiness and the age of the last contact.
    pub(crate) fn record_age(&self) {
        self.metrics.record_ready(self.revision().is_ok());
        let now = self.clock.monotonic();
        // The lock is released first: a recorder may read the state.
        let contact = self.record().contact(self.heard());
        if let Some(contact) = contact {
            let age = now.saturating_sub(contact);
            self.metrics.record_bundle_age(age);
            self.metrics
                .record_contact(self.clock.now().saturating_sub(age));
        }
    }

    // === Lifetime ===

    /// Asks the task to end. From now on every answer is `Closed`.
    pub(crate) fn close(&self) {
        if !self.closing.send_replace(true) {
            self.metrics.record_ready(false);
            let revision = self.judge.turn(Verdict::Closed).unwrap_or_default();
            self.snapshot.store(Arc::new(Snapshot::default()));
            // In one step, so that the end is not taken for a change.
            self.notices.send_modify(|notice| {
                notice.closed = true;
                notice.revision = notice.revision.max(revision);
            });
            self.client.line().close();
        }
    }

    /// The task has ended for any reason.
    pub(crate) fn ended(&self) {
        self.close();
        let now = self.clock.monotonic();
        let mut record = self.record();
        record.disconnected(now, self.heard());
        record.domains.clear();
        drop(record);
        self.ended.send_replace(true);
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closing.borrow()
    }

    pub(crate) async fn until_closing(&self) {
        // The sender lives as long as `self`.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    pub(crate) async fn until_ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
        self.client.line().pulse().until_quiet().await;
    }

    /// Waits until tokens can be judged.
    pub(crate) async fn until_ready(&self) -> Result<(), JwtSourceError> {
        let mut notices = self.notices.subscribe();
        let mut refused = self.refused.subscribe();
        loop {
            match self.revision() {
                Ok(_) => return Ok(()),
                Err(BundlesUnavailable::Closed) => return Err(JwtSourceError::closed()),
                Err(_) => {}
            }
            if let Some(error) = &*refused.borrow_and_update() {
                return Err(JwtSourceError::refused(error));
            }
            tokio::select! {
                _ = notices.changed() => {}
                _ = refused.changed() => {}
            }
        }
    }

    pub(crate) fn notices(&self) -> watch::Receiver<Notice> {
        self.notices.subscribe()
    }

    // === The state ===

    /// Why there are no bundles yet: the code of the agent's last error, if any, and a text.
    pub(crate) fn why_not_ready(&self) -> (Option<GrpcCode>, String) {
        self.record().why_not_ready()
    }

    pub(crate) fn state(&self) -> SourceState {
        // Without the lock: this wakes watchers if keys have become stale.
        let _ = self.revision();
        let record = self.record();
        let now = self.clock.monotonic();
        let verdict = self.revision_as_told().map(|_| ());
        let snapshot = self.snapshot.load_full();
        let revision = self.judge.revision();
        let overdue = self.is_overdue();
        record.state(now, self.heard(), &snapshot.set, revision, verdict, overdue)
    }

    fn heard(&self) -> Option<Duration> {
        self.client.line().pulse().heard()
    }

    fn notify(&self, revision: u64) {
        self.notices
            .send_modify(|notice| notice.revision = notice.revision.max(revision));
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // No code that may panic runs under the lock.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a message changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// The set differs from the one before.
    pub(crate) changed: bool,
    /// It is the first set.
    pub(crate) first: bool,
    /// It ends a withdrawal.
    pub(crate) given_back: bool,
    /// The stream was lost before.
    pub(crate) reconnected: bool,
    /// A key was removed.
    pub(crate) lost_keys: bool,
}

pub(super) fn log_withdrawal() {
    tracing::warn!("the withdrawal of the bundles takes effect");
}

fn lost_a_key(old: &Arc<JwtBundle>, set: &JwtBundleSet) -> bool {
    let Some(new) = set.get(old.trust_domain().name()) else {
        return !old.is_empty();
    };
    !Arc::ptr_eq(old, new)
        && old
            .authorities()
            .any(|key| new.authority(key.key_id()).is_none())
}

fn nanos(moment: Duration) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(NEVER)
}
