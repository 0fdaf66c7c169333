//! The caller, as the layer stores it in the request.

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderName};

use super::protocol::Wire;
use super::realm::Realm;
use super::reason::RejectionReason;
use super::rejection::Rejection;
use crate::verify::VerifiedSvid;

/// The caller of a request. A [`ValidateJwtSvidLayer`](super::ValidateJwtSvidLayer) stores it in the
/// extensions of each request that passes, and replaces an existing one.
#[derive(Debug, Clone)]
#[non_exhaustive]
#[doc(alias = "extractor")]
pub enum CallerState {
    /// The caller with this identity: its token is valid, and the policy allows it.
    Verified(VerifiedSvid),
    /// A caller without a token: the layer is `optional`, or the request is public.
    Anonymous,
    /// In `audit` only: another mode would reject this request.
    AuditFailed(Rejection),
}

impl CallerState {
    /// Returns the state in these extensions; `None` if there is no outer layer.
    ///
    /// ```
    /// use tower_spiffe::server::CallerState;
    ///
    /// let request = http::Request::new(());
    /// assert!(CallerState::from_extensions(request.extensions()).is_none());
    /// ```
    pub fn from_extensions(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// Returns the verified caller.
    pub fn verified(&self) -> Option<&VerifiedSvid> {
        match self {
            Self::Verified(caller) => Some(caller),
            Self::Anonymous | Self::AuditFailed(_) => None,
        }
    }
}

/// The header that the token of a verified caller was read from. Absent for `authorization`, which
/// saves an allocation.
#[derive(Clone)]
pub(crate) struct TakenFrom(pub(crate) HeaderName);

/// The token of the caller that an outer layer verified, read from this header.
pub(crate) fn outer_token<'a>(extensions: &'a Extensions, header: &HeaderName) -> Option<&'a str> {
    let caller = CallerState::from_extensions(extensions)?.verified()?;
    let read_from = match extensions.get() {
        Some(TakenFrom(name)) => name,
        None => &AUTHORIZATION,
    };
    let token = caller.token();
    (read_from == header && !token.is_empty()).then_some(token)
}

/// The protocol and realm of the outer layer's rejections, for extractors that reject. It is stored
/// only together with a [`CallerState`] without a verified caller.
#[cfg(feature = "axum")]
#[derive(Debug, Clone, Default)]
pub(crate) struct Answers {
    pub(crate) protocol: super::protocol::Protocol,
    pub(crate) realm: Realm,
}

#[cfg(feature = "axum")]
impl Answers {
    /// Returns those of the outer layer, or the defaults if it is missing.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }
}

/// Why there is no verified caller.
pub(crate) enum NoCaller {
    NotWired,
    Anonymous,
    AuditFailed(Rejection),
}

/// Returns the verified caller in these extensions.
pub(crate) fn verified(extensions: &Extensions) -> Result<&VerifiedSvid, NoCaller> {
    match CallerState::from_extensions(extensions) {
        Some(CallerState::Verified(caller)) => Ok(caller),
        Some(CallerState::Anonymous) => Err(NoCaller::Anonymous),
        Some(CallerState::AuditFailed(rejection)) => Err(NoCaller::AuditFailed(rejection.clone())),
        None => Err(NoCaller::NotWired),
    }
}

impl NoCaller {
    /// Returns the rejection for a handler. If the layer is missing, logs that here, because no
    /// layer can.
    pub(crate) fn into_handler_rejection(self, wire: Wire, realm: &Realm) -> Rejection {
        let is_wired = !matches!(self, Self::NotWired);
        let rejection = self.into_rejection(wire, realm);
        if !is_wired {
            super::telemetry::Telemetry::not_wired(&rejection);
        }
        rejection
    }

    /// Returns the rejection if a verified caller is required: 401, also for a denial that `audit`
    /// did not enforce, or 500 if the layer is missing.
    pub(crate) fn into_rejection(self, wire: Wire, realm: &Realm) -> Rejection {
        match self {
            Self::NotWired => Rejection::new(RejectionReason::NotWired, wire, realm),
            Self::AuditFailed(rejection) if rejection.is_about_the_token() => rejection,
            Self::Anonymous | Self::AuditFailed(_) => {
                Rejection::new(RejectionReason::Missing, wire, realm)
            }
        }
    }
}
