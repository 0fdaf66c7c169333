//! Live bundles: from an agent, or from files.
//!
//! [`JwtSource`] follows the Workload API of the agent beside this workload: it keeps the bundle
//! stream open, swaps each new set in whole, and caches tokens of our own.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_spiffe::testing::FakeAgent;
//! use tower_spiffe::{JwtSource, TrustDomain};
//!
//! let agent = FakeAgent::start("example.org").await?;
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
pub(crate) mod agent;
#[cfg(any(feature = "server", feature = "client"))]
pub(crate) mod file;
#[cfg(any(feature = "server", feature = "client"))]
mod own_thread;
#[cfg(any(feature = "server", feature = "client"))]
pub(crate) mod trust_clock;

#[cfg(feature = "workload-api")]
pub use agent::{
    JwtSource, JwtSourceBuilder, JwtSourceError, JwtSourceErrorReason, LastError, ResourceLimits,
    SourceState, SourceUpdates, TrustDomainState, Withdrawal, WithdrawalPolicy,
};
#[cfg(any(feature = "server", feature = "client"))]
pub use file::{
    FileBundles, FileBundlesBuilder, FileBundlesError, FileBundlesErrorReason, FileBundlesState,
    FileState,
};
