//! One audience: its token, its fetch under way, its pace.

mod landing;
mod state;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

pub(crate) use self::landing::Landing;
pub(crate) use self::state::EntryState;
pub(in crate::token::cache) use self::state::{Paced, count};
use super::breaker::{Admission, Rank};
use super::context::Context;
use super::error::TokenError;
use super::flight::Flight;
use super::moment::{Moment, nanos};
use super::token::{Stage, Token};
use super::wait::Waiter;
use crate::token::SvidRequest;

/// A token that nothing forces to be refreshed early.
pub(super) const NEVER: u64 = u64::MAX;

/// What the cache keeps for one request.
///
/// EMPTY → fetching → FRESH → DUE → CRITICAL → EXPIRED: the state is told from the token and the
/// time alone ([`Stage`]). There is no terminal state, and failing is none.
pub(crate) struct Entry {
    /// Never used twice in a process.
    pub(crate) id: u64,
    pub(crate) request: SvidRequest,
    pub(crate) cx: Arc<Context>,
    /// Changes whenever what is kept elsewhere about this entry may no longer hold.
    pub(crate) version: AtomicU64,
    pub(crate) token: ArcSwapOption<Token>,
    /// From when on the monotonic clock the token is due, whatever its age.
    pub(super) forced: AtomicU64,
    /// A service refused the token: the next is worth a little wait.
    pub(super) rejected: AtomicBool,
    /// The key that signed the token was removed from the bundle: the next request waits a little
    /// for another token, once.
    pub(super) key_removed: AtomicBool,
    /// Before this, no request need think of starting a fetch for a token that is due.
    pub(super) quiet_until: AtomicU64,
    /// When it was last asked for, about.
    pub(crate) used: AtomicU64,
    pub(crate) pins: AtomicUsize,
    /// Its place in its shard, written under the shard's lock.
    pub(crate) place: AtomicUsize,
    pub(crate) state: Mutex<EntryState>,
    /// The entry in the table, if this one is for a single request.
    pub(in crate::token::cache) shared: Option<Arc<Entry>>,
}

/// What a request gets.
pub(crate) enum Resolved {
    Token(Arc<Token>),
    Wait(Waiter),
    Fail(TokenError),
    /// The entry was evicted meanwhile.
    Retired,
}

/// What became of a wish for a fetch.
enum Attempt {
    Flight {
        started: u64,
        waiter: Waiter,
        /// Since when the issuer has not answered, if the last call or this one says so.
        silent_since: Option<u64>,
    },
    NotNow {
        error: TokenError,
    },
    /// Somebody else's fetch ended between the look and the lock.
    Landed(Arc<Token>),
    Retired,
}

/// What is to be done after a wish for a fetch, without the lock.
enum After {
    Nothing,
    /// A fetch began.
    Began,
    /// Another audience is to ask first.
    First(Arc<Entry>),
}

impl Entry {
    pub(crate) fn new(id: u64, request: SvidRequest, cx: Arc<Context>, now: Moment) -> Self {
        Self {
            id,
            request,
            cx,
            version: AtomicU64::new(0),
            token: ArcSwapOption::empty(),
            forced: AtomicU64::new(NEVER),
            rejected: AtomicBool::new(false),
            key_removed: AtomicBool::new(false),
            quiet_until: AtomicU64::new(0),
            used: AtomicU64::new(now.mono()),
            pins: AtomicUsize::new(0),
            place: AtomicUsize::new(0),
            state: Mutex::default(),
            shared: None,
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, EntryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stage(&self, token: &Token, now: Moment) -> Stage {
        match token.stage(now) {
            Stage::Fresh | Stage::Due if self.is_forced(now) => {
                if self.rejected.load(Ordering::Relaxed) || self.is_key_removed() {
                    Stage::Critical
                } else {
                    Stage::Due
                }
            }
            stage => stage,
        }
    }

    pub(super) fn is_key_removed(&self) -> bool {
        self.key_removed.load(Ordering::Relaxed)
    }

    /// Since when requests wait for the next token, which may be a new one from here on.
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

    pub(super) fn is_forced(&self, now: Moment) -> bool {
        now.mono() >= self.forced.load(Ordering::Acquire)
    }

    /// Until when `token` is fresh, a forced refresh included.
    pub(crate) fn due(&self, token: &Token) -> Moment {
        token.due.no_later_than(self.forced.load(Ordering::Acquire))
    }

    /// The same, if no request asks for it: a removed key does not have all tokens that are kept
    /// warm fetched at once.
    fn due_unasked(&self, token: &Token) -> Moment {
        if !self.is_key_removed() {
            return self.due(token);
        }
        let gone_at = self.state().rare.as_ref().and_then(|rare| rare.gone_at);
        token.due.no_later_than(gone_at.unwrap_or(NEVER))
    }

    pub(crate) fn touch(&self, now: Moment) {
        // About once a second: a write per request would have threads fight over the line.
        let used = self.used.load(Ordering::Relaxed);
        if now.mono().saturating_sub(used) >= 1_000_000_000 {
            self.used.store(now.mono(), Ordering::Relaxed);
        }
    }

    /// The newest token that may still be sent.
    pub(crate) fn usable(&self, now: Moment) -> Option<Arc<Token>> {
        self.token.load_full().filter(|token| token.usable(now))
    }

    /// What a request gets now; starts a fetch where one is due.
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
                    // An outage that outlasted a token must not pile requests up.
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

    /// Joins the fetch under way, or starts one where the pace, the breaker and the runtime allow.
    fn attempt(self: &Arc<Self>, now: Moment, urgent: bool) -> Attempt {
        let (attempt, after) = self.join_or_start(now, urgent);
        match after {
            After::Nothing => {}
            // Without the lock: a recorder may look at the state.
            After::Began => self.cx.refreshing(urgent),
            After::First(other) => other.go_first(now),
        }
        attempt
    }

    /// Asks the issuer in the place of another audience, which wanted to.
    pub(crate) fn go_first(self: &Arc<Self>, now: Moment) {
        if let (_, After::Began) = self.join_or_start(now, false) {
            self.cx.refreshing(false);
        }
    }

    /// Its place among those who want to find out whether the issuer answers.
    pub(crate) fn rank(&self, state: &EntryState) -> Rank {
        (self.token.load().is_none(), state.pace.failures)
    }

    /// The same as [`attempt`](Self::attempt), but for what is left to be done.
    fn join_or_start(self: &Arc<Self>, now: Moment, urgent: bool) -> (Attempt, After) {
        let cx = &self.cx;
        // Dropped after the lock: with it may go what a fetcher left in its future.
        let _lost;
        let mut state = self.state();
        if state.retired {
            return (Attempt::Retired, After::Nothing);
        }
        // Asked with the lock held: whoever closes the cache ends what began before.
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
            // Its task must be gone: a runtime that was shut down takes its tasks with it.
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

    /// A flight is about to make its call, and has until `lease` for it.
    pub(crate) fn calls(&self, flight: u64, began: u64, lease: u64) {
        let state = self.state();
        if let Some(current) = state
            .flight
            .as_ref()
            .filter(|current| current.id() == flight)
        {
            current.calls(began, lease);
            self.quiet_until.store(lease, Ordering::Release);
        }
    }

    /// A service refused the token of this generation. Whether that made it due.
    pub(crate) fn reject(&self, generation: u64, now: Moment) -> bool {
        let mut state = self.state();
        let token = self.token.load();
        let current = token
            .as_ref()
            .is_some_and(|token| token.generation == generation);
        let rejected_at = state.rare.as_ref().and_then(|rare| rare.rejected_at);
        let lately = rejected_at.is_some_and(|at| {
            now.mono().saturating_sub(at) < nanos(self.cx.settings.rejected_every)
        });
        if !current || lately {
            return false;
        }
        let flights = state.flights;
        let rare = state.rare();
        rare.rejected_at = Some(now.mono());
        rare.asked_before = flights;
        self.rejected.store(true, Ordering::Relaxed);
        self.force(now.mono());
        true
    }

    #[cfg(feature = "workload-api")]
    /// Keys were removed; `gone` tells of a token's key. If it signed the token that is there, the
    /// next request waits for another; it may have signed the one on its way, too.
    pub(crate) fn keys_gone(&self, gone: impl Fn(&Token) -> bool, now: Moment) {
        {
            let mut state = self.state();
            state.doubtful = state.flight.is_some();
        }
        // Without the lock: the answer may be one of the user's.
        let Some(token) = self.token.load_full().filter(|token| gone(token)) else {
            return;
        };
        let at = self.spread_out(now);
        let mut state = self.state();
        // One that came meanwhile was asked for after the keys had gone, or is in doubt already.
        let current = self.token.load();
        if current.as_ref().is_some_and(|it| Arc::ptr_eq(it, &token)) {
            self.key_is_removed(&mut state, at, now);
        }
    }

    /// The key of the current token was removed. Requests ask at once, whatever failed before;
    /// what no request asks for is asked for at `unasked_at`.
    pub(super) fn key_is_removed(&self, state: &mut EntryState, unasked_at: u64, now: Moment) {
        let flights = state.flights;
        state.pace.with_token = 0;
        let rare = state.rare();
        rare.gone_at = Some(unasked_at);
        rare.asked_at = None;
        rare.asked_before = flights;
        self.key_removed.store(true, Ordering::Relaxed);
        self.quiet_until.store(0, Ordering::Release);
        self.force(now.mono());
    }

    /// There is another token than `is_old` describes: the current one is due if it is of these.
    pub(super) fn succeeded(&self, is_old: impl Fn(&Token) -> bool, now: Moment) {
        let mut state = self.state();
        let token = self.token.load();
        if token.as_ref().is_none_or(|token| is_old(token)) {
            state.pace = Paced::default();
            self.quiet_until.store(0, Ordering::Release);
            self.force(now.mono());
        }
    }

    /// Some moment soon, another for each audience, on the monotonic clock.
    pub(super) fn spread_out(&self, now: Moment) -> u64 {
        let jitter = self.cx.settings.gone_jitter;
        now.plus(jitter.mul_f64(fastrand::f64())).mono()
    }

    /// Due at `at` on the monotonic clock.
    fn force(&self, at: u64) {
        self.forced.fetch_min(at, Ordering::AcqRel);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Whether it may be evicted, at a glance.
    pub(crate) fn may_go(&self) -> bool {
        self.pins.load(Ordering::Relaxed) == 0 && self.state().flight.is_none()
    }

    /// Makes it start no fetch any more, so that it can be evicted. Not while one is under way.
    pub(crate) fn retire(&self) -> bool {
        let mut state = self.state();
        if state.retired || state.flight.is_some() || self.pins.load(Ordering::Relaxed) > 0 {
            return false;
        }
        state.retired = true;
        true
    }

    /// The same, where it never started one.
    pub(crate) fn retire_unused(&self) -> bool {
        let unused = self.state().flights == 0;
        // One that is started in between is under way, or has brought something to keep.
        unused && self.retire()
    }

    /// Ends the fetch under way, and wakes those who wait for a newer token: the cache is closed.
    pub(crate) fn ground(&self) {
        let (flight, news) = {
            let mut state = self.state();
            (state.flight.take(), state.news())
        };
        drop(flight);
        if let Some(news) = news {
            news.notify_waiters();
        }
    }

    /// Wakes its waiters when a newer token is there, or the cache is closed.
    pub(in crate::token::cache) fn news(&self) -> Arc<Notify> {
        self.state().rare().news.get_or_insert_default().clone()
    }

    /// Starts what is due, as nobody waits for it.
    pub(crate) fn tend(self: &Arc<Self>, now: Moment) {
        if self.request.is_single_use() {
            return;
        }
        let token = self.token.load_full();
        let fresh =
            token.is_some_and(|token| token.usable(now) && !self.due_unasked(&token).reached(now));
        if !fresh {
            // The fetch goes on by itself.
            let _ = self.attempt(now, false);
        }
    }

    /// Until somebody should look after it again, for whoever keeps it warm.
    pub(crate) fn attention_in(&self, now: Moment) -> Duration {
        if self.request.is_single_use() {
            return Duration::MAX;
        }
        let quiet = self
            .quiet_until
            .load(Ordering::Acquire)
            .saturating_sub(now.mono());
        let due = self.token.load().as_ref().map_or(Duration::ZERO, |token| {
            if token.usable(now) {
                self.due_unasked(token).until(now)
            } else {
                Duration::ZERO
            }
        });
        due.max(Duration::from_nanos(quiet))
    }
}
