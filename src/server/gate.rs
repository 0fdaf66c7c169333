//! One request, one verdict: the order of the checks, for every shape of the layer.

use std::fmt;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderName};

use super::bearer::{self, Credential};
#[cfg(feature = "axum")]
use super::caller::Answers;
use super::caller::CallerState;
use super::drain::DrainLimits;
use super::policy::Policy;
use super::protocol::Protocol;
use super::realm::Realm;
use super::rejection::{Rejection, RejectionReason};
use super::telemetry::Telemetry;
use crate::bundle::BundleAnswer;
use crate::svid::{Sight, ValidateError, ValidateReason, Validator, VerifiedSvid};

/// What becomes of a request that is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is refused.
    Required,
    /// It is refused, but without a credential it passes as anonymous.
    Optional,
    /// It passes, marked.
    Audit,
}

/// Everything that decides about a request, and nothing that depends on body types.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) validator: Validator,
    pub(crate) policy: Arc<dyn Policy>,
    pub(crate) mode: Mode,
    pub(crate) protocol: Protocol,
    pub(crate) header: HeaderName,
    pub(crate) realm: Realm,
    pub(crate) strip: bool,
    pub(crate) uniform: bool,
    pub(crate) drain: DrainLimits,
    pub(crate) telemetry: Telemetry,
}

/// What was found of a request, before anything is made of it.
pub(crate) struct Judged {
    pub(crate) verdict: Result<CallerState, Rejection>,
    // Whether the token was verified before.
    cached: bool,
}

/// Why a credential is no identity.
enum Fault {
    Missing,
    Malformed,
    TooLong,
    Token(ValidateError),
}

impl Judged {
    pub(crate) fn refused(rejection: Rejection) -> Self {
        Self {
            verdict: Err(rejection),
            cached: false,
        }
    }

    /// The refusal, where it is one for a key that may still come.
    pub(crate) fn unknown_key(&self) -> Option<&Rejection> {
        let unknown = RejectionReason::Token(ValidateReason::KeyUnknown);
        let rejection = self.verdict.as_ref().err()?;
        (rejection.reason() == unknown).then_some(rejection)
    }
}

impl Gate {
    pub(crate) fn new(validator: Validator, policy: Arc<dyn Policy>, mode: Mode) -> Self {
        let telemetry = Telemetry::new(validator.clock().clone());
        Self {
            validator,
            policy,
            mode,
            protocol: Protocol::Auto,
            header: AUTHORIZATION,
            realm: Realm::default(),
            strip: false,
            uniform: false,
            drain: DrainLimits::default(),
            telemetry,
        }
    }

    /// The verdict, whatever the mode. Nobody is told of it yet.
    pub(crate) fn judge(&self, parts: &mut Parts, sight: Sight) -> Judged {
        let mut cached = false;
        let verdict = self.verdict(parts, sight, &mut cached);
        Judged { verdict, cached }
    }

    fn verdict(
        &self,
        parts: &mut Parts,
        sight: Sight,
        cached: &mut bool,
    ) -> Result<CallerState, Rejection> {
        // Before anyone else sees the parts.
        bearer::mark_sensitive(&mut parts.headers, &self.header);
        if self.header != AUTHORIZATION {
            // Somebody else's credential is one, too.
            bearer::mark_sensitive(&mut parts.headers, &AUTHORIZATION);
        }
        if self.policy.is_public(parts) {
            return Ok(CallerState::Anonymous);
        }
        let fault = match self.authenticate(&parts.headers, sight, cached) {
            Ok(caller) if self.policy.allows(&caller, parts) => {
                return Ok(CallerState::Verified(caller));
            }
            Ok(caller) => {
                let wire = self.protocol.wire(parts);
                return Err(Rejection::not_allowed(&caller, wire, &self.realm));
            }
            Err(Fault::Missing) if self.mode == Mode::Optional => {
                return Ok(CallerState::Anonymous);
            }
            Err(fault) => fault,
        };
        let wire = self.protocol.wire(parts);
        let reason = match fault {
            Fault::Token(error) => {
                let rejection = Rejection::token(error, wire, &self.realm);
                return Err(self.worded(rejection));
            }
            Fault::Missing => RejectionReason::Missing,
            Fault::Malformed => RejectionReason::Malformed,
            Fault::TooLong => RejectionReason::Token(ValidateReason::TooLong),
        };
        Err(self.worded(Rejection::new(reason, wire, &self.realm)))
    }

    fn worded(&self, rejection: Rejection) -> Rejection {
        if self.uniform {
            rejection.uniform()
        } else {
            rejection
        }
    }

    /// Counts and logs the verdict, and does to the request what the mode says.
    pub(crate) fn apply(
        &self,
        parts: &mut Parts,
        judged: Judged,
    ) -> Result<tracing::Span, Rejection> {
        self.record_token(&judged);
        let enforced = self.mode != Mode::Audit;
        let (state, span) = match judged.verdict {
            Ok(state) => {
                let span = self.telemetry.admitted(&state);
                (state, span)
            }
            Err(rejection) => {
                let source = self.validator.source();
                let is_known = |name: &str| matches!(source.bundle(name), BundleAnswer::Ready(_));
                let accepted = self.validator.audiences();
                self.telemetry
                    .refused(&rejection, enforced, is_known, accepted);
                if enforced {
                    parts.extensions.remove::<CallerState>();
                    return Err(rejection);
                }
                let span = Telemetry::audited(&rejection);
                (CallerState::AuditFailed(rejection), span)
            }
        };
        if self.strip {
            bearer::strip(&mut parts.headers, &self.header);
        }
        #[cfg(feature = "axum")]
        if state.verified().is_none() {
            parts.extensions.insert(Answers {
                protocol: self.protocol,
                realm: self.realm.clone(),
            });
        }
        parts.extensions.insert(state);
        Ok(span)
    }

    /// Tells the validator's recorder what became of the token: once per request, however often a
    /// request that waits was judged.
    fn record_token(&self, judged: &Judged) {
        let (reason, trust_domain) = match &judged.verdict {
            Ok(CallerState::Verified(caller)) => {
                (None, Some(caller.spiffe_id().trust_domain_name()))
            }
            Ok(_) => return,
            Err(rejection) => match (rejection.token_error(), rejection.caller()) {
                (Some(error), _) => (Some(error.reason()), error.trust_domain()),
                (None, Some(caller)) => (None, Some(caller.trust_domain_name())),
                (None, None) => return,
            },
        };
        self.validator.record(reason, judged.cached, trust_domain);
    }

    fn authenticate(
        &self,
        headers: &HeaderMap,
        sight: Sight,
        cached: &mut bool,
    ) -> Result<VerifiedSvid, Fault> {
        let max_token_len = self.validator.max_token_len();
        match bearer::credential(headers, &self.header, max_token_len) {
            Credential::Missing => Err(Fault::Missing),
            Credential::Malformed => Err(Fault::Malformed),
            Credential::TooLong => Err(Fault::TooLong),
            Credential::Token(token) => {
                let (verdict, was_there) = self.validator.judge(token, sight);
                *cached = was_there;
                verdict.map_err(|error| {
                    // The header's fault comes before the token's.
                    if bearer::is_token68(token) {
                        Fault::Token(error)
                    } else {
                        Fault::Malformed
                    }
                })
            }
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("mode", &self.mode)
            .field("protocol", &self.protocol)
            .field("header", &self.header)
            .field("realm", &self.realm)
            .field("strip_authorization", &self.strip)
            .finish_non_exhaustive()
    }
}
