//! State that all audiences of a cache share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::breaker::Breaker;
use super::counts::Counters;
use super::entry::EntryState;
use super::limits::Limits;
use super::moment::Moment;
use super::settings::Settings;
use super::token::{Subjects, Token};
use crate::clock::Clock;
use crate::metrics::{MetricsRecorder, Shielded, SvidCacheEvent};
use crate::runtime::{self, Missing};
use crate::token::{FetchSvid, FetchSvidError, FetchSvidReason, SvidRequest};

/// Does not hold entries, so it does not keep tokens alive.
pub(crate) struct Context {
    pub(crate) fetcher: Arc<dyn FetchSvid>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Settings,
    pub(crate) breaker: Breaker,
    pub(crate) limits: Limits,
    pub(crate) counts: Counters,
    pub(crate) subjects: Subjects,
    pub(crate) metrics: Option<Arc<Shielded>>,
    /// Wakes the task that keeps tokens warm.
    pub(crate) nudge: Notify,
    runtime: Option<Handle>,
    closed: AtomicBool,
    /// Whether a stall was logged: refreshes return no newer tokens, or are slow.
    stalled: AtomicBool,
    /// The logged classes of failures that affect all audiences, one bit each.
    warned: AtomicU16,
}

impl Context {
    pub(crate) fn new(
        fetcher: Arc<dyn FetchSvid>,
        clock: Arc<dyn Clock>,
        metrics: Option<Arc<dyn MetricsRecorder>>,
        settings: Settings,
    ) -> Self {
        Self {
            fetcher,
            clock,
            breaker: Breaker::default(),
            limits: Limits::new(&settings),
            settings,
            counts: Counters::default(),
            subjects: Subjects::default(),
            metrics: metrics.map(|metrics| Arc::new(Shielded::new(metrics))),
            nudge: Notify::new(),
            runtime: Handle::try_current().ok(),
            closed: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            warned: AtomicU16::new(0),
        }
    }

    #[inline]
    pub(crate) fn moment(&self) -> Moment {
        Moment::now(&*self.clock)
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.nudge.notify_waiters();
    }

    /// The runtime for fetches: the current one, or the one that the cache was built on. It must
    /// have timers.
    pub(crate) fn runtime(&self) -> Result<Handle, Missing> {
        runtime::with_timers().or_else(|missing| {
            let built_on = self.runtime.as_ref();
            let built_on = built_on.filter(|runtime| runtime::has_timers(runtime));
            built_on.cloned().ok_or(missing)
        })
    }

    /// Counts and records an event.
    #[inline]
    pub(crate) fn record(&self, event: SvidCacheEvent) {
        let counts = &self.counts;
        match event {
            SvidCacheEvent::Hit => counts.hits.increment(),
            SvidCacheEvent::Miss => counts.misses.increment(),
            SvidCacheEvent::Error => counts.errors.increment(),
            SvidCacheEvent::Refused => counts.rejections.increment(),
            SvidCacheEvent::BreakerOpened => counts.breaker_opened.increment(),
            SvidCacheEvent::Unmatched => counts.unmatched.increment(),
            SvidCacheEvent::Refresh | SvidCacheEvent::Late => {}
        }
        if let Some(metrics) = &self.metrics {
            metrics.record_svid_cache(event);
        }
    }

    /// One call to the issuer ended.
    pub(crate) fn fetched(&self, answer: &Result<Token, FetchSvidError>, latency: Duration) {
        let outcome = match answer {
            Ok(_) => "ok",
            Err(error) => super::error::TokenErrorReason::of(error.reason()).as_str(),
        };
        self.counts.fetches.increment();
        if answer.is_err() {
            self.counts.failures.increment();
        }
        if let Some(metrics) = &self.metrics {
            metrics.record_svid_fetch(outcome, latency);
        }
        if answer.is_ok() {
            self.warned.store(0, Ordering::Relaxed);
        }
    }

    /// A refresh returned no newer token, or is slow. Returns whether to log it: no stall was
    /// logged yet, for this audience or for any other.
    pub(crate) fn stalls(&self, state: &mut EntryState) -> bool {
        let new = !std::mem::replace(&mut state.stalled, true);
        new && !self.stalled.swap(true, Ordering::Relaxed)
    }

    /// A refresh returned a newer token in time. Returns whether this ends a logged stall.
    pub(crate) fn recovers(&self, state: &mut EntryState) -> bool {
        std::mem::take(&mut state.stalled) && self.stalled.swap(false, Ordering::Relaxed)
    }

    /// Whether such a failure was logged before, for this audience or for another one with the same
    /// cause. Marks it as logged.
    pub(crate) fn is_known(
        &self,
        state: &mut EntryState,
        reason: FetchSvidReason,
        request: &SvidRequest,
    ) -> bool {
        let bit = 1 << reason as u16;
        let known_here = state.warned & bit != 0;
        state.warned |= bit;
        // With one warning for each caller's token, callers could fill the log.
        let quiet = request.has_subject() && !concerns_all(reason);
        // Both are needed: other audiences may clear the common bit while this one keeps failing.
        known_here
            || quiet
            || concerns_all(reason) && self.warned.fetch_or(bit, Ordering::Relaxed) & bit != 0
    }
}

/// Whether such a failure affects all audiences at once, so that one warning is enough.
fn concerns_all(reason: FetchSvidReason) -> bool {
    matches!(
        reason,
        FetchSvidReason::Unavailable
            | FetchSvidReason::Timeout
            | FetchSvidReason::Closed
            | FetchSvidReason::NoRuntime
            | FetchSvidReason::Stale
    )
}
