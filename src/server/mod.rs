//! The server layer: verifies the JWT-SVIDs of callers, asks a policy, and stores a
//! [`CallerState`] in the request.
//!
//! ```
//! use http::{Request, Response, StatusCode, header::WWW_AUTHENTICATE};
//! use std::convert::Infallible;
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_spiffe::bundle::{FixedBundles, JwtBundleSet};
//! use tower_spiffe::server::{Allow, ValidateJwtSvidLayer};
//! use tower_spiffe::verify::Validator;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // In production the bundles come from a `JwtSource`.
//! let bundles = FixedBundles::new(JwtBundleSet::default());
//! let validator = Validator::builder(bundles).audience("spiffe://example.org/reports").build()?;
//! let layer = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org")?);
//!
//! let reports = service_fn(|_: Request<String>| async {
//!     Ok::<_, Infallible>(Response::new("the reports".to_owned()))
//! });
//! let response = layer.layer(reports).oneshot(Request::new(String::new())).await?;
//! assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
//! assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer realm=\"spiffe\"");
//! # Ok(())
//! # }
//! ```
//!
//! # Position in the stack
//!
//! - **axum**: put it around the finished router, `layer.layer(router)`, see [axum](#axum). A call
//!   of `Router::layer` after all routes does the same; routes that are added later are not
//!   protected. `Router::route_layer` does not protect the fallback and the fallbacks of nested
//!   routers either, and panics on a router without routes. With feature `axum`, a handler takes a
//!   [`VerifiedSvid`](crate::verify::VerifiedSvid), an `Option` of it or a [`CallerState`].
//! - **tonic**: `Server::builder().layer(layer)`, or tonic's `LayerExt::named_layer` for one
//!   service. [`GrpcPolicy`] has a rule for each method, and its rejections use gRPC; with another
//!   policy, set [`protocol`](ValidateJwtSvidLayer::protocol) to [`Protocol::Grpc`]. With feature
//!   `tonic`, a handler calls `VerifiedSvid::from_request(&request)?`.
//! - **hyper**: put it around the service, and wrap both in hyper-util's `TowerToHyperService`.
//! - **A Unix socket** (axum, tonic or hyper): grpc-java and grpcio send the path of the socket as
//!   `:authority`, and h2 resets such requests before any layer sees them (hyperium/h2#487). Set
//!   the client's authority to a host name: `overrideAuthority("localhost")` in grpc-java, the
//!   channel option `grpc.default_authority` in grpcio.
//! - **A gateway** that forwards requests: see [Gateways](#gateways).
//! - **Response bodies without `Default`**: see [Compile errors](#compile-errors).
//! - **Inside this layer**: [`AllowCallersLayer`] narrows a route to fewer callers, and
//!   [`EndAtExpiryLayer`] ends streams when the token of their caller expires. Neither covers an
//!   upgraded connection (a WebSocket): check
//!   [`expires_at`](crate::verify::VerifiedSvid::expires_at) there.
//! - **Outside this layer**: `CorsLayer`, which responds to preflights. Preflights have no token,
//!   and this layer does not exempt them. If a trace layer is outside too, put
//!   `SetSensitiveRequestHeadersLayer` outside the trace layer, which sees the credential before
//!   this layer marks it sensitive.
//! - **With a limit inside this layer** (`ConcurrencyLimit`): readiness is forwarded to the inner
//!   service, so a rejected request takes a permit too. The permit is released when the called
//!   service value is dropped or called again. Servers on hyper-util drop it when the response is
//!   complete. A limit on axum's routes counts allowed requests only: a `Router` is always ready.
//!
//! # axum
//!
//! Put public routes (probes, `/metrics`) on a router outside of the layer. If routes have
//! different callers, let the layer's policy allow all of them, and put an [`AllowCallersLayer`] on
//! each route that has fewer. If a route also serves callers without a token, use an
//! [`optional`](ValidateJwtSvidLayer::optional) layer with the policy [`Allow::anyone`]. Then a
//! route is open to everyone if it has no [`AllowCallersLayer`] and its handler takes no
//! [`VerifiedSvid`](crate::verify::VerifiedSvid).
//!
//! ```
//! use axum::{Router, http::StatusCode, routing::{get, post}};
//! use tower::Layer;
//! use tower_spiffe::{Allow, ValidateJwtSvidLayer, Validator, VerifiedSvid};
//! # use axum::{body::Body, http::Request};
//! # use tower::ServiceExt;
//!
//! fn app(validator: Validator) -> Result<Router, tower_spiffe::server::PolicyError> {
//!     let layer = ValidateJwtSvidLayer::optional(validator, Allow::anyone());
//!     let web = layer.allow_callers(Allow::path_prefix("spiffe://example.org/web")?);
//!     let ops = layer.allow_callers(Allow::id("spiffe://example.org/ops")?);
//!     let router = Router::new()
//!         .route("/reports", get(reports).layer(web))
//!         .route("/reports/delete", post(async || "deleted").layer(ops))
//!         .route("/greeting", get(greeting));
//!     Ok(Router::new()
//!         .route("/livez", get(StatusCode::OK))
//!         .fallback_service(layer.layer(router)))
//! }
//!
//! async fn reports(caller: VerifiedSvid) -> String {
//!     format!("reports for {}", caller.spiffe_id())
//! }
//!
//! async fn greeting(caller: Option<VerifiedSvid>) -> String {
//!     let name = caller.map_or("stranger".to_owned(), |caller| caller.spiffe_id().to_string());
//!     format!("hello, {name}")
//! }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let agent = tower_spiffe::testing::FakeAgent::start("example.org").await?;
//! # let validator = Validator::builder(agent.source().await?).audience("reports").build()?;
//! # let app = app(validator)?;
//! # for (path, caller, status) in [
//! #     ("/livez", None, 200),
//! #     ("/greeting", None, 200),
//! #     ("/greeting", Some("ops"), 200),
//! #     ("/reports", None, 401),
//! #     ("/reports", Some("ops"), 403),
//! #     ("/reports", Some("web"), 200),
//! # ] {
//! #     let mut request = Request::get(path);
//! #     if let Some(name) = caller {
//! #         let bearer = agent.bearer(&format!("spiffe://example.org/{name}"), "reports");
//! #         request = request.header("authorization", bearer);
//! #     }
//! #     let response = app.clone().oneshot(request.body(Body::empty())?).await?;
//! #     assert_eq!(response.status(), status, "{path} {caller:?}");
//! # }
//! # Ok(())
//! # }
//! ```
//!
//! # Rejection responses
//!
//! | reason | HTTP | challenge | gRPC |
//! | --- | --- | --- | --- |
//! | no bearer token | 401 | `Bearer realm="…"` | 16 |
//! | a header that is not exactly one bearer token | 400 | `error="invalid_request"` | 16 |
//! | a token that does not verify | 401 | `error="invalid_token", error_description="…"` | 16 |
//! | a caller that is not allowed | 403 | `error="insufficient_scope"` | 7 |
//! | tokens cannot be verified now: no bundles, or stale ones | 503, `Retry-After: 5` | none | 14 |
//! | the policy cannot decide now | 503, `Retry-After: 5` | none | 14 |
//!
//! A rejection is a response, never an error of the service. No request can cause a 5xx rejection
//! by its content. The texts are fixed per class. The details are in the [`Rejection`]: `on_reject`
//! gets it, and outer layers find it in the extensions of the response. Rejections use HTTP status
//! codes, unless the server declares that it speaks gRPC: by a [`GrpcPolicy`], or by
//! [`protocol`](ValidateJwtSvidLayer::protocol). The caller cannot choose the protocol.
//!
//! [`uniform_token_errors`](ValidateJwtSvidLayer::uniform_token_errors) sets one text for every
//! invalid token: "the token is invalid".
//!
//! An extractor, or [`VerifiedSvid::from_request`](crate::verify::VerifiedSvid) in tonic, can
//! reject a request too. The layer handles this like its own rejection: it calls its `on_reject`,
//! and counts and logs the rejection. Layers between the handler and this one see the default
//! response. If the layer is missing from the stack, the default response is sent with status 500
//! (gRPC 13), and at most one error line is logged every ten seconds.
//!
//! # Gateways
//!
//! The layer removes a verified token from the request, so that it is not forwarded: the receiver
//! could use it against this service until it expires.
//! [`keep_credential`](ValidateJwtSvidLayer::keep_credential) keeps it; `audit` always does.
//! Credentials of another scheme or in another header stay.
//!
//! - An inner layer that reads the same header still gets the removed token, and verifies it by its
//!   own rules: audience, keys, policy. It never uses the result of the outer layer.
//! - The client layer (`AddJwtSvidLayer`, also `JwtSvidMiddleware` and the interceptor) signs the
//!   forwarded request as this service. If the extensions of the request have a verified
//!   [`CallerState`], it replaces an existing header. It also removes the caller's token from every
//!   header, even for origins without an audience. It cannot do so if headers are copied into a new
//!   request without the extensions, or into a `reqwest::Request`, which has no extensions: do not
//!   copy credentials there.
//! - If the gateway sends the caller's identity to the upstream in a header, it must remove that
//!   header from incoming requests. Otherwise callers choose their own identity.
//!
//! `examples/gateway.rs` shows all of this.
//!
//! # Policies
//!
//! | for | use |
//! | --- | --- |
//! | SPIFFE IDs, trust domains, claims, closures | [`Allow`] |
//! | gRPC services and methods | [`GrpcPolicy`] |
//! | rules in a file that is read again when it changes | `FilePolicy` (feature `policy-file`) |
//! | a policy that is replaced at runtime | [`SwapPolicy`] |
//! | an asynchronous decision, such as by OPA | [`ask`](ValidateJwtSvidLayer::ask), [`AsyncPolicy`] |
//! | a route with fewer callers | [`AllowCallersLayer`] |
//! | denials by a middleware or handler of your own | [`Rejection::denied`] |
//!
//! The guide has the table of all decisions, and common mistakes: [Who may call](crate::guide::who_may_call).
//!
//! # Requests without a token
//!
//! No caller gains by sending no token: a request that the layer allows to anonymous callers is
//! allowed to every verified caller. A request with an invalid token is rejected in each case of
//! this table:
//!
//! | policy | `required` | `optional` |
//! | --- | --- | --- |
//! | [`Allow::anyone`] | 401 | allowed |
//! | a [`public`](GrpcPolicyBuilder::public) method of a [`GrpcPolicy`] | allowed | allowed |
//! | other methods of a [`GrpcPolicy`] | 401 | 401 |
//! | a public rule of a `FilePolicy` | allowed | allowed |
//! | other rules of a `FilePolicy` | 401 | 401 |
//! | any other [`Allow`] | 401 | 401 |
//! | a [`Policy`] of your own | 401, unless [`is_public`](Policy::is_public) | decided by the policy |
//!
//! [`audit`](ValidateJwtSvidLayer::audit) reports what `required` rejects. An [`AllowCallersLayer`]
//! asks its policy about anonymous callers that the outer layer allowed. [`SwapPolicy`] and
//! `Arc<dyn Policy>` decide like the policy inside. With [`Allow::or`] one rule must allow
//! anonymous callers, with [`Allow::and`] both.
//!
//! # Rejections of requests with a body
//!
//! Over HTTP/1.x, a server that rejects a request while the client still sends its body closes the
//! connection, and many clients then report a reset instead of the response. So a rejection first
//! reads the rest of the body and discards it: by default up to 64 KiB within 0.5 seconds, see
//! [`drain_rejected`](ValidateJwtSvidLayer::drain_rejected). The permit of the inner service is
//! released first.
//!
//! - If the end of the body is reached, the connection stays open. So the client receives each
//!   rejection of a request whose body is within the limits.
//! - If it is not reached, the response has `connection: close`. The same applies, without reading
//!   the body, if `Content-Length` is above the limit or the client sent `Expect: 100-continue`.
//! - **Larger bodies**: the response is sent, but a client that does not read while it sends can
//!   still see a reset, often above 100 KB. Such clients should send `Expect: 100-continue`;
//!   otherwise raise the limit.
//! - Over HTTP/2, rejections are sent immediately: no body is read, and `connection` is not set.
//!   The same applies to requests without a body.
//!
//! This covers [`ValidateJwtSvidLayer`], [`AsyncValidateJwtSvidLayer`], [`AllowCallersLayer`], and
//! extractors on the body types of axum and tonic; with other body types an extractor's rejection
//! has `connection: close`. tower-http's `ValidateRequest` cannot read the body. The wait needs a
//! tokio runtime with timers; without one, only the part of the body that has arrived is read. The
//! inner service must be `Clone`, and the request's body an `http_body::Body`.
//!
//! # Compile errors
//!
//! | the compiler reports | fix |
//! | --- | --- |
//! | `DefaultOnReject` cannot make a rejection with a response body of type `…` | the body has no `Default`. If you can make one, set [`on_reject`](ValidateJwtSvidLayer::on_reject). If not (hyper's `Incoming`, the bodies of tower-http's `TraceLayer`, `TimeoutLayer` and others), add tower-http's `MapResponseBodyLayer::new(Body::new)` directly inside this layer, see [Bodies without Default](#bodies-without-default) |
//! | a closure is not a policy, or the types of its arguments are unknown | use [`Allow::when`], which sets the types |
//! | `VerifiedSvid` or [`CallerState`] cannot be an argument of an axum handler (`FromRequestParts`) | feature `axum` |
//! | `from_request` of `VerifiedSvid` is not found | feature `tonic` |
//! | `into_validate_request` is not found | feature `tower-http` |
//! | `testing` or `JwtSource` is not found | features `testing`, `workload-api` |
//! | `Clone` is missing on the inner service, `http_body::Body` on the request's body | see [Rejections of requests with a body](#rejections-of-requests-with-a-body) |
//!
//! ## Bodies without Default
//!
//! ```
//! use axum::{Router, body::Body};
//! use tower::ServiceBuilder;
//! use tower_http::{map_response_body::MapResponseBodyLayer, trace::TraceLayer};
//! use tower_spiffe::{Allow, ValidateJwtSvidLayer, Validator};
//!
//! fn app(validator: Validator) -> Router {
//!     let stack = ServiceBuilder::new()
//!         .layer(ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain()))
//!         .layer(MapResponseBodyLayer::new(Body::new))
//!         .layer(TraceLayer::new_for_http());
//!     Router::new().layer(stack)
//! }
//! # drop(app);
//! ```
//!
//! # Observability
//!
//! - **Spans**: `jwt_svid` with the field `peer.spiffe_id` around each request of a verified
//!   caller. If the outer span has this field, it is set there too.
//! - **Metrics**: [`Admission`](crate::metrics::Admission)s, by
//!   [`metrics`](ValidateJwtSvidLayer::metrics).
//! - **Logs**: at most one line every ten seconds for each class of rejection and caller. If
//!   `DEBUG` is enabled, it has the key ID and the trust domain that the token claims.
//! - **Ended responses** of an [`EndAtExpiryLayer`] are counted, and logged at most once every ten
//!   seconds.
//!
//! Spans, metrics and logs never contain tokens.

mod access;
mod allow;
mod allow_callers;
mod ask;
mod async_layer;
mod async_policy;
#[cfg(feature = "axum")]
mod axum;
mod bearer;
mod caller;
mod claim;
mod deny;
mod drain;
mod end_at_expiry;
#[cfg(feature = "policy-file")]
mod file_policy;
mod future;
mod gate;
mod grpc_policy;
mod grpc_web_frames;
mod held;
mod late;
mod layer;
mod on_reject;
mod original_uri;
mod policy;
mod policy_error;
mod protocol;
mod realm;
mod reason;
mod rejection;
mod service;
mod swap_policy;
mod telemetry;
#[cfg(feature = "tonic")]
mod tonic;
#[cfg(feature = "tower-http")]
mod tower_http;
mod wait_for_key;

pub use allow::Allow;
pub use allow_callers::{AllowCallers, AllowCallersLayer};
pub use async_layer::{AsyncValidateJwtSvid, AsyncValidateJwtSvidLayer};
pub use async_policy::{AskPolicy, AsyncDecision, AsyncPolicy, DecisionFuture, PolicyUnavailable};
pub use caller::CallerState;
pub use claim::{Claim, ClaimValue};
pub use end_at_expiry::{
    EndAtExpiry, EndAtExpiryBody, EndAtExpiryFuture, EndAtExpiryLayer, TokenExpired,
};
#[cfg(feature = "policy-file")]
pub use file_policy::{
    FilePolicy, FilePolicyBuilder, FilePolicyError, FilePolicyErrorReason, FilePolicyState,
    PolicyDocument, PolicyExplanation, RuleExplanation, RuleOutcome,
};
pub use future::ResponseFuture;
pub use grpc_policy::{GrpcPolicy, GrpcPolicyBuilder};
pub use held::AsyncResponseFuture;
pub use layer::ValidateJwtSvidLayer;
pub use on_reject::{DefaultOnReject, OnReject};
pub use original_uri::original_uri;
pub use policy::{Decision, Policy};
pub use policy_error::PolicyError;
pub use protocol::Protocol;
pub use realm::InvalidRealm;
pub use reason::{PolicyFailure, RejectionReason};
pub use rejection::Rejection;
pub use service::ValidateJwtSvid;
pub use swap_policy::SwapPolicy;
#[cfg(feature = "tower-http")]
pub use tower_http::JwtSvidValidateRequest;
pub use wait_for_key::UnknownKeyWait;
