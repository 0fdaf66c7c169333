//! Dry run: requests that the policy would deny are logged, counted and allowed.

use std::sync::Arc;

use http::Method;
use tracing::{Span, field};

use crate::clock::Clock;
use crate::metrics::MetricsRecorder;
use crate::presentable::presentable;
use crate::server::telemetry::{DEFAULT_INTERVAL, RejectionLog};
use crate::server::{Decision, RejectionReason};
use crate::verify::VerifiedSvid;

pub(super) struct DryRun {
    log: RejectionLog,
    clock: Arc<dyn Clock>,
}

impl DryRun {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            log: RejectionLog::new(DEFAULT_INTERVAL),
            clock,
        }
    }

    /// Logs and counts a decision that is not applied.
    pub(super) fn denied(
        &self,
        decision: Decision,
        caller: Option<&VerifiedSvid>,
        (method, path): (&Method, &str),
        recorder: &impl MetricsRecorder,
    ) {
        let reason = match (decision, caller) {
            (Decision::AuthenticationRequired, None) => RejectionReason::Missing,
            _ => RejectionReason::NotAllowed,
        };
        recorder.record_dry_run_denial(reason.as_str());
        let class = decision.reason().unwrap_or(reason.as_str());
        let id = caller.map(VerifiedSvid::spiffe_id);
        let Some(suppressed) = self.log.pass(self.clock.monotonic(), class, id) else {
            return;
        };
        // Text of unknown callers is logged at debug level only.
        let closely = id.is_some() || tracing::enabled!(tracing::Level::DEBUG);
        let request = closely.then(|| presentable(&format!("{method} {path}")));
        // The field is logged once: on the outer span, or on the line.
        let id = id.filter(|_| !Span::current().has_field("peer.spiffe_id"));
        tracing::info!(
            reason = reason.as_str(),
            suppressed,
            peer.spiffe_id = id.map(crate::SpiffeId::as_str),
            policy_reason = decision.reason().map(field::debug),
            request,
            "dry run: requests would be rejected: {}",
            reason.description()
        );
    }
}
