//! The client side: adds a fresh token to each request, for its origin.
//!
//! [`AddJwtSvidLayer`] wraps any client that is a tower service of `http::Request` or
//! `reqwest::Request`. It finds the [`Audience`] for the origin of a request, takes the token for
//! it from the [cache](crate::token), and puts it into `authorization`.
//!
//! ```
//! use http::{Request, Response, header::AUTHORIZATION};
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_spiffe::client::{AddJwtSvidLayer, Audience};
//! # use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
//! # use tower_spiffe::token::{FetchSvid, FetchSvidFuture, JwtSvid, SvidRequest};
//! # use tower_spiffe::SvidCache;
//! # use tower_spiffe::clock::{Clock, SystemClock};
//! # struct LocalIssuer;
//! # impl FetchSvid for LocalIssuer {
//! #     fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
//! #         let exp = SystemClock::shared().now().secs() + 300;
//! #         let claims = format!(r#"{{"sub":"spiffe://x/web","aud":["{}"],"exp":{exp}}}"#, request.audiences().next().unwrap_or_default());
//! #         let token = format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"1"}"#), URL_SAFE_NO_PAD.encode(claims));
//! #         Box::pin(async move { Ok(JwtSvid::parse_unverified(&token, "").unwrap()) })
//! #     }
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! # let source = SvidCache::new(LocalIssuer);
//! let origins = ["https://reports:8443", "http://reports:8080"];
//! let audience = Audience::fixed("spiffe://x/reports").for_origins(origins)?;
//!
//! // `source` is your `JwtSource`; this client returns whether it got a token.
//! let client = AddJwtSvidLayer::new(source, audience).layer(service_fn(
//!     |request: Request<String>| async move {
//!         let signed = request.headers().contains_key(AUTHORIZATION);
//!         Ok::<_, std::io::Error>(Response::new(signed))
//!     },
//! ));
//!
//! let reports = Request::get("https://reports:8443/today").body(String::new())?;
//! assert!(client.clone().oneshot(reports).await?.into_body());
//!
//! // Requests to other origins are sent without a token.
//! let other = Request::get("https://elsewhere/today").body(String::new())?;
//! assert!(!client.clone().oneshot(other).await?.into_body());
//!
//! // A request in plaintext to an origin of the audience fails: it is not sent without a token.
//! let clear = Request::get("http://reports:8080/today").body(String::new())?;
//! assert!(client.oneshot(clear).await.is_err());
//! # Ok(())
//! # }
//! ```
//!
//! # A service that also calls others
//!
//! A service that accepts callers and makes its own calls needs one `JwtSource` only. Clones of it
//! are the same source: one stream of bundles, one cache of tokens.
//!
//! ```
//! use http::{Request, Response};
//! use std::convert::Infallible;
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_spiffe::client::{AddJwtSvid, Audience};
//! use tower_spiffe::{Allow, ValidateJwtSvidLayer, Validator};
//! # use tower_spiffe::testing::FakeAgent;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! # let agent = FakeAgent::start("example.org").await?;
//! # let source = agent.source().await?;
//! # let ledger = service_fn(async |request: Request<String>| {
//! #     let signed = request.headers().contains_key("authorization");
//! #     Ok::<_, Infallible>(Response::new(if signed { "a balance" } else { "nothing" }))
//! # });
//! // The client that calls the ledger takes two lines.
//! let audience = Audience::fixed("spiffe://example.org/ledger").for_origin("https://ledger")?;
//! let client = AddJwtSvid::new(ledger, source.clone(), audience);
//!
//! // It verifies its callers with the same source.
//! let validator = Validator::builder(source).audience("spiffe://example.org/reports").build()?;
//! let reports = service_fn(move |request: Request<String>| {
//!     let onward = Request::get("https://ledger/balance").body(request.into_body());
//!     let client = client.clone();
//!     async move { client.oneshot(onward?).await }
//! });
//! let policy = Allow::trust_domain("example.org")?;
//! let reports = ValidateJwtSvidLayer::required(validator, policy).layer(reports);
//!
//! let bearer = agent.bearer("spiffe://example.org/web", "spiffe://example.org/reports");
//! let request = Request::get("/").header("authorization", bearer).body(String::new())?;
//! assert_eq!(reports.oneshot(request).await?.into_body(), "a balance");
//! # Ok(())
//! # }
//! ```
//!
//! # Clients
//!
//! | client | how | example |
//! | --- | --- | --- |
//! | hyper-util's legacy client, or any tower service | [`AddJwtSvidLayer`] | `examples/client_hyper.rs` |
//! | a tonic `Channel`: plain, TLS, Unix socket, balanced | [`AddJwtSvid`] around it, with [`assume_origin`](UnboundAudience::assume_origin) | `examples/client_tonic.rs` |
//! | a tonic `Channel`, if a type must stay an interceptor | `JwtSvidInterceptor` (feature `tonic`) | `examples/client_tonic.rs` |
//! | `reqwest::Client` as a tower service | [`AddJwtSvid`] around it (feature `reqwest`) | `examples/client_reqwest.rs` |
//! | `reqwest_middleware` | `JwtSvidMiddleware` (feature `reqwest-middleware`) | `examples/client_reqwest_middleware.rs` |
//! | any of these with timeouts, retries, limits, buffers | see [Position in the stack](#position-in-the-stack) | `examples/client_stack.rs` |
//! | anything else | [`SvidCache::header`](crate::SvidCache::header) | |
//!
//! A token source of your own implements [`FetchSvid`](crate::token::FetchSvid): one call for one
//! [`SvidRequest`](crate::token::SvidRequest), with a
//! [`FetchSvidError`](crate::token::FetchSvidError) if it fails.
//! [`SvidCache::new`](crate::SvidCache::new) makes a cache of it, which every client here accepts.
//!
//! # Origins
//!
//! The origin of a request is the scheme, host and port of its URI. If the URI has no authority, it
//! is the origin given to [`assume_origin`](UnboundAudience::assume_origin).
//!
//! Servers and proxies also route by the `Host` header. If a request already has one, hyper-util,
//! reqwest and tonic send it unchanged. So every `Host` header of a request must name the host and
//! port of its origin: case is ignored, and the default port of the scheme may be left out. If one
//! differs, the request matches no origin: it is sent without a token, or fails with
//! [`ForeignOrigin`](crate::token::TokenErrorReason::ForeignOrigin) if the layer is
//! [`strict`](AddJwtSvidLayer::strict). A debug line names both. The same applies with
//! [`any_origin`](UnboundAudience::any_origin). A proxy that forwards the headers of its caller
//! must remove `Host` before this layer. `X-Forwarded-Host` and `Forwarded` are not read.
//!
//! An absolute host name, as in `https://reports.svc.cluster.local.`, is a different origin:
//! `https://reports.svc.cluster.local` does not match it. If you use both, list both.
//!
//! This layer cannot see:
//! - headers that the client adds itself: do not set `Host` by
//!   `reqwest::ClientBuilder::default_headers`;
//! - inner layers and middleware that change the URI or `Host`: put them outside;
//! - where the connection finally goes: DNS, proxies, `reqwest::ClientBuilder::resolve`, a custom
//!   connector, `tonic::transport::Endpoint::origin`.
//!
//! # Position in the stack
//!
//! From the outside in:
//!
//! 1. **Retries** and their budget go outside: each attempt requests the token again, so the
//!    attempt after a 401 gets the new one.
//! 2. **Timeouts** go outside, so that they include the wait for a token. The deadline of a gRPC
//!    call always includes it, see [Deadlines](#deadlines).
//! 3. **Redirects** (`tower_http::follow_redirect`) go outside: then each hop passes this layer,
//!    and gets the token for its own origin, or none. If the inner client follows redirects itself
//!    (`reqwest` does), only the first hop passes this layer, and the client must remove
//!    `authorization` for another origin. `reqwest` does so if scheme, host or port differ.
//!    `tower_http` does so with its default policy only:
//!    `FollowRedirectLayer::with_policy(Limited::new(n))` forwards it. With
//!    [`header`](AddJwtSvidLayer::header) the client must not follow redirects at all.
//! 4. **This layer.**
//! 5. **Buffers, load balancing, concurrency and rate limits** go inside or outside: while a
//!    request waits for its token, it holds no permit of the inner service. Tokens can expire in
//!    the queue of an inner buffer: keep the queue short, or put the buffer outside.
//! 6. **Tracing** may go anywhere: the header is marked sensitive, so that it is not shown.
//!    **Compression** of bodies does not affect it; HTTP/2 keeps sensitive headers out of its
//!    compression tables.
//! 7. **Proxies.** A request to `https` goes through a proxy's tunnel, and the proxy does not see
//!    the token. A request to `http` goes to the proxy in plaintext with its token: it fails unless
//!    [`allow_plaintext`](AddJwtSvidLayer::allow_plaintext) permits it.
//!
//! # Deadlines
//!
//! A request is gRPC if its content type begins with `application/grpc`. If it has a valid
//! `grpc-timeout`, it waits for its token no longer than that, and then fails with
//! [`DeadlineExceeded`](crate::token::TokenErrorReason::DeadlineExceeded), in gRPC
//! `DEADLINE_EXCEEDED`. Like all requests, it waits at most 5 s, and then fails with
//! [`Timeout`](crate::token::TokenErrorReason::Timeout), in gRPC `UNAVAILABLE`. After a wait,
//! `grpc-timeout` is set to the time that is left, and a call with no time left is not sent. While
//! an older token can still be sent, the wait for the next one takes at most half of the time that
//! is left. Requests whose token is in the cache are unaffected. An invalid `grpc-timeout` is
//! ignored. `JwtSvidInterceptor` never waits. Timeouts of the inner service, such as
//! `tonic::transport::Endpoint::timeout`, begin after the wait.
//!
//! # Errors
//!
//! The error of the service is a [`BoxError`]: errors of the inner service are forwarded unchanged.
//! The errors of this layer are [`TokenError`](crate::token::TokenError)s;
//! [`TokenError::find`](crate::token::TokenError::find) finds one in the error of a client. A
//! request that should carry a token is never sent without one. For a gRPC peer,
//! [`TokenError`](crate::token::TokenError#as-a-grpc-status) has a code and a fixed text; the
//! details stay in this process.

mod audience;
mod caller;
mod config;
mod deadline;
mod future;
#[cfg(feature = "tonic")]
mod interceptor;
mod options;
mod origin;
mod request;
#[cfg(feature = "reqwest-middleware")]
mod reqwest_middleware;
mod service;

pub use audience::{Audience, AudienceError, UnboundAudience};
pub use future::ResponseFuture;
#[cfg(feature = "tonic")]
pub use interceptor::JwtSvidInterceptor;
pub use options::{OnExisting, Plaintext};
pub use origin::{Origin, OriginError};
pub use request::{IncomingResponse, OutgoingRequest};
#[cfg(feature = "reqwest-middleware")]
pub use reqwest_middleware::JwtSvidMiddleware;
pub use service::{AddJwtSvid, AddJwtSvidLayer};

/// Any error, as in tower's middleware.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
