//! The verified caller of a request that is forwarded: its token must not be sent on.
//!
//! The only place where the client knows of the server: the server layer leaves the caller in the
//! extensions of a request as its own public type.

use http::Extensions;

use crate::verify::VerifiedSvid;

/// The verified caller in these extensions.
#[cfg(feature = "server")]
#[inline]
pub(super) fn verified(extensions: &Extensions) -> Option<&VerifiedSvid> {
    crate::server::CallerState::from_extensions(extensions)?.verified()
}

/// Whether the request came through the server layer with a credential, which in audit mode may be
/// an invalid or a denied one.
#[cfg(feature = "server")]
#[inline]
pub(super) fn is_forwarded(extensions: &Extensions) -> bool {
    use crate::server::CallerState;
    CallerState::from_extensions(extensions)
        .is_some_and(|state| !matches!(state, CallerState::Anonymous))
}

#[cfg(not(feature = "server"))]
#[inline]
pub(super) fn is_forwarded(_: &Extensions) -> bool {
    false
}

/// Without a server, no request has a caller.
#[cfg(not(feature = "server"))]
#[inline]
pub(super) fn verified(_: &Extensions) -> Option<&VerifiedSvid> {
    None
}
