//! SPIFFE identity for tower services by JWT-SVID: a server layer that admits callers, a client layer
//! that signs requests, and one live source behind both.
//!
//! A [SPIFFE] issuer such as SPIRE gives each workload a name (`spiffe://example.org/web`) and, on
//! demand, short-lived tokens that prove it to one audience. [`JwtSource`] follows the issuer's
//! Workload API: the keys to check others' tokens by stream, tokens of our own on demand. On it
//! stand two layers:
//!
//! - [`ValidateJwtSvidLayer`] checks the bearer token of each request against the keys as they are
//!   now, asks a policy ([`Allow`], [`GrpcPolicy`], or yours) whether this caller may call, and hands
//!   the handler a [`VerifiedSvid`]. What it refuses, it refuses in the protocol's own words.
//! - [`AddJwtSvidLayer`] puts a token for the right [`Audience`] on each request to the origins that
//!   it is bound to: from a cache, refreshed before it must be, never to another host.
//!
//! [SPIFFE]: https://spiffe.io
//!
//! ```
//! use http::{Request, Response, StatusCode};
//! use std::convert::Infallible;
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_spiffe::testing::FakeAgent;
//! use tower_spiffe::{AddJwtSvidLayer, Allow, Audience, CallerState, ValidateJwtSvidLayer, Validator};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! // In earnest: `JwtSource::new().await?`, which follows the agent at SPIFFE_ENDPOINT_SOCKET.
//! let agent = FakeAgent::start("example.org").await?;
//! let source = agent.source().await?;
//!
//! // A service that admits callers of its own trust domain …
//! let reports = service_fn(|request: Request<String>| async move {
//!     let caller = CallerState::from_extensions(request.extensions()).and_then(CallerState::verified);
//!     let name = caller.map_or("nobody", |svid| svid.spiffe_id().as_str());
//!     Ok::<_, Infallible>(Response::new(format!("hello, {name}")))
//! });
//! let validator = Validator::builder(source.clone()).audience("reports").build()?;
//! let server = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org")?)
//!     .layer(reports);
//!
//! // … and a client that signs its requests to it.
//! let audience = Audience::fixed("reports").for_origin("https://reports:8443")?;
//! let client = AddJwtSvidLayer::new(source, audience).layer(server.clone());
//!
//! let request = || Request::get("https://reports:8443/").body(String::new());
//! let response = client.oneshot(request()?).await?;
//! assert!(response.into_body().starts_with("hello, spiffe://example.org/"));
//!
//! let response = server.oneshot(request()?).await?;
//! assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
//! # Ok(())
//! # }
//! ```
//!
//! # Where to look
//!
//! | for | see |
//! | --- | --- |
//! | the live source, its options, state and errors | [`source`] |
//! | a server: modes, policies, refusals, streams, gRPC | [`server`] |
//! | a client: audiences, origins, frameworks | [`client`] |
//! | our own tokens: requests, the cache, refresh | [`token`] |
//! | verifying tokens outside HTTP | [`verify`] |
//! | bundles without an agent | [`bundle`], [`FileBundles`], and `source::https` with its feature |
//! | tokens in files | [`token_file`] |
//! | testing your own service | [`testing`] |
//! | what is counted and logged | [`metrics`] |
//! | Kubernetes, probes, what an answer means and where to look | the README, *In service* |
//!
//! The root has the types that nearly every user names. Every other name is in the module that it
//! belongs to, once: an error or an option is beside the type that it is of.
//!
//! # Features
//!
//! `workload-api`, `server` and `client` are on by default. `axum`, `tonic`, `tower-http`, `reqwest`
//! and `reqwest-middleware` fit the layers to these; `https-bundles` has bundles over https; `metrics` has a recorder for the crate
//! of that name; `testing` has the embedded Workload API. All are additive.
//!
//! # Threats
//!
//! What the server layer stands against: forged, altered, expired and re-aimed tokens; algorithm and
//! key confusion; a key of one trust domain used for another; two tokens in one request; tokens that
//! cost more to refuse than to send. A bearer token that leaks can be replayed to its audience until
//! it expires: keep lifetimes short, use one audience per service, and send tokens over TLS only
//! (JWT-SVID section 7). Tokens never appear in logs, spans, `Debug`, `Display`, errors or metrics.

// docs.rs shows which feature each item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod bundle;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
mod grpc_code;
pub mod identity;
mod jwt;
pub mod metrics;
mod presentable;
#[cfg(any(feature = "server", feature = "client"))]
mod runtime;
#[cfg(feature = "server")]
pub mod server;
pub mod source;
#[cfg(feature = "testing")]
pub mod testing;
pub mod token;
#[cfg(feature = "client")]
pub mod token_file;
pub mod verify;
#[cfg(feature = "workload-api")]
pub mod workload_api;

pub use bundle::BundleSource;
#[cfg(feature = "client")]
pub use client::{AddJwtSvid, AddJwtSvidLayer, Audience};
pub use identity::{SpiffeId, TrustDomain};
#[cfg(feature = "server")]
pub use server::{
    Allow, AllowCallersLayer, CallerState, EndAtExpiryLayer, GrpcPolicy, Policy, Rejection,
    ValidateJwtSvidLayer,
};
#[cfg(any(feature = "server", feature = "client"))]
pub use source::{MemoryBundles, MergedBundles};

#[cfg(any(feature = "server", feature = "client"))]
pub use source::FileBundles;
#[cfg(feature = "https-bundles")]
pub use source::HttpsBundles;
#[cfg(feature = "workload-api")]
pub use source::JwtSource;
pub use token::JwtSvid;
#[cfg(feature = "client")]
pub use token::SvidCache;
pub use verify::{Validator, VerifiedSvid};

/// The README's code, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
