//! Rejections: why a request was rejected, and its response.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::policy::Decision;
use super::protocol::Wire;
use super::realm::Realm;
use super::reason::{RejectionReason, uniform_answer};
use crate::identity::SpiffeId;
use crate::verify::{ValidateError, ValidateReason, VerifiedSvid};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// How long a caller should wait before it retries a 503.
const RETRY_AFTER_SECS: HeaderValue = HeaderValue::from_static("5");

/// The longest reason of a policy, in bytes: one line of a log.
const MAX_POLICY_REASON: usize = 256;

/// Why a request was rejected: for logs, metrics and the response.
///
/// The response does not contain the details. It has a fixed text per class or, with
/// [`uniform_token_errors`](super::ValidateJwtSvidLayer::uniform_token_errors), one text for every
/// invalid token. The layer also stores the rejection in the extensions of the response, for outer
/// layers. Cloning it copies no text.
#[derive(Clone)]
pub struct Rejection {
    reason: RejectionReason,
    wire: Wire,
    /// One text for every invalid token.
    uniform: bool,
    /// Most rejections of requests without a token have no details, so they need no allocation.
    details: Option<Arc<Details>>,
}

#[derive(Clone)]
struct Details {
    token_error: Option<ValidateError>,
    caller: Option<SpiffeId>,
    /// The request that code inside the layer rejects, until the layer has responded.
    request: Option<Arc<Parts>>,
    /// For logs only.
    policy_reason: Option<Cow<'static, str>>,
    realm: Realm,
}

static NO_DETAILS: Details = Details {
    token_error: None,
    caller: None,
    request: None,
    policy_reason: None,
    realm: Realm::DEFAULT,
};

/// Cuts the reason of a policy.
pub(super) fn cut(mut reason: Cow<'static, str>) -> Cow<'static, str> {
    if reason.len() > MAX_POLICY_REASON {
        let is_end = |end: &usize| reason.is_char_boundary(*end);
        let end = (0..=MAX_POLICY_REASON).rev().find(is_end).unwrap_or(0);
        match &mut reason {
            Cow::Borrowed(text) => *text = text.get(..end).unwrap_or_default(),
            Cow::Owned(text) => {
                text.truncate(end);
                text.shrink_to_fit();
            }
        }
    }
    reason
}

// === impl Rejection ===

impl Rejection {
    pub(crate) fn new(reason: RejectionReason, wire: Wire, realm: &Realm) -> Self {
        Self::build(reason, None, None, wire, realm)
    }

    pub(crate) fn token(error: ValidateError, wire: Wire, realm: &Realm) -> Self {
        let reason = match error.reason() {
            ValidateReason::BundlesUnavailable(why) => RejectionReason::BundlesUnavailable(why),
            reason => RejectionReason::Token(reason),
        };
        Self::build(reason, Some(error), None, wire, realm)
    }

    /// Creates the rejection for this decision, which is not [`Decision::Allow`].
    pub(crate) fn by_policy(
        decision: Decision,
        caller: Option<&VerifiedSvid>,
        wire: Wire,
        realm: &Realm,
    ) -> Self {
        let reason = match (decision, caller) {
            (Decision::AuthenticationRequired, None) => RejectionReason::Missing,
            _ => RejectionReason::NotAllowed,
        };
        let rejection = Self::of_caller(reason, caller, wire, realm);
        rejection.because_if(decision.reason().map(Cow::Borrowed))
    }

    pub(crate) fn of_caller(
        reason: RejectionReason,
        caller: Option<&VerifiedSvid>,
        wire: Wire,
        realm: &Realm,
    ) -> Self {
        let caller = caller.map(|caller| caller.spiffe_id().clone());
        Self::build(reason, None, caller, wire, realm)
    }

    /// Remembers the request for `on_reject`.
    pub(crate) fn with_request(self, parts: Parts) -> Self {
        self.with(|details| details.request = Some(Arc::new(parts)))
    }

    /// Takes the request out, so that the response does not contain its headers.
    pub(crate) fn take_request(self) -> (Self, Option<Arc<Parts>>) {
        if self.details().request.is_none() {
            return (self, None);
        }
        let mut request = None;
        let rejection = self.with(|details| request = details.request.take());
        (rejection, request)
    }

    fn build(
        reason: RejectionReason,
        token_error: Option<ValidateError>,
        caller: Option<SpiffeId>,
        wire: Wire,
        realm: &Realm,
    ) -> Self {
        let has_details = token_error.is_some() || caller.is_some() || !realm.is_default();
        let details = has_details.then(|| {
            Arc::new(Details {
                token_error,
                caller,
                realm: realm.clone(),
                ..NO_DETAILS.clone()
            })
        });
        Self {
            reason,
            wire,
            uniform: false,
            details,
        }
    }

    fn details(&self) -> &Details {
        self.details.as_deref().unwrap_or(&NO_DETAILS)
    }

    /// Sets one text for every invalid token, if `uniform`; `reason` and the details stay.
    pub(crate) fn worded(self, uniform: bool) -> Self {
        Self { uniform, ..self }
    }

    /// Adds a reason for the log line (see [`policy_reason`](Self::policy_reason)), cut at 256
    /// bytes.
    #[must_use]
    pub fn because(self, reason: impl Into<Cow<'static, str>>) -> Self {
        let reason = cut(reason.into());
        self.with(|details| details.policy_reason = Some(reason))
    }

    pub(crate) fn because_if(self, reason: Option<Cow<'static, str>>) -> Self {
        match reason {
            Some(reason) => self.because(reason),
            None => self,
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Details)) -> Self {
        let details = self
            .details
            .get_or_insert_with(|| Arc::new(NO_DETAILS.clone()));
        // Rarely clones: a new rejection has one owner.
        change(Arc::make_mut(details));
        self
    }

    /// Returns the rejection in the protocol and realm of another layer.
    pub(crate) fn reworded(self, wire: Wire, realm: &Realm, uniform: bool) -> Self {
        let reworded = Self {
            wire,
            uniform,
            ..self
        };
        if reworded.details().realm == *realm {
            return reworded;
        }
        reworded.with(|details| details.realm = realm.clone())
    }

    /// Stores this rejection in the extensions of its response. No other layer replaces it.
    pub(crate) fn settle<B>(self, response: &mut Response<B>) {
        response.extensions_mut().remove::<HandlerRejection>();
        response.extensions_mut().insert(self);
    }

    /// Returns the class.
    pub fn reason(&self) -> RejectionReason {
        self.reason
    }

    /// Returns the error of the token, if a token was checked.
    pub fn token_error(&self) -> Option<&ValidateError> {
        self.details().token_error.as_ref()
    }

    /// Returns the `kid` of the token, bounded and escaped. It is unverified: do not use it as a
    /// metric label.
    pub fn key_id(&self) -> Option<&str> {
        self.token_error().and_then(ValidateError::key_id)
    }

    /// Returns the trust domain of the verified caller, or the one that the token claims. A claimed
    /// one is unverified: do not use it as a metric label.
    pub fn trust_domain(&self) -> Option<&str> {
        let claimed = || self.token_error().and_then(ValidateError::trust_domain);
        let verified = self.caller().map(SpiffeId::trust_domain_name);
        verified.or_else(claimed)
    }

    /// Returns the policy's own reason for the denial, if it has one. It is for logs: no response
    /// contains it.
    pub fn policy_reason(&self) -> Option<&str> {
        self.details().policy_reason.as_deref()
    }

    /// Returns the caller, if its token is valid and the policy denied it.
    pub fn caller(&self) -> Option<&SpiffeId> {
        self.details().caller.as_ref()
    }

    #[cfg(feature = "axum")]
    pub(crate) fn is_grpc(&self) -> bool {
        self.wire != Wire::Http
    }

    pub(crate) fn is_about_the_token(&self) -> bool {
        matches!(self.reason, RejectionReason::Token(_))
    }

    /// Returns the text that the caller receives: a fixed text per class, or one text for every
    /// invalid token with
    /// [`uniform_token_errors`](super::ValidateJwtSvidLayer::uniform_token_errors).
    pub fn description(&self) -> &'static str {
        if self.is_uniform() {
            uniform_answer().description
        } else {
            self.reason.description()
        }
    }

    fn is_uniform(&self) -> bool {
        self.uniform && self.is_about_the_token()
    }

    /// Returns the challenge of the HTTP response; `None` if no credential would help.
    pub fn challenge(&self) -> Option<HeaderValue> {
        let (reason, realm) = (self.reason, &self.details().realm);
        let ready_made = if self.is_uniform() {
            uniform_answer().challenge
        } else {
            reason.default_challenge()?
        };
        if realm.is_default() {
            return Some(ready_made.clone());
        }
        let description = match reason {
            RejectionReason::Token(_) => Some(self.description()),
            _ => None,
        };
        Some(realm.challenge(reason.error_code(), description))
    }

    /// Returns the default response, in the protocol of the server, with an empty body.
    pub fn response<B: Default>(&self) -> Response<B> {
        self.response_with(B::default())
    }

    /// Returns the default response with this body. In gRPC it should be empty.
    pub fn response_with<B>(&self, body: B) -> Response<B> {
        let reason = self.reason;
        let mut response = Response::new(body);
        if let Some(content_type) = self.wire.content_type() {
            // Trailers-only: the status is in the headers, and the body is empty.
            let headers = response.headers_mut();
            headers.reserve(3);
            headers.insert(CONTENT_TYPE, content_type);
            headers.insert(GRPC_STATUS, u16::from(reason.grpc_code().as_u8()).into());
            headers.insert(GRPC_MESSAGE, HeaderValue::from_static(self.description()));
            return response;
        }
        *response.status_mut() = reason.status();
        response.headers_mut().reserve(2);
        if let Some(challenge) = self.challenge() {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        if reason.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECS);
        }
        response
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Rejection");
        out.field("reason", &self.reason);
        for (name, value) in [
            ("key_id", self.key_id()),
            ("trust_domain", self.trust_domain()),
            ("policy_reason", self.policy_reason()),
        ] {
            if let Some(value) = value {
                out.field(name, &value);
            }
        }
        if let Some(caller) = self.caller() {
            out.field("caller", caller);
        }
        out.finish_non_exhaustive()
    }
}

/// Writes the text that the caller receives, without details.
impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}

impl std::error::Error for Rejection {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let error = self.details().token_error.as_ref()?;
        Some(error)
    }
}

/// Marks the response of a handler that rejected the request. The layer replaces it with its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HandlerRejection;

impl HandlerRejection {
    /// Marks a response that carries a rejection in its extensions.
    pub(crate) fn mark<B>(rejection: Rejection, response: &mut Response<B>) {
        response.extensions_mut().insert(rejection);
        response.extensions_mut().insert(Self);
    }

    /// Returns the rejection if a handler made this response and no layer has replaced it.
    pub(crate) fn of<B>(response: &Response<B>) -> Option<Rejection> {
        let rejection = response.extensions().get::<Rejection>();
        if response.extensions().get::<Self>().is_some() {
            return rejection.cloned();
        }
        #[cfg(feature = "tonic")]
        if rejection.is_none() {
            // tonic stores the status of a failed call there.
            let status = response.extensions().get::<tonic::Status>()?;
            return std::error::Error::source(status)?.downcast_ref().cloned();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::BundlesUnavailable;
    use crate::server::PolicyFailure;

    #[test]
    fn precomputed_challenges_equal_formatted_ones() {
        use ValidateReason as Of;
        let bundles_unavailable = BundlesUnavailable::Stale;
        let tokens = [
            Of::TooLong,
            Of::Malformed,
            Of::Header,
            Of::Algorithm,
            Of::Claims,
            Of::Expired,
            Of::NotYetValid,
            Of::Audience,
            Of::TrustDomainUnknown,
            Of::KeyUnknown,
            Of::KeyUnfit,
            Of::Signature,
        ];
        let others = [
            RejectionReason::Missing,
            RejectionReason::Malformed,
            RejectionReason::NotAllowed,
            RejectionReason::BundlesUnavailable(bundles_unavailable),
            RejectionReason::PolicyUnavailable(PolicyFailure::Failed),
            RejectionReason::NotWired,
        ];
        let named = Realm::new("spiffe").unwrap();
        assert!(Realm::default().is_default() && !named.is_default());
        for reason in tokens.map(RejectionReason::Token).into_iter().chain(others) {
            let of = |realm: &Realm| Rejection::new(reason, Wire::Http, realm).challenge();
            assert_eq!(of(&Realm::default()), of(&named), "{reason:?}");
        }
    }
}
