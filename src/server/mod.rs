//! The layer that admits callers.
//!
//! ```
//! use http::{Request, Response, StatusCode, header::WWW_AUTHENTICATE};
//! use std::convert::Infallible;
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_spiffe::bundle::{FixedBundles, JwtBundleSet};
//! use tower_spiffe::server::{Allow, ValidateJwtSvidLayer};
//! use tower_spiffe::svid::Validator;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // In earnest the bundles come from a `JwtSource`.
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

mod allow_callers;
#[cfg(feature = "axum")]
mod axum;
mod bearer;
mod caller;
mod end_at_expiry;
mod future;
mod gate;
mod grpc_policy;
mod layer;
mod policy;
mod policy_error;
mod protocol;
mod realm;
mod rejection;
mod service;
mod telemetry;
#[cfg(feature = "tonic")]
mod tonic;
#[cfg(feature = "tower-http")]
mod tower_http;
mod wait;

pub use allow_callers::{AllowCallers, AllowCallersLayer};
pub use caller::CallerState;
pub use end_at_expiry::{
    EndAtExpiry, EndAtExpiryBody, EndAtExpiryFuture, EndAtExpiryLayer, TokenExpired,
};
pub use future::ResponseFuture;
pub use grpc_policy::{GrpcPolicy, GrpcPolicyBuilder};
pub use layer::ValidateJwtSvidLayer;
pub use policy::{Allow, Policy, SwapPolicy};
pub use policy_error::PolicyError;
pub use protocol::Protocol;
pub use realm::InvalidRealm;
pub use rejection::{DefaultOnReject, OnReject, Rejection, RejectionReason};
pub use service::ValidateJwtSvid;
#[cfg(feature = "tower-http")]
pub use tower_http::JwtSvidValidateRequest;
pub use wait::{UnknownKeyWait, WaitForKey, WaitForKeyLayer, WaitFuture};
