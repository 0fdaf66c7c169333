//! Requests that can carry a token, and responses that can reject it.

use http::header::HeaderName;
use http::{Extensions, HeaderMap, Method, StatusCode};

#[cfg(feature = "reqwest")]
use super::origin::Target;
use super::origin::{Destination, OriginError};

/// A request that can carry a token: `http::Request`, and with feature `reqwest` also
/// `reqwest::Request`. The trait is sealed.
#[diagnostic::on_unimplemented(
    message = "a `{Self}` cannot carry a token",
    label = "expected an `http::Request`, or a `reqwest::Request` (feature `reqwest`)",
    note = "`AddJwtSvid` wraps services of HTTP requests; put it outside the service that connects"
)]
pub trait OutgoingRequest: sealed::Request {}

/// A response that can reject a token: `http::Response`, and with feature `reqwest` also
/// `reqwest::Response`. The trait is sealed.
#[diagnostic::on_unimplemented(
    message = "a `{Self}` is not an HTTP response",
    label = "expected an `http::Response`, or a `reqwest::Response` (feature `reqwest`)"
)]
pub trait IncomingResponse: sealed::Response {}

impl<R: sealed::Request> OutgoingRequest for R {}
impl<R: sealed::Response> IncomingResponse for R {}

pub(crate) mod sealed {
    use super::{Destination, Extensions, HeaderMap, StatusCode};

    pub trait Request {
        #[doc(hidden)]
        fn view(&self) -> View<'_>;
        #[doc(hidden)]
        fn headers_to_change(&mut self) -> &mut HeaderMap;
        /// The destination of the request as a number, if the response can report its own.
        #[doc(hidden)]
        fn place(&self) -> Option<u64> {
            None
        }
    }

    pub trait Response {
        #[doc(hidden)]
        fn status_and_headers(&self) -> (StatusCode, &HeaderMap);
        /// The origin of the response as a number, if it reports one.
        #[doc(hidden)]
        fn place(&self) -> Option<u64> {
            None
        }
    }

    /// The parts of a request that are read.
    #[derive(Debug)]
    pub struct View<'a> {
        pub(crate) destination: Destination<'a>,
        pub(crate) headers: &'a HeaderMap,
        pub(crate) extensions: Option<&'a Extensions>,
    }
}

use sealed::View;

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Whether a service rejected the token that was sent to `place`: 401, or gRPC's UNAUTHENTICATED in
/// the response's headers. If the client followed a redirect, the response may be from another
/// server, which got no token.
pub(crate) fn rejects_token(response: &impl sealed::Response, place: Option<u64>) -> bool {
    let (status, headers) = response.status_and_headers();
    let is_rejection = status == StatusCode::UNAUTHORIZED
        || headers
            .get(&GRPC_STATUS)
            .is_some_and(|status| status.as_bytes() == b"16");
    is_rejection
        && match (response.place(), place) {
            (Some(from), Some(to)) => from == to,
            _ => true,
        }
}

/// A CONNECT request is handled by a proxy and gets no token.
#[inline]
fn unless_tunnel<'a>(method: &Method, destination: Destination<'a>) -> Destination<'a> {
    if method == Method::CONNECT {
        return Destination::Read(Err(OriginError::Malformed));
    }
    destination
}

impl<B> sealed::Request for http::Request<B> {
    fn view(&self) -> View<'_> {
        View {
            destination: unless_tunnel(self.method(), Destination::Uri(self.uri())),
            headers: self.headers(),
            extensions: Some(self.extensions()),
        }
    }

    fn headers_to_change(&mut self) -> &mut HeaderMap {
        self.headers_mut()
    }
}

impl<B> sealed::Response for http::Response<B> {
    fn status_and_headers(&self) -> (StatusCode, &HeaderMap) {
        (self.status(), self.headers())
    }
}

#[cfg(feature = "reqwest")]
impl sealed::Request for reqwest::Request {
    fn view(&self) -> View<'_> {
        View {
            destination: unless_tunnel(self.method(), Destination::Read(target_of(self.url()))),
            headers: self.headers(),
            extensions: None,
        }
    }

    fn headers_to_change(&mut self) -> &mut HeaderMap {
        self.headers_mut()
    }

    fn place(&self) -> Option<u64> {
        place_of(self.url())
    }
}

/// Hashes scheme, host and port, so that the result can be stored without a copy.
#[cfg(feature = "reqwest")]
fn place_of(url: &reqwest::Url) -> Option<u64> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    target_of(url).ok()??.hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(feature = "reqwest")]
fn target_of(url: &reqwest::Url) -> Result<Option<Target<'_>>, OriginError> {
    let https = super::origin::scheme_of(url.scheme())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(OriginError::UserInfo);
    }
    let host = url.host_str().ok_or(OriginError::Host)?;
    let port = url.port_or_known_default().ok_or(OriginError::Port)?;
    Target::new(https, host, port).map(Some)
}

#[cfg(feature = "reqwest")]
impl sealed::Response for reqwest::Response {
    fn status_and_headers(&self) -> (StatusCode, &HeaderMap) {
        (self.status(), self.headers())
    }

    fn place(&self) -> Option<u64> {
        place_of(self.url())
    }
}
