//! What the handles and the background task share.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use super::super::revision::Revision;
use super::super::trust_clock::{NEVER, TrustClock, nanos};
use super::document::{About, Document};
use super::state::{HttpsBundlesState, PollError};
use crate::bundle::{BundleAnswer, BundlesUnavailable, JwtBundle};
use crate::clock::Clock;
use crate::identity::TrustDomain;
use crate::metrics::MetricsRecorder;

pub(super) struct Shared {
    pub(super) trust_domain: TrustDomain,
    pub(super) clock: Arc<TrustClock>,
    metrics: Arc<dyn MetricsRecorder>,
    url: Box<str>,
    max_staleness: Option<Duration>,
    cooldown: Duration,
    bundle: ArcSwapOption<JwtBundle>,
    pub(super) revision: Revision,
    // Moments of the clock, in nanoseconds. The caller compares them, so a task that hangs cannot
    // delay them.
    stale_at: AtomicU64,
    early_at: AtomicU64,
    beat_at: AtomicU64,
    // The readiness that was recorded last.
    recorded_ready: AtomicBool,
    /// Wakes the task for an early poll.
    pub(super) early: Notify,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    about: About,
    document: Option<Arc<[u8]>>,
    highest: Option<u64>,
    polls: u64,
    rollbacks: u64,
    contact: Option<Duration>,
    changed: Option<Duration>,
    next_poll: Option<Duration>,
    error: Option<PollError>,
    save_error: Option<Box<str>>,
}

/// Documented at `HttpsBundlesState::overdue`.
const OVERDUE: Duration = Duration::from_secs(15);

impl Shared {
    pub(super) fn new(
        trust_domain: TrustDomain,
        url: String,
        clock: Arc<dyn Clock>,
        metrics: Arc<dyn MetricsRecorder>,
        max_staleness: Option<Duration>,
        cooldown: Duration,
    ) -> Self {
        let clock = Arc::new(TrustClock::new(clock));
        metrics.record_ready(false);
        Self {
            trust_domain,
            beat_at: AtomicU64::new(nanos(clock.monotonic())),
            clock,
            metrics,
            url: url.into(),
            max_staleness,
            cooldown,
            bundle: ArcSwapOption::empty(),
            revision: Revision::default(),
            stale_at: AtomicU64::new(NEVER),
            early_at: AtomicU64::new(0),
            recorded_ready: AtomicBool::new(false),
            early: Notify::new(),
            record: Mutex::default(),
        }
    }

    // === For validation ===

    pub(super) fn revision(&self) -> Result<u64, BundlesUnavailable> {
        let stale_at = self.stale_at.load(Ordering::Acquire);
        let revision = self.revision.get()?;
        if stale_at != NEVER && nanos(self.clock.monotonic()) >= stale_at {
            return Err(BundlesUnavailable::Stale);
        }
        Ok(revision)
    }

    pub(super) fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        if trust_domain != self.trust_domain.name() {
            return BundleAnswer::UnknownTrustDomain;
        }
        match self.current() {
            Ok(bundle) => BundleAnswer::Ready(bundle),
            Err(why) => BundleAnswer::Unavailable(why),
        }
    }

    pub(super) fn current(&self) -> Result<Arc<JwtBundle>, BundlesUnavailable> {
        self.revision()?;
        self.latest().ok_or(BundlesUnavailable::NotReady)
    }

    /// Requests an early poll, at most once per cooldown.
    pub(super) fn unknown_key(&self, trust_domain: &str) {
        if trust_domain != self.trust_domain.name() {
            return;
        }
        let now = self.clock.monotonic();
        let early_at = self.early_at.load(Ordering::Acquire);
        if nanos(now) < early_at {
            return;
        }
        let next = nanos(now.saturating_add(self.cooldown));
        // Only one of several concurrent callers succeeds.
        let exchanged =
            self.early_at
                .compare_exchange(early_at, next, Ordering::AcqRel, Ordering::Acquire);
        if exchanged.is_ok() {
            self.early.notify_one();
        }
    }

    pub(super) fn document(&self) -> Option<Arc<[u8]>> {
        self.record().document.clone()
    }

    pub(super) fn state(&self) -> HttpsBundlesState {
        let now = self.clock.monotonic();
        let beat_at = Duration::from_nanos(self.beat_at.load(Ordering::Acquire));
        let revision = self.revision();
        let record = self.record();
        let since = |moment: Duration| now.saturating_sub(moment);
        HttpsBundlesState {
            trust_domain: self.trust_domain.clone(),
            url: self.url.clone(),
            revision,
            following: !self.revision.has_ended(),
            overdue: now.saturating_sub(beat_at) > OVERDUE,
            keys: self.bundle.load().as_ref().map_or(0, |bundle| bundle.len()),
            sequence: record.highest,
            polls: record.polls,
            rollbacks: record.rollbacks,
            last_success: record.contact.map(since),
            last_change: record.changed.map(since),
            next_poll: record.next_poll.map(|at| at.saturating_sub(now)),
            last_error: record.error.clone(),
            save_error: record.save_error.clone(),
        }
    }

    // === For the task ===

    /// The bundle of the document that was accepted last.
    pub(super) fn latest(&self) -> Option<Arc<JwtBundle>> {
        self.bundle.load_full()
    }

    pub(super) fn with_latest_about<T>(&self, read: impl FnOnce(&About) -> T) -> Option<T> {
        let record = self.record();
        record.document.as_ref().map(|_| read(&record.about))
    }

    /// Reports that the task runs, and records whether the bundle became stale.
    pub(super) fn beat(&self) {
        let now = self.clock.monotonic();
        self.beat_at.store(nanos(now), Ordering::Release);
        let revision = self.revision();
        let ready = revision.is_ok();
        if self.recorded_ready.swap(ready, Ordering::AcqRel) != ready {
            self.metrics.record_ready(ready);
            if revision == Err(BundlesUnavailable::Stale) {
                let trust_domain = self.trust_domain.name();
                tracing::warn!(
                    trust_domain,
                    "a polled bundle is stale: tokens cannot be verified"
                );
            }
        }
    }

    pub(super) fn poll_begins(&self) {
        self.record().next_poll = None;
        self.beat();
    }

    /// The next poll begins after `wait`. An unknown key causes none before `not_before`.
    pub(super) fn poll_ends(&self, wait: Duration, not_before: Option<Duration>) {
        let now = self.clock.monotonic();
        let mut record = self.record();
        record.polls += 1;
        record.next_poll = Some(now.saturating_add(wait));
        let age = record.contact.map(|contact| now.saturating_sub(contact));
        drop(record);
        if let Some(wait) = not_before {
            let at = nanos(now.saturating_add(wait));
            self.early_at.fetch_max(at, Ordering::AcqRel);
        }
        if let Some(age) = age {
            self.metrics.record_bundle_age(age);
        }
        self.beat();
    }

    /// The document is the one that was accepted last.
    pub(super) fn not_modified(&self) {
        let unusable = self.latest().and_then(|bundle| unusable(&bundle));
        self.contact(None, unusable);
    }

    /// Applies a document. `false` if its sequence is lower than the accepted one.
    pub(super) fn take(&self, document: Document, bytes: Arc<[u8]>) -> bool {
        let Document { keys, about } = document;
        let trust_domain = self.trust_domain.name();
        let before = self.latest();
        let mut record = self.record();
        if let (Some(highest), Some(sequence)) = (record.highest, about.sequence)
            && sequence < highest
        {
            record.rollbacks += 1;
            drop(record);
            let text = format!(
                "the document's spiffe_sequence {sequence} is lower than {highest}, which was \
                 accepted before; publish the newest bundle there, or restart this process to accept it"
            );
            self.fail(PollError::new("bundle-rollback", text));
            return false;
        }
        let same_keys = before.as_deref() == Some(&keys);
        let same = same_keys && record.about == about;
        if record.highest.is_some() && about.sequence == record.highest && !same {
            tracing::warn!(
                trust_domain,
                sequence = about.sequence,
                "a polled bundle has new content under the same spiffe_sequence; it is accepted"
            );
        }
        record.highest = record.highest.max(about.sequence);
        record.about = about;
        record.document = Some(bytes);
        if !same_keys {
            record.changed = Some(self.clock.monotonic());
        }
        drop(record);
        let error = unusable(&keys);
        // Stored even if only ignored elements differ: they are visible in the state.
        let known = keys.len();
        self.bundle.store(Some(Arc::new(keys)));
        self.contact((!same_keys).then_some(known), error);
        true
    }

    /// A poll succeeded. `changed` is the number of keys, if they differ from those before.
    fn contact(&self, changed: Option<usize>, error: Option<String>) {
        let (wall, now) = self.clock.both();
        let was_stale = self.revision() == Err(BundlesUnavailable::Stale);
        let mut record = self.record();
        record.contact = Some(now);
        if error.is_none() {
            record.error = None;
        }
        drop(record);
        // The revision before the moment: otherwise a token of a withdrawn key, cached before
        // the bundle was stale, could be accepted again for a moment.
        let raised = (changed.is_some() || was_stale).then(|| self.revision.raise());
        let stale_at = self.max_staleness.map(|max| nanos(now.saturating_add(max)));
        self.stale_at
            .store(stale_at.unwrap_or(NEVER), Ordering::Release);
        if let Some(revision) = raised {
            self.revision.notify(revision);
            if let Some(keys) = changed {
                let trust_domain = self.trust_domain.name();
                tracing::info!(trust_domain, revision, keys, "a polled bundle changed");
                self.metrics.record_update();
            }
        }
        self.metrics.record_contact(wall);
        if let Some(text) = error {
            self.fail(PollError::new("bundle-unusable", text));
        }
        self.beat();
    }

    pub(super) fn fail(&self, error: PollError) {
        let kind = error.kind;
        let trust_domain = self.trust_domain.name();
        let text = error.text.clone();
        // The lock is released first: a recorder may read the state.
        let before = self.record().error.replace(error);
        // Logged as a warning once: a rollback and an outage repeat the same text.
        let is_new = before.is_none_or(|before| before.kind != kind || before.text != text);
        if is_new {
            tracing::warn!(trust_domain, kind, error = %text, "polling a bundle failed");
        } else {
            tracing::debug!(trust_domain, kind, error = %text, "polling a bundle failed again");
        }
        self.metrics.record_error(kind);
    }

    pub(super) fn saved(&self, outcome: io::Result<()>) {
        let error = outcome
            .err()
            .map(|error| error.to_string().into_boxed_str());
        if let Some(error) = &error {
            let trust_domain = self.trust_domain.name();
            tracing::warn!(trust_domain, %error, "a polled bundle could not be saved");
        }
        self.record().save_error = error;
    }

    /// The task ended for any reason.
    pub(super) fn ended(&self) {
        self.revision.end();
        if self.recorded_ready.swap(false, Ordering::AcqRel) {
            self.metrics.record_ready(false);
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why no key is usable, if keys were left out.
fn unusable(bundle: &JwtBundle) -> Option<String> {
    let first = bundle.none_usable()?;
    Some(format!(
        "no key of the document is usable, and all tokens of its trust domain are rejected; the \
         first ignored key: {first}"
    ))
}
