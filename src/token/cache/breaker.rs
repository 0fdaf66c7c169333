//! The circuit breaker of a cache: if the issuer does not respond, one audience at a time probes it
//! for all.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::entry::Entry;
use super::moment::Moment;
use super::settings::Settings;
use crate::token::FetchSvidError;

/// Opens after several calls in a row without a connection or a response in time. Then it allows
/// one probe at a time until one gets a response.
#[derive(Default)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Default)]
struct State {
    /// Failures in a row.
    streak: u32,
    /// Probes that failed since it opened.
    failed_probes: u32,
    /// No probe before this; `None` while closed.
    open_until: Option<Moment>,
    /// The probe in progress, and when it counts as lost.
    probe: Option<(u64, Moment)>,
    last_probe: u64,
    cause: Option<FetchSvidError>,
    /// The waiting audience that probes first.
    next: Option<(Rank, Weak<Entry>)>,
}

/// The order of probes: an audience that has a token before one without, then the one with the
/// fewest failures in a row. Otherwise a busy audience without responses would take every probe,
/// and the breaker would stay open although other audiences would get responses.
pub(crate) type Rank = (bool, u32);

/// A probe for all: its ID, and the time within which it must end.
pub(crate) type Probe = (u64, Duration);

/// A fetch must not start now.
pub(crate) struct NotNow {
    pub(crate) retry_after: Duration,
    pub(crate) cause: Option<FetchSvidError>,
    /// The audience that probes in its place.
    pub(crate) first: Option<Arc<Entry>>,
}

impl Breaker {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a fetch may start, and whether it is a probe.
    pub(crate) fn admit(
        &self,
        now: Moment,
        settings: &Settings,
        entry: &Arc<Entry>,
        rank: Rank,
    ) -> Result<Option<Probe>, NotNow> {
        let mut state = self.lock();
        let Some(open_until) = state.open_until else {
            return Ok(None);
        };
        let wait = match state.probe {
            // A probe is in progress.
            Some((_, lost_at)) if !lost_at.reached(now) => {
                open_until.until(now).max(settings.breaker.first)
            }
            _ => open_until.until(now),
        };
        if !wait.is_zero() {
            state.remember_first(entry, rank);
            return Err(state.not_now(wait, None));
        }
        if let Some(first) = state.before(entry, rank) {
            state.remember_first(entry, rank);
            return Err(state.not_now(settings.breaker.first, Some(first)));
        }
        // Short at first, in case the issuer hangs; then longer, in case it is slow.
        let doubled = settings
            .slow_after
            .saturating_mul(1 << state.failed_probes.min(16));
        let deadline = doubled.min(settings.fetch_deadline);
        state.last_probe += 1;
        let id = state.last_probe;
        let lost_at = now.plus(deadline).plus(LOST_AFTER);
        state.probe = Some((id, lost_at));
        Ok(Some((id, deadline)))
    }

    /// The issuer responded, even with an error. Returns whether this closed the breaker.
    pub(crate) fn answered(&self) -> bool {
        let mut state = self.lock();
        let was_open = state.open_until.is_some();
        *state = State {
            last_probe: state.last_probe,
            ..State::default()
        };
        was_open
    }

    /// The issuer was unreachable, or did not respond in time; `probe` if the call was a probe.
    /// Returns whether this opened the breaker.
    pub(crate) fn failed(
        &self,
        now: Moment,
        probe: Option<u64>,
        cause: &FetchSvidError,
        settings: &Settings,
    ) -> bool {
        let mut state = self.lock();
        state.streak = state.streak.saturating_add(1);
        state.cause = Some(cause.clone());
        if state.open_until.is_some() {
            // Only the probe counts: other calls began before it.
            if probe.is_some() && state.probe.map(|(id, _)| id) == probe {
                state.probe = None;
                state.failed_probes = state.failed_probes.saturating_add(1);
                let delay = settings
                    .breaker
                    .after(state.failed_probes.saturating_add(1));
                state.open_until = Some(now.plus(delay));
            }
            return false;
        }
        if state.streak < settings.breaker_after {
            return false;
        }
        state.failed_probes = 0;
        state.open_until = Some(now.plus(settings.breaker.after(1)));
        true
    }

    /// The probe ended without a response, for a reason on this side.
    pub(crate) fn abandoned(&self, probe: u64) {
        let mut state = self.lock();
        if state.probe.is_some_and(|(id, _)| id == probe) {
            state.probe = None;
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.lock().open_until.is_some()
    }
}

impl State {
    fn not_now(&self, retry_after: Duration, first: Option<Arc<Entry>>) -> NotNow {
        NotNow {
            retry_after,
            cause: self.cause.clone(),
            first,
        }
    }

    fn remember_first(&mut self, entry: &Arc<Entry>, rank: Rank) {
        let known = self.next.as_ref();
        if known.is_none_or(|(before, other)| rank < *before || other.strong_count() == 0) {
            self.next = Some((rank, Arc::downgrade(entry)));
        }
    }

    /// The audience that probes before this one.
    fn before(&mut self, entry: &Arc<Entry>, rank: Rank) -> Option<Arc<Entry>> {
        let (_, first) = self
            .next
            .take_if(|(before, other)| *before < rank || other.as_ptr() == Arc::as_ptr(entry))?;
        first.upgrade().filter(|first| !Arc::ptr_eq(first, entry))
    }
}

/// A probe that exceeds its deadline by this much is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
