//! SPIFFE identity for tower services by JWT-SVID.

mod clock;
mod grpc_code;
pub mod metrics;
mod spiffe_id;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "workload-api")]
pub mod workload_api;

pub use clock::{Clock, SystemClock, UnixTime};
pub use grpc_code::GrpcCode;
pub use spiffe_id::{
    MAX_SPIFFE_ID_LEN, MAX_TRUST_DOMAIN_LEN, SpiffeId, SpiffeIdError, SpiffeIdMatcher, TrustDomain,
};
