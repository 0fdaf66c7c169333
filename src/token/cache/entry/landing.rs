//! The end of a fetch: its token or its error.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use super::super::breaker::NotNow;
use super::super::error::TokenError;
use super::super::flight::{Down, FlightResult, is_our_own, is_silence};
use super::super::moment::{Moment, nanos};
use super::super::token::Token;
use super::state::{EntryState, Paced, count};
use super::{Entry, NEVER};
use crate::token::{FetchSvidError, FetchSvidReason};

/// How a flight ended.
pub(crate) enum Landing {
    /// With the issuer's response, or with a timeout.
    Answer(Result<Token, FetchSvidError>),
    /// The breaker was open, so no call was made.
    NotStarted(NotNow),
    /// Its runtime ended.
    Lost,
}

impl Entry {
    /// Stores the result of a flight and returns it for the waiters. The new token is visible
    /// before this returns, so before any waiter is woken.
    pub(crate) fn land(
        self: &Arc<Self>,
        flight: u64,
        landing: Landing,
        now: Moment,
    ) -> FlightResult {
        let mut state = self.state();
        let landed = state.flight.take_if(|current| current.id == flight);
        let called = landed.and_then(|landed| landed.called);
        let answer = match landing {
            Landing::NotStarted(not_now) => {
                return Err(Down::Failed(self.breaker_open(not_now, now)));
            }
            Landing::Lost => {
                self.cx.counts.lost.increment();
                self.quiet_until.store(0, Ordering::Release);
                return Err(Down::Lost);
            }
            Landing::Answer(answer) => answer,
        };
        let answer = match (&self.shared, answer) {
            (Some(shared), Ok(token)) => shared.spend(&token, now).map(|()| token),
            (_, answer) => answer,
        };
        count(&mut state.counts.fetches);
        match (&answer, called) {
            (Err(error), Some(called)) if is_silence(error) => {
                state.rare().silent_since.get_or_insert(called);
            }
            (Err(error), _) if is_silence(error) || is_our_own(error) => {}
            _ => {
                if let Some(rare) = &mut state.rare {
                    rare.silent_since = None;
                }
            }
        }
        match answer {
            Ok(token) => {
                let slow_after = nanos(self.cx.settings.slow_after);
                let slow =
                    called.is_some_and(|called| now.mono() >= called.saturating_add(slow_after));
                let forced = self.is_forced(now);
                let before = state.generation;
                let token = self.store_token(&mut state, flight, token, now);
                let newer = state.generation > before;
                let news = state.news().filter(|_| newer);
                drop(state);
                let mut lasting = self.lasting().state();
                // A token that is refreshed early may be the newest one.
                let stalls = !newer && !forced && self.cx.stalls(&mut lasting);
                let recovers = newer && !slow && self.cx.recovers(&mut lasting);
                drop(lasting);
                if let Some(news) = news {
                    news.notify_waiters();
                }
                if stalls {
                    self.has_stalled("the agent returned the token that it returned before");
                } else if recovers {
                    tracing::info!(request = ?self.request, "refreshes of JWT-SVIDs return newer tokens again");
                }
                Ok(token)
            }
            Err(error) => {
                // Requests wait once for a removed key, even if the fetch fails.
                let rare = state.rare.as_ref();
                if rare.is_some_and(|rare| flight > rare.asked_before) {
                    self.key_removed.store(false, Ordering::Relaxed);
                }
                let mut state = match &self.shared {
                    Some(shared) => {
                        drop(state);
                        let mut state = shared.state();
                        count(&mut state.counts.fetches);
                        state
                    }
                    None => state,
                };
                if error.reason() == FetchSvidReason::Stale {
                    // The failure is logged instead.
                    self.cx.stalls(&mut state);
                }
                Err(Down::Failed(self.lasting().failed(state, error, now)))
            }
        }
    }

    /// The call in progress has taken longer than `slow_after`.
    pub(crate) fn is_slow(&self) {
        let stalls = self.cx.stalls(&mut self.lasting().state());
        if stalls {
            self.has_stalled("the agent has not responded yet");
        }
    }

    fn has_stalled(&self, why: &str) {
        tracing::warn!(
            request = ?self.request,
            why,
            "refreshes of JWT-SVIDs have stalled; check that the agent is running and reaches its server"
        );
    }

    fn store_token(
        self: &Arc<Self>,
        state: &mut EntryState,
        flight: u64,
        mut token: Token,
        now: Moment,
    ) -> Arc<Token> {
        #[cfg(feature = "oauth")]
        if let Some(subject) = self.request.subject()
            && subject.expires_at() <= token.svid.expires_at()
        {
            // A newer token would expire at the same time, with the subject token.
            token.due = now.plus(token.expires_in(now));
        }
        state.pace.failures = 0;
        if let Some(rare) = &mut state.rare {
            rare.last_error = None;
        }
        state.warned = 0;
        let current = self.token.load_full().filter(|current| current.usable(now));
        if let Some(current) = current {
            // If the token was rejected or its key was removed, any other token replaces it.
            let gain = if self.is_forced(now) {
                !current.is_same(&token)
            } else {
                !current.is_matched_by(&token)
            };
            if !gain {
                count(&mut state.counts.unchanged);
                self.cx.counts.unchanged.increment();
                if self.rejected.load(Ordering::Relaxed) || self.is_key_removed() {
                    if flight <= state.rare().asked_before {
                        // The token was rejected during this fetch: the next request starts another
                        // one.
                        self.quiet_until.store(0, Ordering::Release);
                        return current;
                    }
                    // The issuer returned it again after the rejection. A removed key stays
                    // removed.
                    self.rejected.store(false, Ordering::Relaxed);
                    self.key_removed.store(false, Ordering::Relaxed);
                    let removed_at = state.rare().removed_at.unwrap_or(NEVER);
                    self.forced.store(removed_at, Ordering::Release);
                }
                state.pace.unchanged(&self.cx.settings, now);
                self.quiet_until
                    .store(state.pace.with_token, Ordering::Release);
                self.version.fetch_add(1, Ordering::Release);
                return current;
            }
        }
        state.generation += 1;
        token.generation = state.generation;
        token.entry = Arc::downgrade(self);
        let token = Arc::new(token);
        state.pace = Paced::default();
        self.rejected.store(false, Ordering::Relaxed);
        self.key_removed.store(false, Ordering::Relaxed);
        if let Some(rare) = &mut state.rare {
            rare.removed_at = None;
        }
        self.forced.store(NEVER, Ordering::Release);
        self.quiet_until.store(0, Ordering::Release);
        if std::mem::take(&mut state.doubtful) {
            let unasked_at = self.spread_out(now);
            self.key_is_removed(state, unasked_at, now);
        }
        self.token.store(Some(token.clone()));
        self.version.fetch_add(1, Ordering::Release);
        token
    }

    /// Logs the first failure of a class as a warning, its repetitions at debug level.
    fn failed(
        &self,
        mut state: MutexGuard<'_, EntryState>,
        cause: FetchSvidError,
        now: Moment,
    ) -> TokenError {
        count(&mut state.counts.failures);
        let usable = self
            .token
            .load()
            .as_ref()
            .is_some_and(|token| token.usable(now));
        state.pace.failed(&self.cx.settings, &cause, now);
        let next = state.pace.next(usable);
        self.quiet_until.store(next, Ordering::Release);
        let request = &self.request;
        let known = self.cx.is_known(&mut state, cause.reason(), request);
        let error = TokenError::fetching(request, cause.clone());
        state.rare().last_error = Some(error.clone());
        // Without the lock, because a log subscriber may read the state.
        drop(state);
        if known {
            tracing::debug!(?request, error = %cause, usable, "fetching a JWT-SVID failed again");
        } else {
            tracing::warn!(?request, error = %cause, usable, "fetching a JWT-SVID failed");
        }
        error.retry_in(next.saturating_sub(now.mono()))
    }
}
