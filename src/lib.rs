//! SPIFFE identity for tower services by JWT-SVID.

pub mod bundle;
#[cfg(feature = "client")]
pub mod client;
mod clock;
mod grpc_code;
mod jwt;
pub mod metrics;
#[cfg(feature = "server")]
pub mod server;
pub mod source;
mod spiffe_id;
pub mod svid;
#[cfg(feature = "client")]
pub mod svid_cache;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "workload-api")]
pub mod workload_api;

pub use bundle::{
    BundleAnswer, BundleSource, CannotJudge, FixedBundles, JwtAuthority, JwtBundle, JwtBundleSet,
};
#[cfg(feature = "client")]
pub use client::{AddJwtSvid, AddJwtSvidLayer, Audience, Origin, Plaintext};
pub use clock::{Clock, SystemClock, UnixTime};
pub use grpc_code::GrpcCode;
pub use jwt::{Algorithm, UnknownAlgorithm};
#[cfg(feature = "server")]
pub use server::{
    Allow, AllowCallersLayer, CallerState, EndAtExpiryLayer, GrpcPolicy, Rejection,
    ValidateJwtSvidLayer,
};
#[cfg(any(feature = "server", feature = "client"))]
pub use source::FileBundles;
#[cfg(feature = "workload-api")]
pub use source::{
    JwtSource, JwtSourceBuilder, JwtSourceError, JwtSourceErrorReason, ResourceLimits, SourceState,
    SourceUpdates, WithdrawalPolicy,
};
pub use spiffe_id::{
    MAX_SPIFFE_ID_LEN, MAX_TRUST_DOMAIN_LEN, SpiffeId, SpiffeIdError, SpiffeIdMatcher, TrustDomain,
};
pub use svid::{
    BuildValidatorError, FetchSvid, FetchSvidError, FetchSvidFuture, FetchSvidReason, JwtSvid,
    MAX_TOKEN_LEN, ParseJwtSvidError, SvidRequest, SvidRequestError, ValidateError, ValidateReason,
    Validator, ValidatorBuilder, VerifiedSvid,
};
#[cfg(feature = "client")]
pub use svid_cache::{PinnedSvid, SvidCache, SvidCacheBuilder, TokenError, TokenErrorReason};
