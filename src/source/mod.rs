//! Live bundles: from an agent, from files, or over https.
//!
//! [`JwtSource`] follows the Workload API of the local agent: it keeps the bundle stream open,
//! replaces the bundles as a whole, and caches the tokens of this workload.
//!
//! | source | use it for |
//! | --- | --- |
//! | [`JwtSource`] | the local agent |
//! | [`FileBundles`] | files that a sidecar, a mount or an operator writes |
//! | [`HttpsBundles`] | JWKS URLs, OIDC issuers and SPIFFE bundle endpoints (feature `https-bundles`) |
//! | [`MemoryBundles`] | bundles that the program supplies and replaces itself |
//! | [`MergedBundles`] | several sources, each for its own trust domains |
//! | [`FixedBundles`](crate::bundle::FixedBundles) | bundles that never change |
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_spiffe::testing::FakeAgent;
//! use tower_spiffe::{JwtSource, TrustDomain};
//!
//! let agent = FakeAgent::start("example.org").await?;
//! let source = JwtSource::builder().endpoint(agent.endpoint()).build().await?;
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
//!
//! # Defaults
//!
//! | [`JwtSourceBuilder`] | default |
//! | --- | --- |
//! | `endpoint`, `connector` | the endpoint in `SPIFFE_ENDPOINT_SOCKET` |
//! | `initial_sync_timeout` | 30 s |
//! | `shutdown_timeout` | 30 s |
//! | `fetch_timeout` | 35 s for a token, of which 5 s to connect; 10 s for the first message of a stream |
//! | `reconnect_backoff` | 200 ms to 10 s |
//! | `keepalive` | a ping every 305 s; the response must arrive within 20 s |
//! | `resource_limits` | 200 trust domains, 4 MiB each, 64 MiB per message |
//! | `withdrawal` | [`WithdrawalPolicy::Immediate`] |
//! | `max_staleness` | no limit |
//! | `clock`, `metrics` | the system clock; no recorder |
//!
//! | [`SvidCacheBuilder`](crate::token::SvidCacheBuilder), in `svid_cache` | default |
//! | --- | --- |
//! | `max_entries` | 1024 audiences |
//! | `fetch_timeout` | that of the source, else 35 s |
//! | `max_wait` | 5 s |
//! | `retry` | 250 ms to 60 s, see [Retries](crate::token#retries) |
//! | `concurrency` | 16 calls at once |
//! | `rate` | 200 calls per second |
//! | `clock`, `metrics` | those of the source |
//!
//! | [`FileBundlesBuilder`] | default |
//! | --- | --- |
//! | `initial_sync_timeout` | 30 s, for `build` |
//! | `poll_interval` | 5 s |
//! | `max_file_bytes` | 64 MiB |
//! | `clock`, `metrics` | the system clock; no recorder |
//!
//! The defaults of [`HttpsBundles`] are in the module [`https`].
//!
//! A token is refreshed after 55 to 65 % of its lifetime, and is not sent in its last 2 % (2 s at most).

#[cfg(feature = "workload-api")]
pub(crate) mod agent;
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

#[cfg(any(feature = "https-bundles", feature = "oauth"))]
pub(crate) mod body;
#[cfg(any(feature = "server", feature = "client"))]
pub(crate) mod file;
#[cfg(any(feature = "server", feature = "client"))]
pub(crate) mod on_drop;
#[cfg(any(feature = "server", feature = "client"))]
pub(crate) mod own_thread;
#[cfg(any(feature = "server", feature = "client"))]
pub(crate) mod polling;
#[cfg(any(feature = "server", feature = "client"))]
pub(crate) mod regular_file;
#[cfg(any(feature = "https-bundles", feature = "oauth"))]
pub(crate) mod retry_after;
#[cfg(any(feature = "server", feature = "client"))]
pub(crate) mod revision;
#[cfg(any(feature = "server", feature = "client"))]
pub(crate) mod trust_clock;

#[cfg(feature = "workload-api")]
pub use agent::{
    JwtSource, JwtSourceBuilder, JwtSourceError, JwtSourceErrorReason, LastError, ResourceLimits,
    SourceState, SourceUpdates, TrustDomainState, Withdrawal, WithdrawalPolicy,
};
#[cfg(any(feature = "server", feature = "client"))]
pub use file::{
    BundleDocument, BundleFormat, FileBundles, FileBundlesBuilder, FileBundlesError,
    FileBundlesErrorReason, FileBundlesState, FileState, FileTrustDomainState,
};

#[cfg(feature = "https-bundles")]
pub mod https;

#[cfg(feature = "https-bundles")]
pub use https::HttpsBundles;
