//! The verified caller of a forwarded request. Its token must not be forwarded.
//!
//! The only code of the client that depends on the server: the server layer stores the caller in
//! the extensions of a request as its public type.

use http::Extensions;

use crate::verify::VerifiedSvid;

/// The verified caller in these extensions.
#[cfg(feature = "server")]
#[inline]
pub(super) fn verified(extensions: &Extensions) -> Option<&VerifiedSvid> {
    crate::server::CallerState::from_extensions(extensions)?.verified()
}

/// Whether the request passed the server layer with a credential. In audit mode the credential may
/// be invalid or denied.
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
