//! Makes a token due early: after a rejection, a removed key, or a newer token.

use std::sync::atomic::Ordering;

use super::super::moment::{Moment, nanos};
use super::super::token::Token;
use super::{Entry, EntryState, Paced};

impl Entry {
    /// A service rejected the token of this generation. Returns whether that made it due.
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

    /// Keys were removed; `signed_by_removed` returns whether one of them signed a token. If so for
    /// the current token, the next request waits for another token. The fetch in progress may
    /// return such a token too.
    #[cfg(feature = "workload-api")]
    pub(crate) fn keys_removed(&self, signed_by_removed: impl Fn(&Token) -> bool, now: Moment) {
        {
            let mut state = self.state();
            state.doubtful = state.flight.is_some();
        }
        // Without the lock, because `signed_by_removed` may be user code.
        let Some(token) = self
            .token
            .load_full()
            .filter(|token| signed_by_removed(token))
        else {
            return;
        };
        let at = self.spread_out(now);
        let mut state = self.state();
        // A token that arrived in the meantime was fetched after the removal, or is marked as
        // doubtful.
        let current = self.token.load();
        if current
            .as_ref()
            .is_some_and(|it| std::sync::Arc::ptr_eq(it, &token))
        {
            self.key_is_removed(&mut state, at, now);
        }
    }

    /// The key of the current token was removed. Requests fetch another one at once, even after
    /// failures; without requests it is fetched at `unasked_at`.
    pub(in crate::token::cache) fn key_is_removed(
        &self,
        state: &mut EntryState,
        unasked_at: u64,
        now: Moment,
    ) {
        let flights = state.flights;
        state.pace.with_token = 0;
        let rare = state.rare();
        rare.removed_at = Some(unasked_at);
        rare.asked_at = None;
        rare.asked_before = flights;
        self.key_removed.store(true, Ordering::Relaxed);
        self.quiet_until.store(0, Ordering::Release);
        self.force(now.mono());
    }

    /// The fetcher has a newer token: the current one is due if `is_old` returns `true` for it.
    pub(in crate::token::cache) fn succeeded(&self, is_old: impl Fn(&Token) -> bool, now: Moment) {
        let mut state = self.state();
        let token = self.token.load();
        if token.as_ref().is_none_or(|token| is_old(token)) {
            state.pace = Paced::default();
            self.quiet_until.store(0, Ordering::Release);
            self.force(now.mono());
        }
    }

    /// Returns a random moment soon, on the monotonic clock, to spread the fetches of many
    /// audiences.
    pub(in crate::token::cache) fn spread_out(&self, now: Moment) -> u64 {
        let jitter = self.cx.settings.removal_jitter;
        now.plus(jitter.mul_f64(fastrand::f64())).mono()
    }

    /// Makes the token due at `at` on the monotonic clock.
    fn force(&self, at: u64) {
        self.forced.fetch_min(at, Ordering::AcqRel);
        self.version.fetch_add(1, Ordering::Release);
    }
}
