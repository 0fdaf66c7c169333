//! Test doubles for a SPIFFE deployment, for tests of services and of this crate.
//!
//! [`FakeAgent`] is an agent inside the test. It issues tokens and bundles as SPIRE's agent does,
//! and the rest of this crate works with it as with a real agent:
//!
//! ```
//! use axum::{Router, body::Body, http::{Request, StatusCode, header::AUTHORIZATION}, routing::get};
//! use tower::{Layer, ServiceExt};
//! use tower_spiffe::testing::FakeAgent;
//! use tower_spiffe::{Allow, ValidateJwtSvidLayer, Validator, VerifiedSvid};
//!
//! const AUDIENCE: &str = "spiffe://example.org/reports";
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The service under test.
//! let agent = FakeAgent::start("example.org").await?;
//! let validator = Validator::builder(agent.source().await?).audience(AUDIENCE).build()?;
//! let reports = Router::new().route("/", get(async |caller: VerifiedSvid| caller.spiffe_id().to_string()));
//! let app = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org")?).layer(reports);
//!
//! // A caller with a valid token, and one with a token for another service.
//! let call = async |token| {
//!     let request = Request::get("/").header(AUTHORIZATION, token).body(Body::empty()).unwrap();
//!     app.clone().oneshot(request).await.unwrap().status()
//! };
//! let web = "spiffe://example.org/web";
//! assert_eq!(call(agent.bearer(web, AUDIENCE)).await, StatusCode::OK);
//! assert_eq!(call(agent.bearer(web, "spiffe://example.org/other")).await, StatusCode::UNAUTHORIZED);
//! # Ok(())
//! # }
//! ```
//!
//! # Tokens
//!
//! [`FakeAgent::bearer`] and [`token`](FakeAgent::token) return valid ones. Invalid ones come from
//! a [`TokenBuilder`] of [`FakeAgent::issuer`]: expired, forged, without a claim, with an
//! additional header. To use an [`Issuer`] without an agent, put its bundle into
//! [`FixedBundles`](crate::bundle::FixedBundles).
//!
//! # Without a token
//!
//! [`verified_svid`] is a caller for a unit test. A handler takes it as its argument; services
//! inside the layer find it in the extensions, where the layer would put it:
//!
//! ```
//! use axum::{Extension, Router, body::Body, http::Request, routing::get};
//! use tower::ServiceExt;
//! use tower_spiffe::{CallerState, VerifiedSvid, testing};
//!
//! async fn hello(caller: VerifiedSvid) -> String {
//!     format!("hello, {}", caller.spiffe_id())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let web = testing::verified_svid("spiffe://example.org/web");
//! assert_eq!(hello(web.clone()).await, "hello, spiffe://example.org/web");
//!
//! let router = Router::new().route("/", get(hello)).layer(Extension(CallerState::Verified(web.clone())));
//! let response = router.oneshot(Request::get("/").body(Body::empty())?).await?;
//! assert_eq!(response.status(), 200);
//!
//! let mut request = tonic::Request::new("a message");
//! request.extensions_mut().insert(CallerState::Verified(web));
//! assert!(VerifiedSvid::from_request(&request).is_ok());
//! # Ok(())
//! # }
//! ```
//!
//! # Faults
//!
//! | what happens | how |
//! | --- | --- |
//! | every call fails, with any status | [`fail`](FakeAgent::fail)`(`[`Fault::Refuse`]`)` |
//! | one of the three calls fails | [`fail_call`](FakeAgent::fail_call) with any of these |
//! | calls are accepted and get no response | [`Fault::Hang`] |
//! | responses are late | [`Fault::Slow`] |
//! | one message, then the stream ends | [`Fault::HangUp`], [`Fault::HangUpWith`] |
//! | invalid content of messages, no messages, no HTTP/2 | [`Fault::Garbage`], [`Fault::NotProtobuf`], [`Fault::NotHttp2`] |
//! | messages are too large | [`Fault::Oversized`] |
//! | a fetch returns exactly the given tokens | [`Fault::Svids`] |
//! | the agent's server is unavailable | [`Fault::ServerAway`] |
//! | connections are open and dead | [`half_open`](FakeAgent::half_open), [`Fault::HalfOpen`] |
//! | connections are cut | [`cut_connections`](FakeAgent::cut_connections) |
//! | identities and bundles are withdrawn | [`withdraw`](FakeAgent::withdraw), [`restore`](FakeAgent::restore) |
//! | the agent stops, starts again at the same place | [`stop`](FakeAgent::stop), [`start_again`](FakeAgent::start_again), [`restart`](FakeAgent::restart) |
//! | keys rotate: gracefully, at once, on a schedule | [`rotate`](FakeAgent::rotate), [`rotate_now`](FakeAgent::rotate_now), [`rotate_every`](FakeAgent::rotate_every); step by step: [`Issuer::activate`] |
//! | a key is tainted, then revoked | [`taint`](FakeAgent::taint), [`Issuer::revoke`] |
//! | a federated trust domain is added and removed | [`federate`](FakeAgent::federate), [`federate_with`](FakeAgent::federate_with), [`unfederate`](FakeAgent::unfederate) |
//! | one trust domain's keys are invalid | [`federate_raw`](FakeAgent::federate_raw) |
//! | an equal set is sent again in another order | [`send_again`](FakeAgent::send_again) |
//! | the agent issues a new token for each call, or empties its cache | [`cache_tokens`](FakeAgentBuilder::cache_tokens), [`forget_tokens`](FakeAgent::forget_tokens) |
//! | an identity is added and removed | [`register`](FakeAgent::register), [`unregister`](FakeAgent::unregister) |
//! | clocks differ | [`set_clock_offset`](FakeAgent::set_clock_offset) |
//! | a client pings too often | cut off, as by any grpc-go server: [`enforce_keepalive`](FakeAgentBuilder::enforce_keepalive) |
//! | the stream sends given messages | [`replay`](FakeAgent::replay) |
//!
//! [`recover`](FakeAgent::recover) ends every [`Fault`]; [`counts`](FakeAgent::counts) returns what
//! the agent received. Each of these has an example, which shows the effect on a service. Several
//! faults in one test:
//!
//! ```
//! use tower_spiffe::testing::{Fault, FakeAgent};
//! use tower_spiffe::Validator;
//! use tower_spiffe::token::GrpcCode;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let agent = FakeAgent::start("example.org").await?;
//! let source = agent.source().await?;
//! let validator = Validator::builder(source.clone()).audience("reports").build()?;
//! let caller = agent.token("spiffe://example.org/web", "reports");
//!
//! // The agent has stopped: the known keys are still valid.
//! agent.stop().await;
//! assert!(validator.validate(&caller).is_ok());
//! agent.start_again().await?;
//!
//! // It has started again and rejects calls; then it recovers.
//! agent.fail(Fault::Refuse(GrpcCode::ResourceExhausted));
//! assert!(source.fetch_jwt_svid(["db"]).await.is_err());
//! agent.recover();
//! assert!(source.fetch_jwt_svid(["db"]).await.is_ok());
//!
//! // A stolen key is revoked: its tokens are no longer valid.
//! let stolen = agent.issuer().signing_key_id();
//! agent.rotate().await;
//! let mut updates = source.updated();
//! agent.issuer().revoke(&stolen);
//! updates.changed().await?;
//! assert!(validator.validate(&caller).is_err());
//! # Ok(())
//! # }
//! ```
//!
//! # OAuth
//!
//! With feature `oauth`, `FakeAuthorizationServer` is an authorization server inside the test. It
//! verifies client assertions and subject tokens, issues access tokens, and fails on demand.
//!
//! # Time
//!
//! Tests that cover minutes run in tokio's paused time with a [`PausedClock`]. Paused time advances
//! whenever all tasks wait, also for a real socket, so such tests use
//! [`start_in_memory`](FakeAgent::start_in_memory).
//!
//! ```
//! use std::time::Duration;
//! use tower_spiffe::testing::{PausedClock, FakeAgent};
//! use tower_spiffe::Validator;
//! use tower_spiffe::clock::UnixTime;
//! use tower_spiffe::verify::ValidateReason;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000)).shared();
//! let agent = FakeAgent::builder("example.org").clock(clock.clone()).start_in_memory().await?;
//! let validator = Validator::builder(agent.source().await?).audience("reports").clock(clock).build()?;
//!
//! let token = agent.token("spiffe://example.org/web", "reports");
//! assert!(validator.validate(&token).is_ok());
//! tokio::time::sleep(Duration::from_secs(600)).await;
//! assert_eq!(validator.validate(&token).unwrap_err().reason(), ValidateReason::Expired);
//! # Ok(())
//! # }
//! ```

mod agent;
mod assumed;
#[cfg(feature = "oauth")]
mod authorization;
mod clock;
mod error;
#[doc(hidden)]
pub mod internals;
mod issuer;
mod misuse;

pub use agent::{AgentCall, Counts, FakeAgent, FakeAgentBuilder, Fault, RawSvid, Replay};
pub use assumed::{verified_svid, verified_svid_with_claims};
#[cfg(feature = "oauth")]
pub use authorization::{
    AuthorizationCounts, FakeAuthorizationServer, FakeAuthorizationServerBuilder,
    FakeTokenEndpoint, IssuedToken, TokenEndpointFault,
};
pub use clock::PausedClock;
pub use error::Error;
pub use issuer::{Issuer, TokenBuilder};
use misuse::{misuse, must};
