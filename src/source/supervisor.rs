//! The one task behind a source: it keeps the bundle stream open and takes in what comes.

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::time::Instant;
use tracing::Instrument;

use super::backoff::Backoff;
use super::intake::{self, Discarded, Intake};
use super::limits::ResourceLimits;
use super::shared::Shared;
use crate::bundle::{CannotJudge, JwtBundleSet};
use crate::svid_cache::SvidCache;
use crate::workload_api::{JwtBundlesMessage, WorkloadApiError, WorkloadApiErrorReason};

/// Messages larger than this are read on a thread that may block: reading a key takes tens of
/// microseconds, and a worker of the runtime must not be held up for long.
const READ_HERE: usize = 8 << 10;

/// How often the age of the last contact is told while all is quiet.
const AGE_EVERY: Duration = Duration::from_secs(60);

/// A limit of staleness that is too short to be kept must not become a storm.
const ASK_ANEW_AT_MOST_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    cache: SvidCache,
    limits: ResourceLimits,
    backoff: Backoff,
    // When a withdrawal is to take effect.
    withdraw_at: Option<Instant>,
    said: Said,
}

/// How a stream ended.
enum End {
    /// It broke, or could not be opened.
    Failed(WorkloadApiError),
    /// The agent ended it without an error.
    Clean,
    /// A call over the same connection did not get through.
    Doubtful,
    /// Nothing came for so long that we ask anew.
    Quiet,
}

impl Supervisor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        cache: SvidCache,
        limits: ResourceLimits,
        backoff: Backoff,
    ) -> Self {
        Self {
            shared,
            cache,
            limits,
            backoff,
            withdraw_at: None,
            said: Said::default(),
        }
    }

    /// Spawns the task. It holds no handle of the source, so it never keeps one alive.
    pub(crate) fn spawn(self, runtime: &tokio::runtime::Handle) -> tokio::task::AbortHandle {
        let ended = EndGuard {
            shared: self.shared.clone(),
            cache: self.cache.clone(),
        };
        let place = self.shared.client.line().place().to_owned();
        let span = tracing::info_span!("spiffe.jwt_source", endpoint = place);
        let task = async move {
            // Dropped last, by whatever ends the task: a shutdown, an abort, its runtime's end.
            let _ended = ended;
            let shared = self.shared.clone();
            let closing = pin!(shared.until_closing());
            match select(closing, pin!(self.run())).await {
                Either::Left(_) => tracing::debug!("closed"),
                Either::Right(((), _)) => {}
            }
        };
        runtime.spawn(task.instrument(span)).abort_handle()
    }

    async fn run(mut self) {
        let mut quiet = true;
        loop {
            if !quiet {
                self.shared.reconnecting();
            }
            let began = Instant::now();
            let (end, heard) = self.one_stream().await;
            // To ask anew is no trouble, and not to be taken for one.
            quiet = matches!(end, End::Quiet);
            if !quiet {
                self.shared.disconnected();
            }
            let healthy = heard && began.elapsed() >= self.backoff.longest();
            if healthy {
                self.backoff.reset();
            }
            let wait = self.ended(end, healthy);
            tracing::debug!(delay_ms = millis(wait), "reconnecting");
            self.wait(wait).await;
        }
    }

    /// One stream from its opening to its end, and whether it gave anything.
    async fn one_stream(&mut self) -> (End, bool) {
        let mut doubts = self.shared.client.line().doubts();
        let opened = {
            let client = self.shared.client.clone();
            let opening = pin!(async move { client.fetch_jwt_bundles().await });
            match self.or_withdraw(opening).await {
                Ok(stream) => stream,
                Err(error) => return (End::Failed(error), false),
            }
        };
        let mut stream = opened;
        let mut heard = false;
        // A quiet stream is asked anew before it counts as stale.
        let max_staleness = self.shared.max_staleness;
        let ask_anew = max_staleness.map(|max| (max / 2).max(ASK_ANEW_AT_MOST_EVERY));
        let mut ask_anew_at = None;
        loop {
            let generation = stream.generation();
            let next = tokio::select! {
                biased;
                message = stream.message() => message,
                _ = doubts.wait_for(|doubted| *doubted >= generation) => {
                    return (End::Doubtful, heard);
                }
                () = at(ask_anew_at) => return (End::Quiet, heard),
                () = tokio::time::sleep(AGE_EVERY), if heard => {
                    self.shared.record_age();
                    continue;
                }
                () = at(self.withdraw_at) => {
                    self.withdraw_now();
                    continue;
                }
            };
            match next {
                Ok(Some(message)) => {
                    if self.take_in(message).await {
                        heard = true;
                        ask_anew_at = ask_anew.and_then(|after| Instant::now().checked_add(after));
                    }
                }
                Ok(None) => return (End::Clean, heard),
                Err(error) => return (End::Failed(error), heard),
            }
        }
    }

    /// Waits for something, and lets a withdrawal take effect meanwhile.
    async fn or_withdraw<T>(
        &mut self,
        mut waited: std::pin::Pin<&mut impl Future<Output = T>>,
    ) -> T {
        loop {
            tokio::select! {
                biased;
                done = &mut waited => return done,
                () = at(self.withdraw_at) => self.withdraw_now(),
            }
        }
    }

    async fn wait(&mut self, wait: Duration) {
        let sleep = pin!(tokio::time::sleep(wait));
        self.or_withdraw(sleep).await;
    }

    /// Takes in a message; whether it was acceptable.
    async fn take_in(&mut self, message: JwtBundlesMessage) -> bool {
        let read = match self.read(message).await {
            Ok(Ok(intake)) => intake,
            Ok(Err(discarded)) => {
                self.shared.discarding();
                self.failed(discarded.kind(), &discarded.to_string(), None);
                return false;
            }
            Err(panicked) => {
                self.shared.discarding();
                self.failed(
                    "internal",
                    &format!("a message could not be read: {panicked}"),
                    None,
                );
                return false;
            }
        };
        for (domain, trouble) in &read.troubles {
            self.shared.metrics.record_error(trouble.kind);
            self.said.tell(
                trouble.kind,
                domain.name(),
                format_args!("trust domain {domain}: {}", trouble.text),
            );
        }
        for (name, why) in &read.unnamed {
            self.shared.metrics.record_error("bundle-unnamed");
            self.said.tell(
                "bundle-unnamed",
                name,
                format_args!("trust domain \"{name}\": {why}"),
            );
        }
        self.said.keep(|about| {
            read.troubles.contains_key(about)
                || read.unnamed.iter().any(|(name, _)| **name == *about)
        });
        let before = self.shared.known();
        let change = self.shared.take_in(read);
        self.withdraw_at = None;
        self.shared.record_age();
        if change.given_back {
            self.shared.metrics.record_withdrawal(false);
            tracing::info!("the issuer gave the bundles back");
        }
        if change.changed {
            self.shared.metrics.record_update();
            self.tell_of_set(change.first);
        }
        if change.lost_keys || change.given_back {
            let set = self.shared.known();
            let has = |set: &JwtBundleSet, trust_domain: &str, key_id: &str| {
                set.get(trust_domain)
                    .is_some_and(|bundle| bundle.authority(key_id).is_some())
            };
            self.cache.authorities_gone(&|trust_domain, key_id| {
                // What a withdrawal took is not known any more: there only the new set speaks.
                let had = change.given_back || has(&before, trust_domain, key_id);
                had && !has(&set, trust_domain, key_id)
            });
        }
        true
    }

    async fn read(
        &self,
        message: JwtBundlesMessage,
    ) -> Result<Result<Intake, Discarded>, tokio::task::JoinError> {
        let known = self.shared.known();
        let limits = self.limits;
        let bundles = match intake::unpack(message, &limits) {
            Ok(bundles) => bundles,
            Err(discarded) => return Ok(Err(discarded)),
        };
        let size: usize = bundles.values().map(|jwks| jwks.len()).sum();
        if size <= READ_HERE {
            return Ok(intake::read(bundles, &known, &limits));
        }
        tokio::task::spawn_blocking(move || intake::read(bundles, &known, &limits)).await
    }

    fn tell_of_set(&self, first: bool) {
        let set = self.shared.known();
        let keys: usize = set.iter().map(|bundle| bundle.len()).sum();
        let revision = self.shared.revision().unwrap_or_default();
        if first {
            tracing::info!(revision, trust_domains = set.len(), keys, "first bundles");
        } else {
            tracing::info!(revision, trust_domains = set.len(), keys, "bundles changed");
        }
    }

    /// What the end of a stream means, and how long to wait before the next.
    fn ended(&mut self, end: End, healthy: bool) -> Duration {
        let error = match end {
            End::Quiet => return Duration::ZERO,
            End::Clean => {
                tracing::debug!("the agent ended the bundle stream");
                return self.delay(healthy);
            }
            End::Doubtful => {
                // What does not answer a call will not tell of a change either.
                let text = "a call over the same connection got no answer; connecting anew";
                self.failed("doubtful-connection", text, None);
                return self.delay(healthy);
            }
            End::Failed(error) => error,
        };
        if error.reason() == WorkloadApiErrorReason::PermissionDenied {
            let judged = self.shared.revision().is_ok();
            if let Some(delay) = self.shared.withdraw(&error) {
                self.withdraw_at = Instant::now().checked_add(delay);
                tracing::warn!(delay_ms = millis(delay), "the issuer withdrew the bundles");
            } else if self.shared.revision() == Err(CannotJudge::Withdrawn)
                && self.withdraw_at.is_some()
            {
                // Its time came in the same moment as this answer.
                self.withdraw_now();
            } else if judged && self.shared.revision().is_err() {
                tracing::warn!("the withdrawal of the bundles takes effect");
            }
        }
        if error.reason() == WorkloadApiErrorReason::MessageTooLarge {
            self.shared.discarding();
        }
        let kind = error.kind();
        let text = error.to_string();
        let mendable = error.is_retryable();
        self.failed(kind, &text, Some(error.clone()));
        if mendable {
            self.shared.no_longer_refused();
            return self.delay(healthy);
        }
        self.shared.refuse(error);
        self.backoff.next_longest()
    }

    /// Immediate after a healthy stretch (Workload API section 4.2), else with backoff.
    fn delay(&mut self, healthy: bool) -> Duration {
        if healthy {
            Duration::ZERO
        } else {
            self.backoff.next()
        }
    }

    fn withdraw_now(&mut self) {
        self.withdraw_at = None;
        self.shared.withdraw_now();
        tracing::warn!("the withdrawal of the bundles takes effect");
    }

    fn failed(&mut self, kind: &'static str, text: &str, rpc: Option<WorkloadApiError>) {
        self.shared.failed(kind, text, rpc);
        self.said.tell(kind, "", format_args!("{text}"));
    }
}

/// Marks the source as ended when the task goes, in whatever way.
struct EndGuard {
    shared: Arc<Shared>,
    cache: SvidCache,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the task of this source panicked; it answers no more");
        } else if !self.shared.is_closed() {
            tracing::warn!("the runtime of this source is gone; it answers no more");
        }
        self.cache.close();
        self.shared.ended();
    }
}

/// Which troubles were told of, by class and by what they are about (nothing, where it is the
/// stream): the first is a warning, repeats are not.
#[derive(Default)]
struct Said(Vec<(&'static str, Box<str>)>);

impl Said {
    fn tell(&mut self, kind: &'static str, about: &str, text: std::fmt::Arguments<'_>) {
        if self.0.iter().any(|(k, a)| *k == kind && **a == *about) {
            tracing::debug!(kind, error = %text, "trouble with the bundle stream, again");
        } else {
            tracing::warn!(kind, error = %text, "trouble with the bundle stream");
            self.0.push((kind, about.into()));
        }
    }

    /// A message came, and only these are in trouble still.
    fn keep(&mut self, still: impl Fn(&str) -> bool) {
        self.0.retain(|(_, about)| {
            let keep = still(about);
            if !keep && !about.is_empty() {
                tracing::info!(trust_domain = %about, "its bundle is read again, or gone");
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
