//! Resolves requests from an entry, and starts fetches.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::breaker::{NotNow, Rank};
use super::super::error::{TokenError, TokenErrorReason};
use super::super::flight::Flight;
use super::super::moment::{Moment, nanos};
use super::super::snapshot::TokenState;
use super::super::token::Token;
use super::super::wait::Waiter;
use super::{Entry, EntryState};
use crate::metrics::SvidCacheEvent;

/// The result for a request.
pub(crate) enum Resolved {
    Token(Arc<Token>),
    Wait(Waiter),
    Fail(TokenError),
    /// The entry was evicted in the meantime.
    Retired,
}

impl Entry {
    /// Returns the result for a request now; starts a fetch if one is due.
    pub(crate) fn resolve(self: &Arc<Self>, now: Moment) -> Resolved {
        let settings = &self.cx.settings;
        let token = self.token.load_full();
        let stage = token.as_ref().map(|token| self.stage(token, now));
        match (token, stage) {
            (Some(token), Some(TokenState::Fresh)) => Resolved::Token(token),
            (Some(token), Some(TokenState::Due)) => {
                if now.mono() >= self.quiet_until.load(Ordering::Acquire)
                    && let Resolved::Retired = self.attempt(now, false)
                {
                    return Resolved::Retired;
                }
                Resolved::Token(token)
            }
            (Some(token), Some(TokenState::Critical)) => match self.attempt(now, true) {
                Resolved::Wait(mut waiter) => {
                    let since = self.waits_since(&token, waiter.started, now);
                    let until = since.saturating_add(nanos(settings.soft_wait));
                    if now.mono() >= until {
                        self.cx.record(SvidCacheEvent::Late);
                        return Resolved::Token(token);
                    }
                    waiter.wait = Duration::from_nanos(until - now.mono());
                    waiter.silent_since = None;
                    waiter.key_removed = self.is_key_removed();
                    Resolved::Wait(waiter)
                }
                Resolved::Fail(_) => {
                    self.cx.record(SvidCacheEvent::Late);
                    Resolved::Token(token)
                }
                other => other,
            },
            (token, _) => match self.attempt(now, true) {
                Resolved::Wait(mut waiter) => {
                    waiter.silent_since = token.and(waiter.silent_since);
                    // Requests must not accumulate in an outage that is longer than a token's
                    // lifetime.
                    if waiter.silent_since.is_some() {
                        waiter.wait = settings.soft_wait.min(settings.max_wait);
                    }
                    Resolved::Wait(waiter)
                }
                other => other,
            },
        }
    }

    /// Joins the fetch in progress, or starts one if the retry delay, the breaker and the runtime
    /// allow it.
    fn attempt(self: &Arc<Self>, now: Moment, urgent: bool) -> Resolved {
        let mut first = None;
        let attempt = self.join_or_start(now, urgent, &mut first);
        if let Some(first) = first {
            first.fetch_first(now);
        }
        attempt
    }

    /// Calls the issuer in place of another audience.
    pub(crate) fn fetch_first(self: &Arc<Self>, now: Moment) {
        let _ = self.join_or_start(now, false, &mut None);
    }

    /// Its rank among the audiences that may probe the issuer.
    pub(crate) fn rank(&self, state: &EntryState) -> Rank {
        (self.token.load().is_none(), state.pace.failures)
    }

    /// The part of [`attempt`](Self::attempt) with the lock held. `first` is the audience that must
    /// call the issuer first.
    fn join_or_start(
        self: &Arc<Self>,
        now: Moment,
        urgent: bool,
        first: &mut Option<Arc<Self>>,
    ) -> Resolved {
        let cx = &self.cx;
        // Dropped after the lock is released, because it may drop values of the user's fetcher.
        let _lost;
        let mut state = self.state();
        if state.retired {
            return Resolved::Retired;
        }
        // Checked with the lock held: closing the cache ends the fetches that began before.
        if cx.is_closed() {
            return Resolved::Fail(TokenError::closed());
        }
        if let Some(flight) = &state.flight {
            if now.mono() < flight.lease {
                if urgent {
                    flight.urgent.send_replace(true);
                }
                let slow_after = nanos(cx.settings.slow_after);
                let slow = flight
                    .called
                    .filter(|called| now.mono() >= called.saturating_add(slow_after));
                let silent_since = state.silent_since().or(slow);
                return Resolved::Wait(Waiter::new(self, flight, silent_since));
            }
            // Its task ended with its runtime.
            _lost = state.flight.take();
            cx.counts.lost.increment();
        }
        let token = self.token.load();
        let usable = token.as_ref().filter(|token| token.usable(now));
        if let Some(token) = usable
            && self.stage(token, now) == TokenState::Fresh
        {
            // Another request's fetch ended before the lock was taken.
            return Resolved::Token(token.clone());
        }
        let next = state.pace.next(usable.is_some());
        if now.mono() < next {
            self.quiet_until.store(next, Ordering::Release);
            let error = state.last_error().cloned();
            let error = error.unwrap_or_else(TokenError::closed);
            return Resolved::Fail(error.retry_in(next - now.mono()));
        }
        let rank = self.rank(&state);
        let probe = match cx.breaker.admit(now, &cx.settings, self, rank) {
            Ok(probe) => probe,
            Err(mut not_now) => {
                *first = not_now.first.take();
                return Resolved::Fail(self.breaker_open(not_now, now));
            }
        };
        state.flights += 1;
        state.doubtful = false;
        let flight = match Flight::start(self, state.flights, now, probe, urgent) {
            Ok(flight) => flight,
            Err(missing) => {
                if let Some((id, _)) = probe {
                    cx.breaker.abandoned(id);
                }
                return Resolved::Fail(TokenError::no_runtime(&self.request, missing));
            }
        };
        self.quiet_until.store(flight.lease, Ordering::Release);
        let waiter = Waiter::new(self, &flight, state.silent_since());
        state.flight = Some(flight);
        // Without the lock, because a recorder may read the state.
        drop(state);
        if !urgent {
            cx.record(SvidCacheEvent::Refresh);
        }
        Resolved::Wait(waiter)
    }

    /// The error while the breaker is open. Requests do not try again before its `retry_after`.
    pub(crate) fn breaker_open(&self, not_now: NotNow, now: Moment) -> TokenError {
        let nanos = nanos(not_now.retry_after);
        let until = now.mono().saturating_add(nanos);
        self.quiet_until.store(until, Ordering::Release);
        let error = match not_now.cause {
            Some(cause) => TokenError::fetching(&self.request, cause),
            None => TokenError::for_request(
                TokenErrorReason::Unavailable,
                &self.request,
                "the issuer does not respond",
            ),
        };
        error.retry_in(nanos)
    }

    /// Starts the fetch that is due, without a waiting request.
    pub(crate) fn refresh_due(self: &Arc<Self>, now: Moment) {
        if self.request.is_single_use() {
            return;
        }
        let token = self.token.load_full();
        let fresh =
            token.is_some_and(|token| token.usable(now) && !self.due_unasked(&token).reached(now));
        if !fresh {
            // The fetch continues without a waiter.
            let _ = self.attempt(now, false);
        }
    }

    /// When the wait of requests for the next token began.
    fn waits_since(&self, token: &Token, started: u64, now: Moment) -> u64 {
        if !self.is_key_removed() {
            return started;
        }
        let mut state = self.state();
        let asked = *state.rare().asked_at.get_or_insert(now.mono());
        let waits_anyway =
            self.rejected.load(Ordering::Relaxed) || token.stage(now) == TokenState::Critical;
        if waits_anyway {
            asked.max(started)
        } else {
            asked
        }
    }
}
