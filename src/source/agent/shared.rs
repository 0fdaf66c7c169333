//! What the source's handles and its background task share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::availability::Status;
use super::error::JwtSourceError;
use super::heartbeat::Heartbeat;
use super::hints::Hints;
use super::intake::Intake;
use super::limits::WithdrawalPolicy;
use super::published::{Published, Snapshot};
use super::record::Record;
use super::state::{LastError, SourceState};
use crate::bundle::{BundlesUnavailable, JwtBundle, JwtBundleSet};
use crate::clock::Clock;
use crate::grpc_code::GrpcCode;
use crate::metrics::MetricsRecorder;
use crate::source::trust_clock::{NEVER, TrustClock, nanos};
use crate::workload_api::{WorkloadApiClient, WorkloadApiError, WorkloadApiErrorReason};

pub(crate) struct Shared {
    pub(crate) client: WorkloadApiClient,
    pub(crate) hints: Hints,
    pub(crate) clock: Arc<TrustClock>,
    pub(crate) metrics: Arc<dyn MetricsRecorder>,
    pub(crate) withdrawal: WithdrawalPolicy,
    pub(crate) max_staleness: Option<Duration>,
    pub(crate) published: Published,
    heartbeat: Heartbeat,
    /// Wakes the task: the agent returned a token while the bundle stream was not open.
    pub(crate) token_came: Notify,
    record: Mutex<Record>,
    // The permanent error of a start-up, until the agent responds differently.
    rejected: watch::Sender<Option<Arc<WorkloadApiError>>>,
    closing: watch::Sender<bool>,
    ended: watch::Sender<bool>,
}

impl Shared {
    pub(crate) fn new(
        client: WorkloadApiClient,
        clock: Arc<TrustClock>,
        metrics: Arc<dyn MetricsRecorder>,
        withdrawal: WithdrawalPolicy,
        max_staleness: Option<Duration>,
    ) -> Self {
        Self {
            client,
            hints: Hints::default(),
            published: Published::new(clock.clone()),
            heartbeat: Heartbeat::new(clock.clone()),
            clock,
            metrics,
            withdrawal,
            max_staleness,
            token_came: Notify::new(),
            record: Mutex::new(Record::default()),
            rejected: watch::Sender::new(None),
            closing: watch::Sender::new(false),
            ended: watch::Sender::new(false),
        }
    }

    // === For validation ===

    /// The revision, if the bundles are usable.
    pub(crate) fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.published.revision()
    }

    // === For the task ===

    /// The set that a message is compared with.
    pub(crate) fn known(&self) -> JwtBundleSet {
        self.published.snapshot().set.clone()
    }

    /// Applies a message. Returns what it changed.
    pub(crate) fn take_in(&self, mut intake: Intake) -> Change {
        let now = self.clock.monotonic();
        // A withdrawal that is due takes effect first. Otherwise the time of the next beat would
        // decide whether this message can restore withdrawn keys.
        self.withdraw_if_due(now);
        let withdrawn = self.is_withdrawn();
        if withdrawn {
            // The message was read when the keys before the withdrawal were still known.
            intake.forget_kept();
        }
        let before = self.published.snapshot();
        let unread = intake.troubles.keys().cloned();
        let unreadable = unread
            .filter(|domain| intake.set.get(domain.name()).is_none())
            .map(JwtBundle::without_keys)
            .collect();
        let lost_keys = before.set.iter().any(|old| lost_a_key(old, &intake.set));
        // A message without any bundle neither completes a start nor ends a withdrawal.
        let first = self.published.status() == Status::NotReady;
        let nothing = intake.set.is_empty() && (first || withdrawn);
        // Held until everything has changed, so that a state is from before the change or after it.
        let mut record = self.record();
        let noted = record.note(now, &before.set, &intake, nothing);
        let (given_back, reconnected) = (noted.given_back, noted.reconnected);
        if nothing {
            return Change {
                reconnected,
                ..Change::default()
            };
        }
        let after_max = |time: Duration| {
            let max = self.max_staleness?;
            Some(nanos(time.saturating_add(max)))
        };
        let aging = noted.aging.into_iter();
        let snapshot = Snapshot {
            set: intake.set,
            unreadable,
            aging: aging
                .filter_map(|(domain, updated)| Some((domain, after_max(updated)?)))
                .collect(),
        };
        let stale_at = after_max(now).unwrap_or(NEVER);
        let (changed, raised) = self.published.replace(snapshot, stale_at);
        drop(record);
        self.no_longer_rejected();
        // Last: a woken task sees all changes.
        if let Some(revision) = raised {
            self.published.notify(revision);
        }
        Change {
            changed: first || changed,
            first,
            given_back,
            reconnected,
            lost_keys,
        }
    }

    /// The stream ended, or could not be opened. If the agent denied the bundles for the first time,
    /// returns what happens to them.
    pub(crate) fn stream_ended(&self, error: Option<LastError>) -> Option<WithdrawalPolicy> {
        let now = self.clock.monotonic();
        let rpc = error.as_ref().and_then(|error| error.rpc.as_ref());
        let reason = rpc.map(WorkloadApiError::reason);
        // A stream that ends without an error was ended by the agent.
        let is_answer = error.is_none() || rpc.is_some_and(WorkloadApiError::is_answer);
        // Only the task withdraws, and only here and in `beat`.
        let withdraws = reason == Some(WorkloadApiErrorReason::PermissionDenied)
            && self.published.status() == Status::Ready
            && self.record().withdrawn.is_none();
        let withdrew = withdraws.then_some(self.withdrawal);
        // Recorded before it takes effect, and without the lock: a recorder may read the state.
        if let Some(error) = &error {
            self.metrics.record_error(error.kind);
        }
        if withdrew.is_some() {
            self.metrics.record_withdrawal(true);
        }
        if withdrew == Some(WithdrawalPolicy::Immediate) {
            self.metrics.record_ready(false);
        }
        let mut record = self.record();
        record.disconnected(now, self.heard());
        if is_answer {
            record.last_contact = record.last_contact.max(Some(now));
        }
        if let Some(error) = error {
            if withdraws {
                record.withdrawn = Some((now, error.text.clone()));
            }
            record.failed(now, error);
        }
        let revision = match withdrew {
            Some(WithdrawalPolicy::Immediate) => self.take_back(&mut record),
            Some(WithdrawalPolicy::After(delay)) => {
                self.published.withdraw_at(now.saturating_add(delay));
                None
            }
            Some(WithdrawalPolicy::Keep) | None => None,
        };
        drop(record);
        if let Some(revision) = revision {
            self.published.notify(revision);
        }
        withdrew
    }

    fn is_withdrawn(&self) -> bool {
        self.published.status() == Status::Withdrawn
    }

    /// The bundles are no longer used. Returns the new revision.
    fn take_back(&self, record: &mut Record) -> Option<u64> {
        let revision = self.published.withdraw()?;
        record.domains.clear();
        Some(revision)
    }

    /// Reports that the task runs, and applies a withdrawal that is due.
    pub(crate) fn beat(&self) {
        self.heartbeat.beat();
        self.withdraw_if_due(self.clock.monotonic());
    }

    fn withdraw_if_due(&self, now: Duration) {
        if self.published.withdrawal_is_due(now) && self.withdraw_now() {
            log_withdrawal();
        }
    }

    /// A withdrawal takes effect. Returns whether the bundles were in use.
    pub(crate) fn withdraw_now(&self) -> bool {
        if self.published.status() != Status::Ready {
            return false;
        }
        self.metrics.record_ready(false);
        let revision = self.take_back(&mut self.record());
        if let Some(revision) = revision {
            self.published.notify(revision);
        }
        revision.is_some()
    }

    /// A message waits to be applied, until the result is dropped.
    pub(crate) fn reading(&self) -> impl Drop + use<'_> {
        self.heartbeat.reading()
    }

    /// A message could not be used.
    pub(crate) fn failed(&self, kind: &'static str, text: &str) {
        let now = self.clock.monotonic();
        self.record().failed(now, LastError::new(kind, text));
        self.metrics.record_error(kind);
    }

    /// The agent responded to a call, or returned a token.
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

    /// A whole message was discarded: the bundles may be outdated.
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
    pub(crate) fn reject(&self, error: WorkloadApiError) {
        if self.published.status() == Status::NotReady {
            self.rejected.send_replace(Some(Arc::new(error)));
        }
    }

    /// The agent has responded differently since.
    pub(crate) fn no_longer_rejected(&self) {
        self.rejected
            .send_if_modified(|rejected| rejected.take().is_some());
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

    /// Asks the task to end. Every later call returns `Closed`.
    pub(crate) fn close(&self) {
        if !self.closing.send_replace(true) {
            self.metrics.record_ready(false);
            self.published.close();
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

    /// Waits until tokens can be verified.
    pub(crate) async fn until_ready(&self) -> Result<(), JwtSourceError> {
        let mut notices = self.published.notices();
        let mut rejected = self.rejected.subscribe();
        loop {
            match self.revision() {
                Ok(_) => return Ok(()),
                Err(BundlesUnavailable::Closed) => return Err(JwtSourceError::closed()),
                Err(_) => {}
            }
            if let Some(error) = &*rejected.borrow_and_update() {
                return Err(JwtSourceError::rejected(error));
            }
            tokio::select! {
                _ = notices.changed() => {}
                _ = rejected.changed() => {}
            }
        }
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
        let unavailable = self.published.usable().err();
        let snapshot = self.published.snapshot();
        let revision = self.published.last_revision();
        let overdue = self.heartbeat.is_overdue();
        let heard = self.heard();
        record.state(now, heard, &snapshot.set, revision, unavailable, overdue)
    }

    fn heard(&self) -> Option<Duration> {
        self.client.line().pulse().heard()
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
