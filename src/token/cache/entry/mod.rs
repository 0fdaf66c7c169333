//! One audience: its token, its fetch in progress, its retry delay.

mod forced;
mod landing;
mod resolve;
mod state;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

pub(crate) use self::landing::Landing;
pub(crate) use self::resolve::Resolved;
pub(crate) use self::state::EntryState;
pub(in crate::token::cache) use self::state::{Paced, count};
use super::context::Context;
use super::moment::Moment;
use super::snapshot::TokenState;
use super::token::Token;
use crate::token::SvidRequest;

/// No early refresh.
pub(super) const NEVER: u64 = u64::MAX;

/// The state that the cache keeps for one request.
///
/// EMPTY → fetching → FRESH → DUE → CRITICAL → EXPIRED: the stage depends only on the token and the
/// time ([`TokenState`]). No stage is final, and a failure is not a stage.
pub(crate) struct Entry {
    /// Unique in the process.
    pub(crate) id: u64,
    pub(crate) request: SvidRequest,
    pub(crate) cx: Arc<Context>,
    /// Changes whenever copies of this entry's state may no longer be valid.
    pub(crate) version: AtomicU64,
    pub(crate) token: ArcSwapOption<Token>,
    /// When the token is due regardless of its age, on the monotonic clock.
    pub(super) forced: AtomicU64,
    /// A service rejected the token: requests wait briefly for the next one.
    pub(super) rejected: AtomicBool,
    /// The key that signed the token was removed from the bundle: the next request waits briefly
    /// for another token, once.
    pub(super) key_removed: AtomicBool,
    /// Before this, no request tries to start a fetch for a token that is due.
    pub(super) quiet_until: AtomicU64,
    /// When it was last used, to about a second.
    pub(crate) used: AtomicU64,
    pub(crate) pins: AtomicUsize,
    /// Its index in its shard, written with the shard locked.
    pub(crate) place: AtomicUsize,
    pub(crate) state: Mutex<EntryState>,
    /// The entry in the table, if this one is for a single request.
    pub(in crate::token::cache) shared: Option<Arc<Entry>>,
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

    /// The entry that outlives one request: for a single-use token, the entry in the table.
    fn lasting(&self) -> &Self {
        self.shared.as_deref().unwrap_or(self)
    }

    pub(crate) fn stage(&self, token: &Token, now: Moment) -> TokenState {
        match token.stage(now) {
            TokenState::Fresh | TokenState::Due if self.is_forced(now) => {
                if self.rejected.load(Ordering::Relaxed) || self.is_key_removed() {
                    TokenState::Critical
                } else {
                    TokenState::Due
                }
            }
            stage => stage,
        }
    }

    pub(super) fn is_key_removed(&self) -> bool {
        self.key_removed.load(Ordering::Relaxed)
    }

    pub(super) fn is_forced(&self, now: Moment) -> bool {
        now.mono() >= self.forced.load(Ordering::Acquire)
    }

    /// The time until which `token` is fresh, including a forced refresh.
    pub(crate) fn due(&self, token: &Token) -> Moment {
        token.due.no_later_than(self.forced.load(Ordering::Acquire))
    }

    /// The time until which `token` is fresh if no request needs it. After a removed key, it
    /// spreads the fetches of tokens that are only kept warm.
    fn due_unasked(&self, token: &Token) -> Moment {
        if !self.is_key_removed() {
            return self.due(token);
        }
        let removed_at = self.state().rare.as_ref().and_then(|rare| rare.removed_at);
        token.due.no_later_than(removed_at.unwrap_or(NEVER))
    }

    pub(crate) fn touch(&self, now: Moment) {
        // At most once a second: with a write per request, threads would contend for the cache
        // line.
        let used = self.used.load(Ordering::Relaxed);
        if now.mono().saturating_sub(used) >= 1_000_000_000 {
            self.used.store(now.mono(), Ordering::Relaxed);
        }
    }

    /// The newest token that may still be sent.
    pub(crate) fn usable(&self, now: Moment) -> Option<Arc<Token>> {
        self.token.load_full().filter(|token| token.usable(now))
    }

    /// A flight begins its call. It counts as lost after `lease`.
    pub(crate) fn calls(&self, flight: u64, began: u64, lease: u64) {
        let mut state = self.state();
        let current = state.flight.as_mut();
        if let Some(current) = current.filter(|current| current.id == flight) {
            (current.called, current.lease) = (Some(began), lease);
            self.quiet_until.store(lease, Ordering::Release);
        }
    }

    /// Whether it can probably be evicted; [`retire`](Self::retire) decides.
    pub(crate) fn may_be_evicted(&self) -> bool {
        self.pins.load(Ordering::Relaxed) == 0 && self.state().flight.is_none()
    }

    /// Prevents further fetches, so that it can be evicted. Returns `false` while a fetch is in
    /// progress.
    pub(crate) fn retire(&self) -> bool {
        let mut state = self.state();
        if state.retired || state.flight.is_some() || self.pins.load(Ordering::Relaxed) > 0 {
            return false;
        }
        state.retired = true;
        // A retired entry cannot report that its refreshes recovered.
        self.cx.recovers(&mut state);
        true
    }

    /// Prevents fetches, only if it never started one.
    pub(crate) fn retire_unused(&self) -> bool {
        let unused = self.state().flights == 0;
        // A fetch that started in the meantime is in progress, or has returned a token.
        unused && self.retire()
    }

    /// Ends the fetch in progress and wakes the waiters for a newer token: the cache is closed.
    pub(crate) fn end_fetch(&self) {
        let (flight, news) = {
            let mut state = self.state();
            (state.flight.take(), state.news())
        };
        drop(flight);
        if let Some(news) = news {
            news.notify_waiters();
        }
    }

    /// The signal to waiters that a newer token arrived or the cache was closed.
    pub(in crate::token::cache) fn news(&self) -> Arc<Notify> {
        self.state().rare().news.get_or_insert_default().clone()
    }

    /// The time until the task that keeps it warm must check it again.
    pub(crate) fn attention_in(&self, now: Moment) -> Duration {
        if self.request.is_single_use() {
            return Duration::MAX;
        }
        let quiet = self
            .quiet_until
            .load(Ordering::Acquire)
            .saturating_sub(now.mono());
        let due = self.usable(now);
        let due = due.map_or(Duration::ZERO, |token| self.due_unasked(&token).until(now));
        due.max(Duration::from_nanos(quiet))
    }
}
