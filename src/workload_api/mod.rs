//! A client of the Workload API, which the local agent serves (SPIFFE Workload API, section 6).
//!
//! Services use [`JwtSource`](crate::JwtSource), which keeps bundles and tokens up to date. The client
//! here makes single calls, without retries and caching.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_spiffe::testing::FakeAgent;
//! use tower_spiffe::workload_api::WorkloadApiClient;
//! use tower_spiffe::token::SvidRequest;
//!
//! let agent = FakeAgent::start("example.org").await?;
//! agent.register("spiffe://example.org/web", "external", std::time::Duration::from_secs(60))?;
//! let client = WorkloadApiClient::connect(&agent.endpoint())?;
//!
//! let svid = client.fetch_jwt_svid(&SvidRequest::new(["reports"])?).await?;
//! assert_eq!(svid.spiffe_id().as_str(), "spiffe://example.org/web");
//!
//! let validated = client.validate_jwt_svid("reports", svid.token()).await?;
//! assert_eq!(validated.spiffe_id(), svid.spiffe_id());
//!
//! let mut bundles = client.fetch_jwt_bundles().await?;
//! let message = bundles.message().await?.expect("a first message, without delay");
//! assert_eq!(message.iter().next().map(|(name, _)| name), Some("spiffe://example.org"));
//! # Ok(())
//! # }
//! ```

mod bundles;
mod channel;
mod client;
mod connect;
mod endpoint;
mod error;
#[rustfmt::skip]
#[allow(
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::disallowed_methods,
    clippy::exhaustive_enums,
    clippy::exhaustive_structs,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "generated from proto/workload.proto"
)]
#[allow(dead_code, reason = "a client uses one half, the embedded server the other")]
pub(crate) mod pb;
mod redact;
mod stream;
mod validated;

pub use bundles::JwtBundlesMessage;
pub(crate) use channel::Timing;
pub(crate) use client::DEFAULT_MAX_MESSAGE_BYTES;
pub use client::{WorkloadApiClient, WorkloadApiClientBuilder};
pub(crate) use connect::Connector;
pub use endpoint::{ENDPOINT_VARIABLE, Endpoint, EndpointError, EndpointErrorReason};
pub use error::{Call, WorkloadApiError, WorkloadApiErrorReason};
pub use stream::JwtBundleStream;
pub use validated::ValidatedJwtSvid;
