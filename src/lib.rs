//! SPIFFE identity for tower services with JWT-SVIDs: a server layer that verifies callers, a
//! client layer that adds tokens to requests, and one source that keeps keys and tokens up to date
//! for both.
//!
//! A [SPIFFE] issuer such as SPIRE gives each workload a name (`spiffe://example.org/web`) and
//! short-lived tokens that prove this name to one audience. [`JwtSource`] follows the issuer's
//! Workload API: it streams the keys that verify callers, and fetches the tokens of this workload
//! on demand. Two layers use it:
//!
//! - [`ValidateJwtSvidLayer`] verifies the bearer token of each request with the current keys. A
//!   policy ([`Allow`], [`GrpcPolicy`], or your own) decides whether this caller is allowed. The
//!   handler gets a [`VerifiedSvid`]. Rejections use HTTP or gRPC status codes, matching the server.
//! - [`AddJwtSvidLayer`] adds a token to each request whose origin its [`Audience`] covers, and to no
//!   other request. Tokens are cached and refreshed before they expire.
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
//! // In production: `JwtSource::new().await?`, which follows the agent at SPIFFE_ENDPOINT_SOCKET.
//! let agent = FakeAgent::start("example.org").await?;
//! let source = agent.source().await?;
//!
//! // A service that allows callers of its own trust domain.
//! let reports = service_fn(|request: Request<String>| async move {
//!     let caller = CallerState::from_extensions(request.extensions()).and_then(CallerState::verified);
//!     let name = caller.map_or("anonymous", |svid| svid.spiffe_id().as_str());
//!     Ok::<_, Infallible>(Response::new(format!("hello, {name}")))
//! });
//! let validator = Validator::builder(source.clone()).audience("reports").build()?;
//! let server = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org")?)
//!     .layer(reports);
//!
//! // A client that signs its requests to that service.
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
//! # Overview
//!
//! | for | see |
//! | --- | --- |
//! | the source: options, state and errors | [`source`] |
//! | a server: modes, policies, rejections, streams, gRPC | [`server`] |
//! | a client: audiences, origins, frameworks | [`client`] |
//! | this workload's tokens: requests, the cache, refresh | [`token`] |
//! | verifying tokens outside HTTP | [`verify`] |
//! | bundles without an agent | [`bundle`], [`FileBundles`], and `source::https` (feature `https-bundles`); [the guide](guide::without_an_agent) |
//! | tokens in files | [`token_file`] |
//! | rules for callers in a file | `server::FilePolicy` (feature `policy-file`); [the guide](guide::who_may_call) |
//! | access tokens of an OAuth server | `oauth` (feature `oauth`); [the guide](guide::oauth) |
//! | testing your own service | [`testing`] |
//! | metrics, spans and log events | [`metrics`] |
//! | pages by task: servers, clients, operating, troubleshooting and more | [`guide`] |
//!
//! The crate root has the most common types. Every other type is in one module. Errors and options
//! are in the module of the type that they belong to.
//!
//! # Features
//!
//! `workload-api`, `server` and `client` are on by default. All features are additive.
//!
//! | feature | adds |
//! | --- | --- |
//! | `workload-api` | [`JwtSource`] and the Workload API client |
//! | `server` | [`server`] |
//! | `client` | [`client`], the token cache and [`token_file`] |
//! | `axum`, `tonic`, `tower-http`, `reqwest`, `reqwest-middleware` | adapters of the layers to these crates |
//! | `policy-file` | `server::FilePolicy`: rules in a TOML file that is read again when it changes |
//! | `https-bundles` | bundles over https |
//! | `oauth` | access tokens from an OAuth authorization server |
//! | `metrics` | a recorder for the `metrics` crate |
//! | `testing` | the embedded agent and other test doubles |
//!
//! # Threats
//!
//! The server layer rejects forged, altered and expired tokens, and tokens issued for another
//! audience. It also prevents algorithm confusion, key confusion and the use of one trust domain's
//! keys for another, and rejects requests with two tokens. Rejecting a token is cheap, even a long
//! one. A bearer token that leaks can be replayed to its audience until it expires: keep lifetimes
//! short, use one audience per service, and send tokens over TLS only (JWT-SVID section 7). Tokens
//! never appear in logs, spans, `Debug`, `Display`, errors or metrics. The [threat
//! model](guide::threat_model) has the details.

// docs.rs shows which feature each item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(
    missing_debug_implementations,
    clippy::exhaustive_enums,
    clippy::exhaustive_structs
)]

pub mod bundle;
#[cfg(any(feature = "server", feature = "client"))]
mod cause;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
mod grpc_code;
#[cfg(any(doc, doctest))]
pub mod guide;
pub mod identity;
mod jwt;
pub mod metrics;
#[cfg(feature = "oauth")]
pub mod oauth;
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

#[doc(inline)]
pub use bundle::BundleSource;
#[cfg(feature = "client")]
#[doc(inline)]
pub use client::{AddJwtSvid, AddJwtSvidLayer, Audience};
#[doc(inline)]
pub use identity::{SpiffeId, TrustDomain};
#[cfg(feature = "server")]
#[doc(inline)]
pub use server::{
    Allow, AllowCallersLayer, CallerState, EndAtExpiryLayer, GrpcPolicy, Policy, Rejection,
    ValidateJwtSvidLayer,
};
#[cfg(feature = "https-bundles")]
#[doc(inline)]
pub use source::HttpsBundles;
#[cfg(feature = "workload-api")]
#[doc(inline)]
pub use source::JwtSource;
#[cfg(any(feature = "server", feature = "client"))]
#[doc(inline)]
pub use source::{FileBundles, MemoryBundles, MergedBundles};
#[doc(inline)]
pub use token::JwtSvid;
#[cfg(feature = "client")]
#[doc(inline)]
pub use token::SvidCache;
#[doc(inline)]
pub use verify::{Validator, VerifiedSvid};

/// The README's code, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
