//! The checks of a request and their order, shared by all services of the layer.

use std::fmt;
use std::sync::Arc;

use http::HeaderName;
use http::header::AUTHORIZATION;
use http::request::Parts;

use super::access::Access;
use super::bearer::{self, Credential};
#[cfg(feature = "axum")]
use super::caller::Answers;
use super::caller::{self, CallerState, TakenFrom};
use super::policy::{Decision, Policy};
use super::reason::RejectionReason;
use super::rejection::Rejection;
use super::telemetry::Telemetry;
use crate::bundle::BundleAnswer;
use crate::verify::{Sight, ValidateError, ValidateReason, Validator, VerifiedSvid};

/// How a request that is not allowed is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The request is rejected.
    Required,
    /// The request is rejected. If it has no credential, the policy decides.
    Optional,
    /// The request passes as `AuditFailed`.
    Audit,
}

/// Everything that a verdict depends on. Independent of body types.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) validator: Validator,
    pub(crate) access: Access,
    pub(crate) mode: Mode,
    /// The headers that can carry the token, in order; at least one.
    pub(crate) headers: Arc<[HeaderName]>,
    pub(crate) uniform: bool,
    pub(crate) keep_credential: bool,
}

/// The verdict about a request, before it is recorded and applied.
pub(crate) struct Checked {
    pub(crate) verdict: Result<CallerState, Rejection>,
    read: Read,
}

impl Checked {
    pub(crate) fn is_verified(&self) -> bool {
        matches!(self.verdict, Ok(CallerState::Verified(_)))
    }
}

/// How the token was read.
#[derive(Debug, Clone, Copy, Default)]
struct Read {
    /// The token was in the verified cache.
    cached: bool,
    /// The header that it was read from, by place in the order.
    place: usize,
    /// It is still in the header. `false` if an outer layer removed it.
    in_header: bool,
}

/// Why there is no verified caller.
enum Fault {
    Missing,
    Malformed,
    TooLong,
    Token(ValidateError),
}

impl Checked {
    pub(crate) fn rejected(rejection: Rejection) -> Self {
        Self {
            verdict: Err(rejection),
            read: Read::default(),
        }
    }

    /// Returns the verdict with this rejection.
    pub(crate) fn denied(self, rejection: Rejection) -> Self {
        Self {
            verdict: Err(rejection),
            ..self
        }
    }

    /// Returns the rejection if its reason is an unknown key, which may still arrive.
    pub(crate) fn unknown_key(&self) -> Option<&Rejection> {
        let unknown = RejectionReason::Token(ValidateReason::KeyUnknown);
        let rejection = self.verdict.as_ref().err()?;
        (rejection.reason() == unknown).then_some(rejection)
    }
}

impl Gate {
    pub(crate) fn new(validator: Validator, policy: impl Policy, mode: Mode) -> Self {
        Self {
            access: Access::new(policy, Telemetry::of(&validator)),
            validator,
            mode,
            headers: [AUTHORIZATION].into(),
            uniform: false,
            keep_credential: false,
        }
    }

    /// Returns the verdict, which is the same in every mode. Records nothing.
    pub(crate) fn check(&self, parts: &mut Parts, sight: Sight) -> Checked {
        let mut read = Read::default();
        let verdict = self.verdict(parts, sight, &mut read);
        Checked { verdict, read }
    }

    fn verdict(
        &self,
        parts: &mut Parts,
        sight: Sight,
        read: &mut Read,
    ) -> Result<CallerState, Rejection> {
        // Done before the parts reach other code. The first header is marked when it is read.
        for header in self.headers.iter().skip(1) {
            bearer::mark_sensitive(&mut parts.headers, header);
        }
        if self.headers.first() != Some(&AUTHORIZATION) {
            // It can carry another credential.
            bearer::mark_sensitive(&mut parts.headers, &AUTHORIZATION);
        }
        let fault = match self.authenticate(parts, sight, read) {
            Ok(caller) => {
                self.access.decide_verified(&caller, parts)?;
                return Ok(CallerState::Verified(caller));
            }
            Err(fault) => fault,
        };
        let access = &self.access;
        let rejection = match fault {
            Fault::Token(error) => Rejection::token(error, access.wire(parts), &access.realm),
            Fault::Missing => match self.decide_anonymous(parts) {
                Decision::Allow => return Ok(CallerState::Anonymous),
                denied => return Err(access.denied(denied, None, parts)),
            },
            Fault::Malformed => access.rejection(RejectionReason::Malformed, parts),
            Fault::TooLong => {
                access.rejection(RejectionReason::Token(ValidateReason::TooLong), parts)
            }
        };
        Err(rejection.worded(self.uniform))
    }

    /// The policy's decision about a request without a token. `required` and `audit` ask it about
    /// public requests only.
    pub(crate) fn decide_anonymous(&self, parts: &Parts) -> Decision {
        if self.mode == Mode::Optional || self.access.policy.is_public(parts) {
            self.access.policy.decide(None, parts)
        } else {
            Decision::AuthenticationRequired
        }
    }

    /// Whether a request without a token would be allowed.
    pub(crate) fn allows_anonymous(&self, parts: &Parts) -> bool {
        (self.mode == Mode::Optional || self.access.policy.is_public(parts))
            && self.access.policy.allows_anonymous(parts)
    }

    /// Counts and logs the verdict, and applies it to the request according to the mode.
    pub(crate) fn apply(
        &self,
        parts: &mut Parts,
        checked: Checked,
    ) -> Result<tracing::Span, Rejection> {
        self.record_token(&checked);
        let enforced = self.mode != Mode::Audit;
        let Read {
            place, in_header, ..
        } = checked.read;
        let (state, span) = match checked.verdict {
            Ok(state) => {
                let span = self.access.telemetry.allowed(&state);
                (state, span)
            }
            Err(rejection) => {
                self.record_rejection(&rejection, enforced);
                if enforced {
                    parts.extensions.remove::<CallerState>();
                    return Err(rejection);
                }
                let span = Telemetry::audited(&rejection);
                (CallerState::AuditFailed(rejection), span)
            }
        };
        if state.verified().is_some()
            && let Some(header) = self.headers.get(place)
        {
            if in_header && enforced && !self.keep_credential {
                parts.headers.remove(header);
            }
            // For inner layers that read the same header.
            if *header != AUTHORIZATION {
                parts.extensions.insert(TakenFrom(header.clone()));
            } else if !parts.extensions.is_empty() {
                parts.extensions.remove::<TakenFrom>();
            }
        }
        #[cfg(feature = "axum")]
        if state.verified().is_none() {
            parts.extensions.insert(Answers {
                protocol: self.access.protocol(),
                realm: self.access.realm.clone(),
            });
        }
        parts.extensions.insert(state);
        Ok(span)
    }

    /// Counts and logs a rejection; in `audit` one that is not enforced.
    pub(crate) fn record_rejection(&self, rejection: &Rejection, enforced: bool) {
        let source = self.validator.source();
        let is_known = |name: &str| matches!(source.bundle(name), BundleAnswer::Ready(_));
        let accepted = self.validator.accepted_audiences();
        self.access
            .telemetry
            .rejected(rejection, enforced, is_known, accepted);
    }

    /// Records the verdict on the token with the validator's recorder: once per request, even if a
    /// waiting request is checked several times.
    fn record_token(&self, checked: &Checked) {
        let (reason, trust_domain) = match &checked.verdict {
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
        self.validator
            .record(reason, checked.read.cached, trust_domain);
    }

    fn authenticate(
        &self,
        parts: &mut Parts,
        sight: Sight,
        read: &mut Read,
    ) -> Result<VerifiedSvid, Fault> {
        let max_token_len = self.validator.max_token_len();
        if let Some(first) = self.headers.first()
            && let Some(Credential::Token(token)) =
                bearer::mark_and_read(&mut parts.headers, first, max_token_len)
        {
            read.in_header = true;
            return self.validate(token, sight, read);
        }
        let token = self.token(parts, read)?;
        self.validate(token, sight, read)
    }

    fn validate(&self, token: &str, sight: Sight, read: &mut Read) -> Result<VerifiedSvid, Fault> {
        let (verdict, cached) = self.validator.check(token, sight);
        read.cached = cached;
        verdict.map_err(|error| {
            // A malformed header is reported before an invalid token.
            if bearer::is_token68(token) {
                Fault::Token(error)
            } else {
                Fault::Malformed
            }
        })
    }

    /// Finds the token. The first header that the request has decides.
    fn token<'a>(&self, parts: &'a Parts, read: &mut Read) -> Result<&'a str, Fault> {
        let max_token_len = self.validator.max_token_len();
        for (place, header) in self.headers.iter().enumerate() {
            // The token that an outer layer removed from the header. It is verified again.
            let outer = || caller::outer_token(&parts.extensions, header);
            let token = match bearer::credential(&parts.headers, header, max_token_len) {
                Credential::Token(token) => {
                    read.in_header = true;
                    token
                }
                Credential::Absent => match outer() {
                    Some(token) => token,
                    None => continue,
                },
                Credential::OtherScheme => outer().ok_or(Fault::Missing)?,
                Credential::Malformed => return Err(Fault::Malformed),
                Credential::TooLong => return Err(Fault::TooLong),
            };
            read.place = place;
            return Ok(token);
        }
        Err(Fault::Missing)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("mode", &self.mode)
            .field("protocol", &self.access.protocol)
            .field("headers", &self.headers)
            .field("realm", &self.access.realm)
            .field("keep_credential", &self.keep_credential)
            .finish_non_exhaustive()
    }
}
