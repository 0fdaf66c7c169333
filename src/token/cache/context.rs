//! What all audiences of a cache share, but for the audiences themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::breaker::Breaker;
use super::counts::Counters;
use super::entry_state::Gate;
use super::limits::Limits;
use super::moment::Moment;
use super::settings::Settings;
use super::token::{Subjects, Token};
use crate::clock::Clock;
use crate::metrics::{MetricsRecorder, Shielded, SvidCacheEvent};
use crate::runtime::{self, Missing};
use crate::token::{FetchSvid, FetchSvidError, FetchSvidReason};

/// Holds no entry, so that whatever holds it keeps no token alive.
pub(crate) struct Context {
    pub(crate) fetcher: Arc<dyn FetchSvid>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Settings,
    pub(crate) breaker: Breaker,
    pub(crate) limits: Limits,
    pub(crate) counts: Counters,
    pub(crate) subjects: Subjects,
    metrics: Option<Shielded>,
    /// Something changed that whoever keeps tokens warm would look at.
    pub(crate) nudge: Notify,
    runtime: Option<Handle>,
    closed: AtomicBool,
    /// Refreshes were reported to bring no newer tokens, or to be slow.
    stalled: AtomicBool,
    /// Failures of the issuer as a whole that were warned of, one bit each.
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
            breaker: Breaker::new(),
            limits: Limits::new(&settings),
            settings,
            counts: Counters::default(),
            subjects: Subjects::default(),
            metrics: metrics.map(Shielded::new),
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

    /// Where to fetch: the caller's runtime, which is alive; else the one that it was built on.
    /// Neither without timers.
    pub(crate) fn runtime(&self) -> Result<Handle, Missing> {
        runtime::with_timers().or_else(|missing| {
            let built_on = self.runtime.as_ref();
            let built_on = built_on.filter(|runtime| runtime::has_timers(runtime));
            built_on.cloned().ok_or(missing)
        })
    }

    /// A token was there.
    #[inline]
    pub(crate) fn hit(&self) {
        self.counts.hit();
        self.record(SvidCacheEvent::Hit);
    }

    /// None was there.
    pub(crate) fn missed(&self) {
        self.counts.missed();
        self.record(SvidCacheEvent::Miss);
    }

    pub(crate) fn refreshing(&self, urgent: bool) {
        if !urgent {
            self.record(SvidCacheEvent::Refresh);
        }
    }

    /// A token was sent that should have been replaced by now.
    pub(crate) fn late(&self) {
        self.record(SvidCacheEvent::Late);
    }

    /// A request got no token.
    pub(crate) fn no_token(&self) {
        self.counts.error();
        self.record(SvidCacheEvent::Error);
    }

    /// A service refused a token, which is refreshed for it.
    pub(crate) fn refused(&self) {
        self.counts.rejected();
        self.record(SvidCacheEvent::Refused);
    }

    pub(crate) fn breaker_opened(&self) {
        self.counts.breaker_opened();
        self.record(SvidCacheEvent::BreakerOpened);
    }

    pub(crate) fn unmatched(&self) {
        self.counts.unmatched();
        self.record(SvidCacheEvent::Unmatched);
    }

    #[inline]
    fn record(&self, event: SvidCacheEvent) {
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
        self.counts.fetched(answer.is_ok());
        if let Some(metrics) = &self.metrics {
            metrics.record_svid_fetch(outcome, latency);
        }
        if answer.is_ok() {
            self.warned.store(0, Ordering::Relaxed);
        }
    }

    /// A refresh brought nothing newer, or is slow. Whether that is news, for this audience and for
    /// all.
    pub(crate) fn stalls(&self, gate: &mut Gate) -> bool {
        let new = !std::mem::replace(&mut gate.stalled, true);
        new && !self.stalled.swap(true, Ordering::Relaxed)
    }

    /// A refresh brought a newer token in time. Whether that is news.
    pub(crate) fn recovers(&self, gate: &mut Gate) -> bool {
        std::mem::take(&mut gate.stalled) && self.stalled.swap(false, Ordering::Relaxed)
    }

    /// Whether such a failure was warned of already, here or by another audience whom it concerns
    /// as well. From now on it was.
    pub(crate) fn is_known(&self, gate: &mut Gate, reason: FetchSvidReason) -> bool {
        let bit = class_bit(reason);
        let known_here = gate.warned & bit != 0;
        gate.warned |= bit;
        // Both: one audience may fail for ever among others that clear what is known to all.
        known_here
            || concerns_all(reason) && self.warned.fetch_or(bit, Ordering::Relaxed) & bit != 0
    }
}

fn class_bit(reason: FetchSvidReason) -> u16 {
    let at = match reason {
        FetchSvidReason::Unavailable => 0,
        FetchSvidReason::Timeout => 1,
        FetchSvidReason::Denied => 2,
        FetchSvidReason::InvalidRequest => 3,
        FetchSvidReason::Unacceptable => 4,
        FetchSvidReason::Expired => 5,
        FetchSvidReason::Closed => 6,
        FetchSvidReason::Panicked => 7,
        FetchSvidReason::Other => 8,
        FetchSvidReason::NoRuntime => 9,
        FetchSvidReason::Stale => 10,
    };
    1 << at
}

/// Such a failure comes for all audiences at once; one warning will do.
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
