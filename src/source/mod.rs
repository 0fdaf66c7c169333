//! Live bundles: from an agent, or from files.
//!
//! [`JwtSource`] follows the Workload API of the agent beside this workload: it keeps the bundle
//! stream open, swaps each new set in whole, and caches tokens of our own.
//!
//! | source | use it for |
//! | --- | --- |
//! | [`JwtSource`] | the agent beside this workload |
//! | [`FileBundles`] | files that a sidecar, a mount or an operator writes |
//! | [`MemoryBundles`] | bundles that the program gets by its own means |
//! | [`MergedBundles`] | several sources, each for its own trust domains |
//! | [`FixedBundles`](crate::FixedBundles) | bundles that never change |
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_spiffe::testing::WorkloadApi;
//! use tower_spiffe::{JwtSource, TrustDomain};
//!
//! let agent = WorkloadApi::start("example.org").await?;
//! let source = JwtSource::builder().endpoint(agent.endpoint().as_str()).build().await?;
//!
//! let keys = source.bundle_for_trust_domain(&TrustDomain::parse("example.org")?)?;
//! assert_eq!(keys.len(), 1);
//!
//! let mut updates = source.updated();
//! agent.rotate_now();
//! updates.changed().await?;
//! assert!(source.is_healthy());
//!
//! source.shutdown().await;
//! assert!(source.bundle_set().is_err());
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "workload-api")]
mod backoff;
#[cfg(feature = "workload-api")]
mod builder;
#[cfg(feature = "workload-api")]
mod error;
#[cfg(feature = "workload-api")]
mod fetch;
#[cfg(feature = "workload-api")]
pub(crate) mod intake;
#[cfg(feature = "workload-api")]
mod judge;
#[cfg(feature = "workload-api")]
mod jwt_source;
#[cfg(feature = "workload-api")]
mod limits;
#[cfg(any(feature = "server", feature = "client"))]
mod own_thread;
#[cfg(feature = "workload-api")]
mod record;
#[cfg(feature = "workload-api")]
pub(crate) mod shared;
#[cfg(feature = "workload-api")]
mod state;
#[cfg(feature = "workload-api")]
mod supervisor;
#[cfg(any(feature = "server", feature = "client"))]
pub(crate) mod trust_clock;
#[cfg(feature = "workload-api")]
mod updates;

#[cfg(feature = "workload-api")]
pub use builder::JwtSourceBuilder;
#[cfg(feature = "workload-api")]
pub use error::{JwtSourceError, JwtSourceErrorReason};
#[cfg(feature = "workload-api")]
pub use jwt_source::JwtSource;
#[cfg(feature = "workload-api")]
pub use limits::{ResourceLimits, WithdrawalPolicy};
#[cfg(feature = "workload-api")]
pub use state::{LastError, SourceState, TrustDomainState, Withdrawal};
#[cfg(feature = "workload-api")]
pub use updates::SourceUpdates;

#[cfg(any(feature = "server", feature = "client"))]
mod memory;
#[cfg(any(feature = "server", feature = "client"))]
mod merged;

#[cfg(any(feature = "server", feature = "client"))]
pub use memory::MemoryBundles;
#[cfg(any(feature = "server", feature = "client"))]
pub use merged::{
    MergedBundles, MergedBundlesBuilder, MergedBundlesError, MergedBundlesErrorReason,
    MergedMemberState, MergedState,
};

#[cfg(any(feature = "server", feature = "client"))]
pub(crate) mod file;

#[cfg(any(feature = "server", feature = "client"))]
pub use file::{
    BundleDocument, BundleFormat, FileBundles, FileBundlesBuilder, FileBundlesError,
    FileBundlesErrorReason, FileBundlesState, FileState, FileTrustDomainState,
};

#[cfg(test)]
#[cfg(feature = "testing")]
mod heartbeat_tests;
#[cfg(test)]
#[cfg(feature = "testing")]
mod rotation_tests;
#[cfg(test)]
#[cfg(feature = "testing")]
mod start_tests;
