//! The URI before a router removed a prefix.

use http::Uri;
use http::request::Parts;

/// Returns the URI that the client requested, for policies inside axum's `Router::nest`.
///
/// A nested router sees the path without the prefix it is nested at, and so does a policy of a layer
/// inside: in a router nested at `/v1`, the path of `/v1/reports` is `/reports`. axum keeps the whole
/// URI in the extensions of the request, which callers cannot write. This function returns it, or
/// `parts.uri` if no axum router is outside. It needs the feature `axum`; without it, it returns
/// `parts.uri`.
///
/// A rule on `parts.uri` that is used in two nested routers applies to both prefixes. Use this
/// function if the prefix matters. A [`GrpcPolicy`](super::GrpcPolicy) with
/// [`prefix`](super::GrpcPolicyBuilder::prefix) uses it too.
///
/// ```
/// use tower_spiffe::Allow;
/// use tower_spiffe::server::original_uri;
///
/// let readers = Allow::when(|_, parts| original_uri(parts).path().starts_with("/v1/public/"));
/// # drop(readers);
/// ```
pub fn original_uri(parts: &Parts) -> &Uri {
    #[cfg(feature = "axum")]
    if let Some(axum::extract::OriginalUri(uri)) = parts.extensions.get() {
        return uri;
    }
    &parts.uri
}
