//! The options that the layer, the service, the middleware and the interceptor share.

/// What to do if a request already has the header and its origin may get a token. Requests to other
/// origins are sent unchanged, unless the layer is strict.
///
/// The token of a verified caller is never forwarded: if the extensions of a request have a
/// verified
/// [`CallerState`](https://docs.rs/tower-spiffe/latest/tower_spiffe/server/enum.CallerState.html),
/// `Keep` acts as `Replace`, and the caller's token is removed from all headers of the request, for
/// every origin. After a layer in `audit` mode, `Keep` acts as `Replace` for invalid and denied
/// tokens too. `reqwest::Request` has no extensions, so this does not apply to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnExisting {
    /// Keep the header: the request is sent without a token of this workload.
    #[default]
    Keep,
    /// Replace it with a token of this workload.
    Replace,
    /// Fail the request.
    Error,
}

/// Where a token may be sent in plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Plaintext {
    /// To this machine: 127.0.0.0/8, `::1` and `localhost`, in exactly these forms.
    ///
    /// A client with a proxy configured (by `HTTP_PROXY` too) may send even those requests to the
    /// proxy.
    Loopback,
    /// Anywhere, because the client connects to a Unix socket. The layer cannot check that.
    UnixSocket,
    /// Anywhere: everyone on the network path can read and use the token.
    Any,
}

/// The options, the same on the layer, the service, the middleware and the interceptor.
macro_rules! options {
    ($type:ty $(, $generic:ident)?) => {
        impl $(<$generic>)? $type {
            /// Puts the token into this header instead of `authorization`, for requests whose
            /// `authorization` has another token, such as the end user's. The server must read the
            /// same header. A 401 may be about the other token; the token of this layer is
            /// refreshed anyway, at most once per 10 s.
            ///
            /// **Redirects**: a client that follows them removes `authorization` for another host,
            /// but not this header. Disable redirects in the inner client, or put the layer that
            /// follows them outside.
            #[must_use]
            pub fn header(mut self, name: http::header::HeaderName) -> Self {
                Arc::make_mut(&mut self.config).header = name;
                self
            }

            /// Sets what to do with a request that already has the header:
            /// [`OnExisting::Keep`](crate::client::OnExisting::Keep) by default.
            #[must_use]
            pub fn on_existing(mut self, on_existing: $crate::client::OnExisting) -> Self {
                Arc::make_mut(&mut self.config).on_existing = on_existing;
                self
            }

            /// Fails requests that match no origin of the audience with
            /// [`ForeignOrigin`](crate::token::TokenErrorReason::ForeignOrigin), with or without
            /// the header: requests to other origins, and requests with a `Host` header that
            /// differs from their origin. By default they are sent without a token and counted.
            #[must_use]
            pub fn strict(mut self) -> Self {
                Arc::make_mut(&mut self.config).strict = true;
                self
            }

            /// Allows tokens in plaintext to these destinations. By default tokens are sent over
            /// https only: a request to an `http://` origin that the audience covers fails with
            /// [`Plaintext`](crate::token::TokenErrorReason::Plaintext), and is not sent without a
            /// token.
            #[must_use]
            pub fn allow_plaintext(mut self, plaintext: $crate::client::Plaintext) -> Self {
                Arc::make_mut(&mut self.config).plaintext = Some(plaintext);
                self
            }
        }
    };
}
pub(super) use options;
