//! Resolves requests from an entry, and starts fetches.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::breaker::{Admission, Rank};
use super::super::error::TokenError;
use super::super::flight::Flight;
use super::super::moment::{Moment, nanos};
use super::super::token::{Stage, Token};
use super::super::wait::Waiter;
use super::{Entry, EntryState};

/// The result for a request.
pub(crate) enum Resolved {
    Token(Arc<Token>),
    Wait(Waiter),
    Fail(TokenError),
    /// The entry was evicted in the meantime.
    Retired,
}

/// The result of an attempt to fetch.
enum Attempt {
    Flight {
        started: u64,
        waiter: Waiter,
        /// The time since when the issuer has not responded, if it did not respond to the last call
        /// or this one.
        silent_since: Option<u64>,
    },
    NotNow {
        error: TokenError,
    },
    /// Another request's fetch ended before the lock was taken.
    Landed(Arc<Token>),
    Retired,
}

/// Work that an attempt does after the lock is released.
enum After {
    Nothing,
    /// A fetch began.
    Began,
    /// Another audience must call the issuer first.
    First(Arc<Entry>),
}

impl Entry {
    /// Returns the result for a request now; starts a fetch if one is due.
    pub(crate) fn resolve(self: &Arc<Self>, now: Moment) -> Resolved {
        let settings = &self.cx.settings;
        let token = self.token.load_full();
        let stage = token.as_ref().map(|token| self.stage(token, now));
        match (token, stage) {
            (Some(token), Some(Stage::Fresh)) => Resolved::Token(token),
            (Some(token), Some(Stage::Due)) => {
                if now.mono() >= self.quiet_until.load(Ordering::Acquire)
                    && let Attempt::Retired = self.attempt(now, false)
                {
                    return Resolved::Retired;
                }
                Resolved::Token(token)
            }
            (Some(token), Some(Stage::Critical)) => match self.attempt(now, true) {
                Attempt::Flight {
                    started, waiter, ..
                } => {
                    let since = self.waits_since(&token, started, now);
                    let until = since.saturating_add(nanos(settings.soft_wait));
                    if now.mono() < until {
                        let waiter = waiter.for_removed_key(self.is_key_removed());
                        Resolved::Wait(waiter.until(until - now.mono()))
                    } else {
                        self.cx.late();
                        Resolved::Token(token)
                    }
                }
                Attempt::NotNow { .. } => {
                    self.cx.late();
                    Resolved::Token(token)
                }
                Attempt::Landed(newer) => Resolved::Token(newer),
                Attempt::Retired => Resolved::Retired,
            },
            (token, _) => match self.attempt(now, true) {
                Attempt::Flight {
                    waiter,
                    silent_since,
                    ..
                } => {
                    // Requests must not accumulate in an outage that is longer than a token's
                    // lifetime.
                    let silent_since = token.and(silent_since);
                    let wait = match silent_since {
                        Some(_) => settings.soft_wait.min(settings.max_wait),
                        None => settings.max_wait,
                    };
                    Resolved::Wait(waiter.until(nanos(wait)).silent_since(silent_since))
                }
                Attempt::NotNow { error } => Resolved::Fail(error),
                Attempt::Landed(token) => Resolved::Token(token),
                Attempt::Retired => Resolved::Retired,
            },
        }
    }

    /// Joins the fetch in progress, or starts one if the retry delay, the breaker and the runtime
    /// allow it.
    fn attempt(self: &Arc<Self>, now: Moment, urgent: bool) -> Attempt {
        let (attempt, after) = self.join_or_start(now, urgent);
        match after {
            After::Nothing => {}
            // Without the lock, because a recorder may read the state.
            After::Began => self.cx.refreshing(urgent),
            After::First(other) => other.fetch_first(now),
        }
        attempt
    }

    /// Calls the issuer in place of another audience.
    pub(crate) fn fetch_first(self: &Arc<Self>, now: Moment) {
        if let (_, After::Began) = self.join_or_start(now, false) {
            self.cx.refreshing(false);
        }
    }

    /// Its rank among the audiences that may probe the issuer.
    pub(crate) fn rank(&self, state: &EntryState) -> Rank {
        (self.token.load().is_none(), state.pace.failures)
    }

    /// The part of [`attempt`](Self::attempt) with the lock held.
    fn join_or_start(self: &Arc<Self>, now: Moment, urgent: bool) -> (Attempt, After) {
        let cx = &self.cx;
        // Dropped after the lock is released, because it may drop values of the user's fetcher.
        let _lost;
        let mut state = self.state();
        if state.retired {
            return (Attempt::Retired, After::Nothing);
        }
        // Checked with the lock held: closing the cache ends the fetches that began before.
        if cx.is_closed() {
            let error = TokenError::closed();
            return (Attempt::NotNow { error }, After::Nothing);
        }
        if let Some(flight) = &state.flight {
            if now.mono() < flight.lease() {
                if urgent {
                    flight.raise();
                }
                let waiter = Waiter::new(self.clone(), flight.outcome());
                let slow_after = nanos(cx.settings.slow_after);
                let slow = flight
                    .called()
                    .filter(|called| now.mono() >= called.saturating_add(slow_after));
                let attempt = Attempt::Flight {
                    started: flight.started(),
                    waiter,
                    silent_since: state.silent_since().or(slow),
                };
                return (attempt, After::Nothing);
            }
            // Its task ended with its runtime.
            _lost = state.flight.take();
            cx.counts.lost.increment();
        }
        let token = self.token.load();
        let usable = token.as_ref().filter(|token| token.usable(now));
        if let Some(token) = usable
            && self.stage(token, now) == Stage::Fresh
        {
            return (Attempt::Landed(token.clone()), After::Nothing);
        }
        let next = state.pace.next(usable.is_some());
        if now.mono() < next {
            self.quiet_until.store(next, Ordering::Release);
            let error = state.last_error().cloned();
            let error = error.unwrap_or_else(TokenError::closed);
            let error = error.retry_in(next - now.mono());
            return (Attempt::NotNow { error }, After::Nothing);
        }
        let rank = self.rank(&state);
        let probe = match cx.breaker.admit(now, &cx.settings, self, rank) {
            Admission::Go => None,
            Admission::Probe { id, deadline } => Some((id, deadline)),
            Admission::No {
                retry_after,
                cause,
                first,
            } => {
                let until = now.mono().saturating_add(nanos(retry_after));
                self.quiet_until.store(until, Ordering::Release);
                let error = TokenError::breaker_open(&self.request, cause);
                let error = error.retry_in(nanos(retry_after));
                let after = first.map_or(After::Nothing, After::First);
                return (Attempt::NotNow { error }, after);
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
                let error = TokenError::no_runtime(&self.request, missing);
                return (Attempt::NotNow { error }, After::Nothing);
            }
        };
        self.quiet_until.store(flight.lease(), Ordering::Release);
        let waiter = Waiter::new(self.clone(), flight.outcome());
        let attempt = Attempt::Flight {
            started: flight.started(),
            waiter,
            silent_since: state.silent_since(),
        };
        state.flight = Some(flight);
        (attempt, After::Began)
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
            self.rejected.load(Ordering::Relaxed) || token.stage(now) == Stage::Critical;
        if waits_anyway {
            asked.max(started)
        } else {
            asked
        }
    }
}
