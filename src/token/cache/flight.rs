//! One fetch, shared by all requests that wait for it.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{AbortHandle, BoxFuture, Shared, abortable};
use tokio::sync::watch;

use super::breaker::Probe;
use super::context::Context;
use super::entry::{Entry, Landing};
use super::error::TokenError;
use super::limits::Permit;
use super::moment::{Moment, nanos};
use super::settings::Settings;
use super::token::Token;
use crate::metrics::SvidCacheEvent;
use crate::runtime::Missing;
use crate::token::{FetchSvidError, FetchSvidReason, JwtSvid, SvidRequest};

/// The result for all waiters of a flight.
pub(crate) type Outcome = Shared<BoxFuture<'static, FlightResult>>;
pub(crate) type FlightResult = Result<Arc<Token>, Down>;

/// Why a flight ended without a token.
#[derive(Clone)]
pub(crate) enum Down {
    /// The fetch failed.
    Failed(TokenError),
    /// It was cancelled, or its runtime ended. This is no sign of a problem at the issuer.
    Lost,
}

/// A task that exceeds its deadline by this much is lost.
const LEASE_SLACK: Duration = Duration::from_secs(2);

/// A fetch in progress. A spawned task and every waiter poll it, so that a waiter that is dropped
/// or no longer polled, or a runtime that ends, does not block the others.
pub(crate) struct Flight {
    pub(super) id: u64,
    pub(super) started: u64,
    /// After this time the flight counts as lost.
    pub(super) lease: u64,
    /// When its call began; `None` while it is queued.
    pub(super) called: Option<u64>,
    pub(super) outcome: Outcome,
    /// Whether a request waits for it.
    pub(super) urgent: Arc<watch::Sender<bool>>,
    abort: AbortHandle,
}

impl Flight {
    /// Starts a flight. Fails without a tokio runtime with timers.
    pub(crate) fn start(
        entry: &Arc<Entry>,
        id: u64,
        now: Moment,
        probe: Option<Probe>,
        urgent: bool,
    ) -> Result<Box<Self>, Missing> {
        let cx = &entry.cx;
        let runtime = cx.runtime()?;
        let urgent = Arc::new(watch::Sender::new(urgent));
        let task = Arc::new(());
        let pilot = Pilot {
            cx: cx.clone(),
            // Weak, because the entry holds its flight: a cycle would leak both.
            entry: Arc::downgrade(entry),
            request: entry.request.clone(),
            flight: id,
            urgent: urgent.clone(),
            probe: probe.map(|(id, _)| id),
            task: Arc::downgrade(&task),
        };
        let (flying, abort) = abortable(pilot.fly(probe.map(|(_, deadline)| deadline)));
        let flying = flying.map(|result| result.unwrap_or(Err(Down::Lost)));
        let outcome = flying.boxed().shared();
        drop(runtime.spawn(outcome.clone().map(move |_| drop(task))));

        // First the queue, then the call.
        let wait = cx
            .settings
            .fetch_deadline
            .saturating_mul(2)
            .saturating_add(LEASE_SLACK);
        Ok(Box::new(Self {
            id,
            started: now.mono(),
            lease: now.plus(wait).mono(),
            called: None,
            outcome,
            urgent,
            abort,
        }))
    }
}

/// A flight ends when its entry drops it, so there are never two for one entry.
impl Drop for Flight {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

struct Pilot {
    cx: Arc<Context>,
    entry: Weak<Entry>,
    request: SvidRequest,
    flight: u64,
    urgent: Arc<watch::Sender<bool>>,
    probe: Option<u64>,
    /// Dropped with the task that was spawned for the flight.
    task: Weak<()>,
}

impl Pilot {
    async fn fly(mut self, probe_deadline: Option<Duration>) -> FlightResult {
        // If a waiter on another runtime polls timers and sockets of a runtime that was shut down,
        // they panic. The panic is caught: the flight ends, and the waiter continues.
        let cleared = AssertUnwindSafe(self.cleared(probe_deadline));
        let landing = match cleared.catch_unwind().await {
            Ok(Landing::Answer(Err(error)))
                if error.reason() == FetchSvidReason::Panicked && self.task.strong_count() == 0 =>
            {
                Landing::Lost
            }
            Ok(landing) => landing,
            Err(_) => Landing::Lost,
        };
        let Some(entry) = self.entry.upgrade() else {
            return Err(Down::Lost);
        };
        let now = self.cx.moment();
        let result = entry.land(self.flight, landing, now);
        self.cx.nudge.notify_waiters();
        result
    }

    /// Waits in the queue, then makes the call, unless the breaker opened in the meantime.
    async fn cleared(&mut self, probe_deadline: Option<Duration>) -> Landing {
        let cx = self.cx.clone();
        let settings = &cx.settings;
        if let Some(deadline) = probe_deadline {
            return Landing::Answer(self.call(None, deadline).await);
        }
        let queued = async {
            let permit = cx.limits.room(&self.urgent).await;
            cx.limits.turn(&*cx.clock).await;
            permit
        };
        let permit = match tokio::time::timeout(settings.fetch_deadline, queued).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => {
                return Landing::Answer(Err(FetchSvidError::new(
                    FetchSvidReason::Timeout,
                    "too many fetches of other audiences were queued before this one",
                )));
            }
        };
        let now = cx.moment();
        let Some(entry) = self.entry.upgrade() else {
            return Landing::Lost;
        };
        let rank = entry.rank(&entry.state());
        let admission = cx.breaker.admit(now, settings, &entry, rank);
        drop(entry);
        match admission {
            Ok(None) => Landing::Answer(self.call(Some(permit), settings.fetch_deadline).await),
            Ok(Some((id, deadline))) => {
                drop(permit);
                self.probe = Some(id);
                Landing::Answer(self.call(None, deadline).await)
            }
            Err(mut not_now) => {
                if let Some(first) = not_now.first.take() {
                    first.fetch_first(now);
                }
                Landing::NotStarted(not_now)
            }
        }
    }

    /// Makes one call to the issuer, and reports to the breaker how it ended.
    async fn call(
        &self,
        permit: Option<Permit>,
        deadline: Duration,
    ) -> Result<Token, FetchSvidError> {
        let cx = &*self.cx;
        let settings = &cx.settings;
        let began = cx.clock.monotonic();
        if let Some(entry) = self.entry.upgrade() {
            let lease = nanos(began.saturating_add(deadline).saturating_add(LEASE_SLACK));
            entry.calls(self.flight, nanos(began), lease);
        }
        let mut spoken_against = false;
        let mut fetch = std::pin::pin!(guarded(cx, &self.request));
        let quick = match self.probe {
            Some(_) => deadline,
            None => deadline.min(settings.slow_after),
        };
        let mut answer = tokio::time::timeout(quick, fetch.as_mut()).await.ok();
        if answer.is_none() && quick < deadline {
            spoken_against = true;
            self.count_against_issuer(&late(quick, settings));
            if let Some(entry) = self.entry.upgrade() {
                entry.is_slow();
            }
            // Frees the permit for others and keeps waiting, with a permit for slow calls.
            if let Some(_aside) = cx.limits.slow_permit() {
                drop(permit);
                answer = tokio::time::timeout(deadline - quick, fetch).await.ok();
            }
        }
        let answer = answer
            .unwrap_or_else(|| Err(late(cx.clock.monotonic().saturating_sub(began), settings)));
        match &answer {
            Err(error) if is_silence(error) => {
                if !spoken_against {
                    self.count_against_issuer(error);
                }
            }
            Err(error) if is_our_own(error) => {
                if let Some(probe) = self.probe {
                    cx.breaker.abandoned(probe);
                }
            }
            _ => {
                if cx.breaker.answered() {
                    tracing::info!("the issuer of JWT-SVIDs responds again");
                }
            }
        }
        let had = self.entry.upgrade();
        let had = had.and_then(|entry| entry.token.load_full());
        let answer = answer.and_then(|svid| Token::accept(svid, &self.request, had.as_deref(), cx));
        cx.fetched(&answer, cx.clock.monotonic().saturating_sub(began));
        answer
    }

    fn count_against_issuer(&self, error: &FetchSvidError) {
        let cx = &*self.cx;
        let now = cx.moment();
        if cx.breaker.failed(now, self.probe, error, &cx.settings) {
            cx.record(SvidCacheEvent::BreakerOpened);
        }
    }
}

/// If the pilot of a probe is dropped, another probe may start.
impl Drop for Pilot {
    fn drop(&mut self) {
        if let Some(probe) = self.probe {
            self.cx.breaker.abandoned(probe);
        }
    }
}

/// The fetcher's call; a panic in it is an error.
async fn guarded(cx: &Context, request: &SvidRequest) -> Result<JwtSvid, FetchSvidError> {
    let fetcher = &cx.fetcher;
    #[cfg(feature = "oauth")]
    if request.subject().is_some() && !fetcher.exchanges_subjects() {
        return Err(FetchSvidError::new(
            FetchSvidReason::InvalidRequest,
            "this source of tokens cannot exchange a subject token; use `oauth::AccessTokens` for \
             requests on behalf of a caller",
        ));
    }
    let answer = async { fetcher.fetch_svid(request).await };
    AssertUnwindSafe(answer)
        .catch_unwind()
        .await
        .unwrap_or_else(|_| {
            Err(FetchSvidError::new(
                FetchSvidReason::Panicked,
                "the fetcher panicked",
            ))
        })
}

fn late(after: Duration, settings: &Settings) -> FetchSvidError {
    let shown = after.min(settings.fetch_deadline).as_secs_f64();
    FetchSvidError::new(
        FetchSvidReason::Timeout,
        format!("the issuer did not respond within {shown:.0} s"),
    )
}

/// Whether the issuer did not respond. UNAVAILABLE from the issuer is a response; if the transport
/// reports it, the error has no code.
pub(super) fn is_silence(error: &FetchSvidError) -> bool {
    match error.reason() {
        FetchSvidReason::Timeout => true,
        FetchSvidReason::Unavailable => !error.is_answer(),
        _ => false,
    }
}

/// Whether the error has a cause on this side, not at the issuer.
pub(super) fn is_our_own(error: &FetchSvidError) -> bool {
    match error.reason() {
        FetchSvidReason::Closed | FetchSvidReason::Panicked | FetchSvidReason::NoRuntime => true,
        // Rejected before the call, such as an expired subject token.
        FetchSvidReason::InvalidRequest => !error.is_answer(),
        _ => false,
    }
}
