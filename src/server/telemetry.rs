//! Metrics, spans and rate-limited log lines.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quick_cache::DefaultHashBuilder;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Span, field};

use super::caller::CallerState;
use super::policy::Policy;
use super::reason::RejectionReason;
use super::rejection::Rejection;
use crate::clock::Clock;
use crate::identity::SpiffeId;
use crate::metrics::{Admission, MetricsRecorder, Shielded};
use crate::verify::{ValidateError, ValidateReason, Validator};

/// At most one log line per class and caller in this time.
pub(super) const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

/// The number of callers with their own log lines; the others share one line per class.
const MAX_CALLERS: usize = 1024;

#[derive(Clone)]
pub(crate) struct Telemetry {
    recorder: Option<Arc<dyn MetricsRecorder>>,
    log: Arc<RejectionLog>,
    clock: Arc<dyn Clock>,
}

impl Telemetry {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let log = Arc::new(RejectionLog::new(DEFAULT_INTERVAL));
        Self {
            recorder: None,
            log,
            clock,
        }
    }

    /// Logs that the layer outside a handler is missing: at most one line every ten seconds for the
    /// whole process.
    pub(crate) fn not_wired(rejection: &Rejection) {
        use std::sync::LazyLock;

        static PROCESS: LazyLock<Telemetry> =
            LazyLock::new(|| Telemetry::new(crate::clock::SystemClock::shared()));
        PROCESS.rejected(rejection, true, |_| false, &[]);
    }

    /// Uses the clock and the recorder of this validator.
    pub(crate) fn of(validator: &Validator) -> Self {
        Self {
            recorder: validator.metrics(),
            ..Self::new(validator.clock().clone())
        }
    }

    /// Gives the recorder to a policy that may not have its own.
    pub(crate) fn give_recorder(&self, policy: &dyn Policy) {
        if let Some(recorder) = &self.recorder {
            policy.inherit_metrics(recorder);
        }
    }

    pub(crate) fn set_recorder(&mut self, recorder: Arc<dyn MetricsRecorder>) {
        self.recorder = Some(Arc::new(Shielded::new(recorder)));
    }

    /// Counts a wait for an unknown key; `outcome` is one of
    /// [`KEY_WAIT_OUTCOMES`](crate::metrics::KEY_WAIT_OUTCOMES).
    pub(crate) fn key_wait(&self, outcome: &'static str) {
        if let Some(recorder) = &self.recorder {
            recorder.record_key_wait(outcome);
        }
    }

    pub(crate) fn set_log_interval(&mut self, interval: Duration) {
        self.log = Arc::new(RejectionLog::new(interval));
    }

    /// Returns the span of an allowed request, with its caller. Records the caller in the outer
    /// span too, if it has the field.
    pub(crate) fn allowed(&self, state: &CallerState) -> Span {
        let caller = state.verified();
        if let Some(recorder) = &self.recorder {
            let (outcome, trust_domain) = match caller {
                Some(caller) => ("verified", caller.spiffe_id().trust_domain_name()),
                None => ("anonymous", UNKNOWN),
            };
            recorder.record_admission(&Admission::new(outcome, true, trust_domain));
        }
        let Some(caller) = caller else {
            return Span::none();
        };
        let id = caller.spiffe_id().as_str();
        Span::current().record("peer.spiffe_id", id);
        tracing::info_span!("jwt_svid", peer.spiffe_id = id)
    }

    /// Returns the span of a request that `audit` allows although it would be rejected, with its
    /// caller if verified.
    pub(crate) fn audited(rejection: &Rejection) -> Span {
        rejection.caller().map_or_else(Span::none, |caller| {
            tracing::info_span!("jwt_svid", peer.spiffe_id = caller.as_str())
        })
    }

    /// Counts and logs a response that ended early, because the token of this caller expired.
    pub(crate) fn ended(&self, caller: &SpiffeId) {
        if let Some(recorder) = &self.recorder {
            recorder.record_ended_answer();
        }
        let reason = RejectionReason::Token(ValidateReason::Expired);
        // One line for all callers: streams that began together also end together.
        let Some(suppressed) = self.log.pass(self.clock.monotonic(), reason.as_str(), None) else {
            return;
        };
        tracing::info!(
            reason = reason.as_str(),
            suppressed,
            peer.spiffe_id = caller.as_str(),
            "responses ended early: {}",
            reason.description()
        );
    }

    /// Counts and logs a rejection; in `audit` one that is not enforced.
    pub(crate) fn rejected(
        &self,
        rejection: &Rejection,
        enforced: bool,
        is_known: impl Fn(&str) -> bool,
        accepted: &[Box<str>],
    ) {
        let reason = rejection.reason();
        let class = reason.as_str();
        if let Some(recorder) = &self.recorder {
            // A token can claim any trust domain; only known ones become labels.
            let known = rejection.trust_domain().filter(|name| is_known(name));
            let label = known.unwrap_or(UNKNOWN);
            let why = match reason {
                RejectionReason::BundlesUnavailable(why) => why.as_str(),
                RejectionReason::PolicyUnavailable(why) => why.as_str(),
                _ => "",
            };
            recorder.record_admission(&Admission::new(class, enforced, label).because(why));
        }
        let caller = rejection.caller();
        if let Some(caller) = caller {
            record_caller(caller);
        }
        // If no line would be written, a rejection does not read the clock or take the lock.
        if LevelFilter::current() < level_of(reason) {
            return;
        }
        let Some(suppressed) = self.log.pass(self.clock.monotonic(), class, caller) else {
            return;
        };
        // The field is logged once: on the outer span, or on the line.
        let caller = caller
            .filter(|_| !Span::current().has_field("peer.spiffe_id"))
            .map(SpiffeId::as_str);
        // Unverified text of callers is logged at debug level only.
        let closely = tracing::enabled!(Level::DEBUG);
        let key_id = rejection.key_id().filter(|_| closely);
        let trust_domain = rejection.trust_domain().filter(|_| closely);
        // A fixed text without parts of the token.
        let detail = rejection.token_error().map(ValidateError::detail);
        let audiences = rejection
            .token_error()
            .and_then(ValidateError::audiences)
            .filter(|_| closely);
        let accepted = audiences.map(|_| accepted);
        match reason {
            RejectionReason::BundlesUnavailable(why) => tracing::warn!(
                reason = class,
                enforced,
                suppressed,
                why = %why,
                "callers cannot be authenticated"
            ),
            RejectionReason::PolicyUnavailable(why) => tracing::warn!(
                reason = class,
                enforced,
                suppressed,
                why = %why,
                policy_reason = rejection.policy_reason().map(field::debug),
                peer.spiffe_id = caller,
                "callers cannot be authorized"
            ),
            RejectionReason::NotWired => {
                tracing::error!(reason = class, suppressed, "{}", reason.description());
            }
            _ => tracing::info!(
                reason = class,
                enforced,
                suppressed,
                detail,
                peer.spiffe_id = caller,
                policy_reason = rejection.policy_reason().map(field::debug),
                key_id = key_id.map(field::debug),
                trust_domain = trust_domain.map(field::debug),
                audiences = audiences.map(field::debug),
                accepted_audiences = accepted.map(field::debug),
                "requests are not allowed: {}",
                reason.description()
            ),
        }
    }
}

const UNKNOWN: &str = "unknown";

/// The level of the log line.
fn level_of(reason: RejectionReason) -> Level {
    match reason {
        RejectionReason::BundlesUnavailable(_) | RejectionReason::PolicyUnavailable(_) => {
            Level::WARN
        }
        RejectionReason::NotWired => Level::ERROR,
        _ => Level::INFO,
    }
}

fn record_caller(caller: &SpiffeId) {
    let span = Span::current();
    // The span of this crate has the caller already.
    let is_ours = span.metadata().is_some_and(|it| it.name() == "jwt_svid");
    if !is_ours {
        span.record("peer.spiffe_id", caller.as_str());
    }
}

/// Allows one line per class and caller in each interval.
pub(super) struct RejectionLog {
    interval: Duration,
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    /// The lines of rejections without a verified caller, and of callers without their own lines.
    /// There are at most a dozen, so a scan is faster than a hash.
    by_class: Vec<(&'static str, Line)>,
    // The hasher of the verified cache, with its own seed.
    by_caller: HashMap<(&'static str, SpiffeId), Line, DefaultHashBuilder>,
    // A full table is swept once per interval; otherwise every rejection would scan it.
    swept: Option<Duration>,
}

#[derive(Default)]
struct Line {
    quiet_until: Duration,
    suppressed: u64,
}

impl RejectionLog {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            lines: Mutex::default(),
        }
    }

    /// Returns whether the line may be written: the number of lines suppressed since the last one.
    pub(super) fn pass(
        &self,
        now: Duration,
        class: &'static str,
        caller: Option<&SpiffeId>,
    ) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let own = caller.map(|caller| (class, caller.clone()));
        if let Some(key) = own.filter(|key| lines.has_room(key, now, self.interval)) {
            let line = lines.by_caller.entry(key).or_default();
            return line.pass(now, self.interval);
        }
        let mut known = lines.by_class.iter_mut();
        if let Some((_, line)) = known.find(|(name, _)| *name == class) {
            return line.pass(now, self.interval);
        }
        let mut line = Line::default();
        let passed = line.pass(now, self.interval);
        lines.by_class.push((class, line));
        passed
    }
}

impl Line {
    fn pass(&mut self, now: Duration, interval: Duration) -> Option<u64> {
        if now < self.quiet_until {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.quiet_until = now.saturating_add(interval);
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Lines {
    fn has_room(
        &mut self,
        key: &(&'static str, SpiffeId),
        now: Duration,
        interval: Duration,
    ) -> bool {
        if self.by_caller.len() < MAX_CALLERS || self.by_caller.contains_key(key) {
            return true;
        }
        if self
            .swept
            .is_none_or(|at| now >= at.saturating_add(interval))
        {
            self.swept = Some(now);
            // The counts of suppressed lines of these callers are lost.
            self.by_caller.retain(|_, line| line.quiet_until > now);
        }
        self.by_caller.len() < MAX_CALLERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_line_per_class_and_caller_and_interval() {
        let log = RejectionLog::new(10 * SECOND);
        let web: SpiffeId = "spiffe://x/web".parse().unwrap();
        let db: SpiffeId = "spiffe://x/db".parse().unwrap();
        assert_eq!(log.pass(SECOND, "expired", None), Some(0));
        assert_eq!(log.pass(SECOND, "missing", None), Some(0));
        assert_eq!(log.pass(SECOND, "not-allowed", Some(&web)), Some(0));
        assert_eq!(log.pass(SECOND, "not-allowed", Some(&db)), Some(0));
        for second in 2..11 {
            assert_eq!(log.pass(second * SECOND, "expired", None), None);
            assert_eq!(log.pass(second * SECOND, "not-allowed", Some(&web)), None);
        }
        assert_eq!(log.pass(11 * SECOND, "expired", None), Some(9));
        assert_eq!(log.pass(11 * SECOND, "not-allowed", Some(&web)), Some(9));
        assert_eq!(log.pass(11 * SECOND, "not-allowed", Some(&db)), Some(0));
    }

    #[test]
    fn number_of_callers_is_bounded() {
        let log = RejectionLog::new(10 * SECOND);
        let written = (0..10_000)
            .filter(|n| {
                let caller = format!("spiffe://x/{n}").parse().unwrap();
                // A second rejection of each, so that lines are suppressed.
                let logged = log.pass(SECOND, "not-allowed", Some(&caller)).is_some();
                log.pass(SECOND, "not-allowed", Some(&caller));
                logged
            })
            .count();
        assert_eq!(written, MAX_CALLERS + 1);
        assert_eq!(log.lines.lock().unwrap().by_caller.len(), MAX_CALLERS);
        // Later the old lines are removed.
        let late = "spiffe://x/late".parse().unwrap();
        assert_eq!(log.pass(20 * SECOND, "not-allowed", Some(&late)), Some(0));
        assert!(log.lines.lock().unwrap().by_caller.len() < 10);
    }
}
