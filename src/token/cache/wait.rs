//! The wait of a request for a fetch, with its limits.

use std::sync::Arc;
use std::time::Duration;

use super::entry::{Entry, Resolved};
use super::error::{TokenError, TokenErrorReason};
use super::flight::{Down, Flight, Outcome};
use super::moment::Moment;
use super::snapshot::TokenState;
use super::token::Token;
use crate::metrics::SvidCacheEvent;
use crate::runtime;
use crate::token::SvidRequest;

/// The number of flights that one wait tries.
const MOST_FLIGHTS: u32 = 3;

/// Waits until a flight ends or the time limit is reached, then takes the newest token.
pub(crate) struct Waiter {
    entry: Arc<Entry>,
    outcome: Outcome,
    /// When the flight began.
    pub(super) started: u64,
    /// The longest wait.
    pub(super) wait: Duration,
    /// Whether `wait` comes from the deadline of the call and not from the cache.
    by_deadline: bool,
    /// The token has expired, and the issuer has not responded since this moment.
    pub(super) silent_since: Option<u64>,
    /// Whether it waits because the key that signed the token was removed.
    pub(super) key_removed: bool,
}

impl Waiter {
    pub(super) fn new(entry: &Arc<Entry>, flight: &Flight, silent_since: Option<u64>) -> Self {
        Self {
            entry: entry.clone(),
            outcome: flight.outcome.clone(),
            started: flight.started,
            wait: entry.cx.settings.max_wait,
            by_deadline: false,
            silent_since,
            key_removed: false,
        }
    }

    /// The request of the token.
    pub(crate) fn request(&self) -> &SvidRequest {
        &self.entry.request
    }

    /// The entry of a single-use token, which its token needs.
    pub(super) fn single_use_entry(&self) -> Option<Arc<Entry>> {
        let is_own = self.entry.shared.is_some();
        is_own.then(|| self.entry.clone())
    }

    /// Waits no longer than the time that the call has left. While an older token can still be
    /// sent, half of the time is kept for the call itself.
    pub(crate) fn within(mut self, left: Duration) -> Self {
        let usable = self.entry.usable(self.entry.cx.moment()).is_some();
        let most = if usable { left / 2 } else { left };
        self.by_deadline = most < self.wait;
        self.wait = self.wait.min(most);
        self
    }

    /// The token that can be sent without waiting.
    pub(crate) fn at_once(self) -> Option<Arc<Token>> {
        let cx = &self.entry.cx;
        let token = self.entry.usable(cx.moment());
        if token.is_none() {
            cx.record(SvidCacheEvent::Error);
        }
        token
    }

    pub(crate) async fn token(self) -> Result<Arc<Token>, TokenError> {
        let token = self.newest().await;
        if token.is_err() {
            self.entry.cx.record(SvidCacheEvent::Error);
        }
        token
    }

    async fn newest(&self) -> Result<Arc<Token>, TokenError> {
        // Without timers the wait below would panic.
        if let Err(missing) = runtime::with_timers() {
            return Err(TokenError::no_runtime(&self.entry.request, missing));
        }
        let ended = tokio::time::timeout(self.wait, self.landed()).await;
        let now = self.entry.cx.moment();
        if let Ok(Ok(token)) = &ended
            && token.usable(now)
        {
            return Ok(token.clone());
        }
        if self.entry.cx.is_closed() {
            return Err(TokenError::closed());
        }
        // An error, or no response yet. A token that can still be sent is sent anyway.
        if let Some(token) = self.entry.usable(now) {
            if self.entry.stage(&token, now) == TokenState::Critical {
                self.entry.cx.record(SvidCacheEvent::Late);
            }
            return Ok(token);
        }
        match ended {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) => Err(TokenError::for_request(
                TokenErrorReason::ClockSkew,
                &self.entry.request,
                "the fetched token has already expired",
            )),
            Err(_) if self.by_deadline => Err(TokenError::for_request(
                TokenErrorReason::DeadlineExceeded,
                &self.entry.request,
                "the `grpc-timeout` of the call ended before the token arrived; raise it, or keep the \
                 audience warm (`keep_warm`)",
            )),
            Err(_) => Err(self.timed_out(now)),
        }
    }

    fn timed_out(&self, now: Moment) -> TokenError {
        let what = match self.silent_since {
            Some(since) => format!(
                "the last one has expired, and the issuer has not responded for {} s; check that \
                 the agent is running and reaches its server",
                Duration::from_nanos(now.mono().saturating_sub(since)).as_secs()
            ),
            None => format!(
                "the issuer did not respond within {:.1} s",
                self.wait.as_secs_f64()
            ),
        };
        TokenError::for_request(TokenErrorReason::Timeout, &self.entry.request, what)
    }

    /// The outcome of the flight, or of the next one if it was lost.
    async fn landed(&self) -> Result<Arc<Token>, TokenError> {
        let mut outcome = self.outcome.clone();
        for _ in 0..MOST_FLIGHTS {
            match outcome.await {
                // This flight began before the signing key was removed: the next one may return a
                // new token.
                Ok(token) if !(self.key_removed && self.entry.is_key_removed()) => {
                    return Ok(token);
                }
                Ok(_) => {}
                Err(Down::Failed(error)) => return Err(error),
                Err(Down::Lost) if self.entry.cx.is_closed() => return Err(TokenError::closed()),
                Err(Down::Lost) => {}
            }
            // The next one begins on the current runtime.
            outcome = match self.entry.resolve(self.entry.cx.moment()) {
                Resolved::Wait(next) => next.outcome,
                Resolved::Token(token) => return Ok(token),
                Resolved::Fail(error) => return Err(error),
                Resolved::Retired => break,
            };
        }
        Err(TokenError::aborted(&self.entry.request))
    }
}
