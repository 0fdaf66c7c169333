//! The background task of a source: it keeps the bundle stream open and applies its messages.

use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::Instrument;

use super::backoff::Backoff;
use super::intake::{self, Intake, Trouble};
use super::limits::{ResourceLimits, WithdrawalPolicy};
use super::shared::{Shared, log_withdrawal};
use super::state::LastError;
use crate::bundle::JwtBundleSet;
use crate::source::own_thread;
use crate::token::SvidCache;
use crate::workload_api::{JwtBundlesMessage, WorkloadApiError, WorkloadApiErrorReason};

/// Larger messages are read on a separate thread: a key takes tens of microseconds, and a worker of
/// the runtime must not be blocked for long.
const READ_HERE: usize = 8 << 10;

/// How often the age of the last contact is recorded on a quiet stream.
const AGE_EVERY: Duration = Duration::from_secs(60);

/// A very short `max_staleness` must not cause a storm of requests.
const REOPEN_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// How often the task reports that it runs, and reads the clocks.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// For the time `FOR` after a withdrawal, the waits grow from `FIRST` to `MOST` only: a restarted agent
/// denies all workloads for some seconds, until it has synced.
mod quick {
    use std::time::Duration;

    pub(super) const FIRST: Duration = Duration::from_millis(250);
    pub(super) const MOST: Duration = Duration::from_secs(1);
    pub(super) const FOR: Duration = Duration::from_secs(10);
}

pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    cache: SvidCache,
    limits: ResourceLimits,
    backoff: Backoff,
    // The waits after a withdrawal, and until when they are quick.
    quick: Backoff,
    quick_until: Option<Instant>,
    jumps: watch::Receiver<u64>,
    jumped_at: Option<Instant>,
    logged: Logged,
}

/// How a stream ended.
enum End {
    /// It broke, or could not be opened.
    Failed(WorkloadApiError),
    /// The agent ended it without an error.
    Clean,
    /// A call over the same connection did not get through.
    Doubtful,
    /// No message came for so long that the stream is opened again.
    Quiet,
    /// The wall clock jumped: keys may have been revoked meanwhile, so the stream is opened again.
    Jumped,
}

impl Supervisor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        cache: SvidCache,
        limits: ResourceLimits,
        mut backoff: Backoff,
    ) -> Self {
        let jumps = shared.clock.jumps();
        let quick = backoff.quicker(quick::FIRST, quick::MOST);
        Self {
            shared,
            cache,
            limits,
            backoff,
            quick,
            quick_until: None,
            jumps,
            jumped_at: None,
            logged: Logged::default(),
        }
    }

    /// Spawns the task. It holds no handle of the source, so it never keeps one alive.
    pub(crate) fn spawn(self, runtime: &tokio::runtime::Handle) -> tokio::task::AbortHandle {
        let ended = EndGuard {
            shared: self.shared.clone(),
            cache: self.cache.clone(),
            known: false,
        };
        let place = self.shared.client.line().place().to_owned();
        let span = tracing::info_span!("spiffe.jwt_source", endpoint = place);
        let task = async move {
            let mut ended = ended;
            let shared = self.shared.clone();
            let closing = pin!(shared.until_closing());
            let beating = pin!(beating(&shared));
            let running = pin!(self.run());
            let working = select(running, beating);
            let working = AssertUnwindSafe(working).catch_unwind();
            match select(closing, working).await {
                Either::Left(_) => tracing::debug!("closed"),
                Either::Right((Ok(_), _)) => {}
                Either::Right((Err(_), _)) => {
                    tracing::error!("the task of this source panicked; the source is closed");
                }
            }
            // Not reached if the task is aborted, or dropped with its runtime.
            ended.known = true;
        };
        runtime.spawn(task.instrument(span)).abort_handle()
    }

    async fn run(mut self) {
        loop {
            let began = Instant::now();
            // The stream that is opened now includes all revocations before it.
            self.jumps.mark_unchanged();
            let (end, heard) = self.one_stream().await;
            let healthy = heard && began.elapsed() >= self.backoff.longest();
            if healthy {
                self.backoff.reset();
            }
            match end {
                // Opening the stream again is not an error.
                End::Quiet => {}
                End::Jumped => self.after_jump().await,
                end => {
                    let wait = self.ended(end, healthy);
                    if self.shared.was_connected() {
                        tracing::debug!(delay_ms = millis(wait), "reconnecting");
                    } else {
                        tracing::debug!(delay_ms = millis(wait), "retrying the first connection");
                    }
                    self.wait(wait).await;
                    self.shared.reconnecting();
                }
            }
        }
    }

    /// Waits if the last jump was a moment ago: a wall clock that jumps back and forth must not cause a
    /// storm of requests.
    async fn after_jump(&mut self) {
        let next = self.jumped_at.map(|at| at + REOPEN_AT_MOST_EVERY);
        if let Some(next) = next {
            tokio::time::sleep_until(next).await;
        }
        self.jumped_at = Some(Instant::now());
        tracing::debug!("the wall clock jumped; opening the bundle stream again");
    }

    /// Runs one stream until its end. Also returns whether it sent an accepted message.
    async fn one_stream(&mut self) -> (End, bool) {
        let mut doubts = self.shared.client.line().doubts();
        let mut stream = match self.shared.client.fetch_jwt_bundles().await {
            Ok(stream) => stream,
            Err(error) => return (End::Failed(error), false),
        };
        let mut heard = false;
        // A quiet stream is opened again before the bundles are stale.
        let max_staleness = self.shared.max_staleness;
        let reopen_after = max_staleness.map(|max| (max / 2).max(REOPEN_AT_MOST_EVERY));
        let mut reopen_at = None;
        loop {
            let generation = stream.generation();
            let next = tokio::select! {
                biased;
                message = stream.message() => message,
                _ = doubts.wait_for(|doubted| *doubted >= generation) => {
                    return (End::Doubtful, heard);
                }
                () = at(reopen_at) => return (End::Quiet, heard),
                () = tokio::time::sleep(AGE_EVERY), if heard => {
                    self.shared.record_age();
                    continue;
                }
                Ok(()) = self.jumps.changed() => return (End::Jumped, heard),
            };
            match next {
                Ok(Some(message)) => {
                    if self.take_in(message).await {
                        heard = true;
                        reopen_at =
                            reopen_after.and_then(|after| Instant::now().checked_add(after));
                    }
                }
                Ok(None) => return (End::Clean, heard),
                Err(error) => return (End::Failed(error), heard),
            }
        }
    }

    /// Waits before the next attempt. A token from the agent or a jump of the wall clock ends the wait
    /// early.
    async fn wait(&mut self, wait: Duration) {
        let soonest = Instant::now().checked_add(wait.min(quick::FIRST));
        let woken = async {
            tokio::select! {
                () = self.shared.token_came.notified() => {}
                Ok(()) = self.jumps.changed() => {}
            }
            at(soonest).await;
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep(wait) => {}
            () = woken => {}
        }
    }

    /// Applies a message. Returns whether it was accepted.
    async fn take_in(&mut self, message: JwtBundlesMessage) -> bool {
        let shared = self.shared.clone();
        let _reading = shared.reading();
        let read = match self.read(message).await {
            Some(Ok(intake)) => intake,
            Some(Err(discarded)) => return self.discard(discarded.kind, &discarded.text),
            None => {
                let text =
                    "a message of the agent was discarded: reading it panicked; please report this";
                return self.discard("internal", text);
            }
        };
        for (domain, trouble) in &read.troubles {
            let text = format!("trust domain {domain}: {}", trouble.text);
            self.report(trouble.kind, domain.name(), &text);
        }
        for (name, why) in &read.unnamed {
            let text = format!("trust domain \"{name}\": {why}");
            self.report("bundle-unnamed", name, &text);
        }
        self.logged.keep(|about| {
            read.troubles.contains_key(about)
                || read.unnamed.iter().any(|(name, _)| **name == *about)
        });
        let before = self.shared.known();
        let change = self.shared.take_in(read);
        self.quick_until = None;
        self.shared.record_age();
        if change.reconnected {
            self.shared.metrics.record_reconnect();
        }
        if change.given_back {
            self.shared.metrics.record_withdrawal(false);
            tracing::info!("the issuer restored the bundles");
        }
        if change.changed {
            self.shared.metrics.record_update();
            self.log_set(change.first);
        }
        if change.lost_keys || change.given_back {
            let set = self.shared.known();
            let has = |set: &JwtBundleSet, trust_domain: &str, key_id: &str| {
                set.get(trust_domain)
                    .is_some_and(|bundle| bundle.authority(key_id).is_some())
            };
            self.cache.authorities_removed(&|trust_domain, key_id| {
                // The keys before a withdrawal no longer count, only the new set does.
                let had = change.given_back || has(&before, trust_domain, key_id);
                had && !has(&set, trust_domain, key_id)
            });
        }
        true
    }

    async fn read(&self, message: JwtBundlesMessage) -> Option<Result<Intake, Trouble>> {
        let known = self.shared.known();
        let limits = self.limits;
        let bundles = match intake::unpack(message, &limits) {
            Ok(bundles) => bundles,
            Err(discarded) => return Some(Err(discarded)),
        };
        let size: usize = bundles.values().map(|jwks| jwks.len()).sum();
        if size <= READ_HERE {
            return Some(intake::read(bundles, &known, &limits));
        }
        own_thread::run(move || intake::read(bundles, &known, &limits)).await
    }

    fn log_set(&self, first: bool) {
        let set = self.shared.known();
        let keys: usize = set.iter().map(|bundle| bundle.len()).sum();
        let revision = self.shared.revision().unwrap_or_default();
        if first {
            tracing::info!(revision, trust_domains = set.len(), keys, "first bundles");
        } else {
            tracing::info!(revision, trust_domains = set.len(), keys, "bundles changed");
        }
    }

    /// Handles the end of a stream. Returns the wait before the next one.
    fn ended(&mut self, end: End, healthy: bool) -> Duration {
        let error = match end {
            End::Clean | End::Quiet | End::Jumped => {
                tracing::debug!("the agent ended the bundle stream");
                self.shared.stream_ended(None);
                return self.delay(healthy);
            }
            // A connection on which calls get no response will not report changes either.
            End::Doubtful => LastError::new(
                "doubtful-connection",
                "a call over the same connection got no response; reconnecting",
            ),
            End::Failed(error) => LastError::of(&error),
        };
        let reason = error.rpc.as_ref().map(WorkloadApiError::reason);
        if reason == Some(WorkloadApiErrorReason::MessageTooLarge) {
            self.shared.discarding();
        }
        let withdrew = self.shared.stream_ended(Some(error.clone()));
        match withdrew {
            Some(WithdrawalPolicy::Immediate) => log_withdrawal(),
            Some(WithdrawalPolicy::After(delay)) => {
                tracing::warn!(delay_ms = millis(delay), "the issuer withdrew the bundles");
            }
            Some(WithdrawalPolicy::Keep) | None => {}
        }
        self.logged.log(error.kind, "", &error.text);
        if withdrew.is_some() {
            self.quick.reset();
            self.quick_until = Instant::now().checked_add(quick::FOR);
        }
        let Some(rpc) = error.rpc else {
            return self.delay(healthy);
        };
        if rpc.is_retryable() {
            self.shared.no_longer_rejected();
            let denied = reason == Some(WorkloadApiErrorReason::PermissionDenied);
            return match self.quick_until {
                Some(until) if denied && until > Instant::now() => self.quick.next(),
                _ => self.delay(healthy),
            };
        }
        self.shared.reject(rpc);
        self.backoff.next_longest()
    }

    /// Immediate after a healthy period (Workload API section 4.2), else with backoff.
    fn delay(&mut self, healthy: bool) -> Duration {
        if healthy {
            Duration::ZERO
        } else {
            self.backoff.next()
        }
    }

    /// The message cannot be used. Returns that it was not accepted.
    fn discard(&mut self, kind: &'static str, text: &str) -> bool {
        self.shared.discarding();
        self.shared.failed(kind, text);
        self.logged.log(kind, "", text);
        false
    }

    fn report(&mut self, kind: &'static str, about: &str, text: &str) {
        self.shared.metrics.record_error(kind);
        self.logged.log(kind, about, text);
    }
}

/// Reports that the task runs, and applies withdrawals that are due.
async fn beating(shared: &Shared) {
    let mut beats = tokio::time::interval(BEAT_EVERY);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        shared.beat();
    }
}

/// Closes the source when its task ends for any reason.
struct EndGuard {
    shared: Arc<Shared>,
    cache: SvidCache,
    /// The reason was logged.
    known: bool,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        // Not a warning: a runtime ends with each test and each program. Later calls return `Closed`.
        if !self.known && !self.shared.is_closed() {
            tracing::info!("the source is closed: the runtime that it was built on has ended");
        }
        self.cache.close();
        self.shared.ended();
    }
}

/// The errors that were logged, by class and subject (empty for the stream itself): the first is a
/// warning, repeats are debug lines.
#[derive(Default)]
struct Logged(Vec<(&'static str, Box<str>)>);

impl Logged {
    fn log(&mut self, kind: &'static str, about: &str, text: &str) {
        if self.0.iter().any(|(k, a)| *k == kind && **a == *about) {
            tracing::debug!(kind, error = %text, "error of the bundle stream, again");
        } else {
            tracing::warn!(kind, error = %text, "error of the bundle stream");
            self.0.push((kind, about.into()));
        }
    }

    /// A message was applied: keeps the errors that it still has.
    fn keep(&mut self, still: impl Fn(&str) -> bool) {
        self.0.retain(|(_, about)| {
            let keep = still(about);
            if !keep && !about.is_empty() {
                tracing::info!(trust_domain = %about, "its bundle is readable again, or removed");
            }
            keep
        });
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => pending().await,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
