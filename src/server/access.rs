//! The policy of a layer, and how the layer responds to requests that it rejects.

use std::sync::Arc;

use http::request::Parts;

use super::drain::DrainLimits;
use super::policy::{self, Decision, Policy};
use super::protocol::{Protocol, Wire};
use super::realm::Realm;
use super::reason::RejectionReason;
use super::rejection::Rejection;
use super::telemetry::Telemetry;
use crate::metrics::MetricsRecorder;
use crate::verify::VerifiedSvid;

/// Settings of [`ValidateJwtSvidLayer`](super::ValidateJwtSvidLayer) and
/// [`AllowCallersLayer`](super::AllowCallersLayer).
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) policy: Arc<dyn Policy>,
    /// The policy of the layer that made this one. Its protocol is the default here too.
    pub(crate) outer: Option<Arc<dyn Policy>>,
    /// The protocol of the server, if it was set.
    pub(crate) protocol: Option<Protocol>,
    pub(crate) realm: Realm,
    pub(crate) drain: DrainLimits,
    pub(crate) telemetry: Telemetry,
}

impl Access {
    pub(crate) fn new(policy: impl Policy, telemetry: Telemetry) -> Self {
        telemetry.give_recorder(&policy);
        Self {
            policy: Arc::new(policy),
            outer: None,
            protocol: None,
            realm: Realm::default(),
            drain: DrainLimits::default(),
            telemetry,
        }
    }

    pub(crate) fn set_recorder(&mut self, recorder: Arc<dyn MetricsRecorder>) {
        self.telemetry.set_recorder(recorder);
        self.telemetry.give_recorder(&*self.policy);
    }

    /// The protocol that the server has declared.
    pub(crate) fn protocol(&self) -> Protocol {
        let outer = || self.outer.as_ref().and_then(|policy| policy.protocol());
        self.protocol
            .or_else(|| self.policy.protocol())
            .or_else(outer)
            .unwrap_or_default()
    }

    pub(crate) fn wire(&self, parts: &Parts) -> Wire {
        self.protocol().wire(parts)
    }

    pub(crate) fn rejection(&self, reason: RejectionReason, parts: &Parts) -> Rejection {
        Rejection::new(reason, self.wire(parts), &self.realm)
    }

    /// Returns the rejection for this decision, which is not [`Decision::Allow`].
    pub(crate) fn denied(
        &self,
        decision: Decision,
        caller: Option<&VerifiedSvid>,
        parts: &Parts,
    ) -> Rejection {
        Rejection::by_policy(decision, caller, self.wire(parts), &self.realm)
    }

    /// Asks the policy about a verified caller.
    pub(crate) fn decide_verified(
        &self,
        caller: &VerifiedSvid,
        parts: &Parts,
    ) -> Result<(), Rejection> {
        match policy::decide_verified(&*self.policy, caller, parts) {
            Decision::Allow => Ok(()),
            denied => Err(self.denied(denied, Some(caller), parts)),
        }
    }
}
