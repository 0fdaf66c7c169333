//! Bundles over https: JWKS URLs, OIDC issuers and SPIFFE bundle endpoints.
//!
//! [`HttpsBundles`] supplies the bundles to verify JWT-SVIDs without an agent: in gateways,
//! serverless functions, services of partners. Each source polls one endpoint for the bundle of one
//! trust domain.
//!
//! ```
//! use tower_spiffe::source::HttpsBundles;
//! use tower_spiffe::{TrustDomain, Validator};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let partner = TrustDomain::parse("partner.example")?;
//! let bundles = HttpsBundles::oidc_issuer(partner, "https://oidc.partner.example").build_lazy()?;
//!
//! // Requests get 503 until the first poll succeeds; `build` waits for it.
//! assert!(bundles.state().revision.is_err());
//! let validator = Validator::builder(bundles).audience("reports").build()?;
//! # drop(validator);
//! # Ok(())
//! # }
//! ```
//!
//! # Trust
//!
//! The keys in a bundle verify tokens: an attacker who can forge a bundle can forge every token of its
//! trust domain.
//!
//! | source | `use` of accepted keys | a bundle can be forged by |
//! | --- | --- | --- |
//! | [`jwks_url`](HttpsBundles::jwks_url) | absent, `jwt-svid`, `sig` | the owner of the URL's host or of a host that it redirects to; a public CA that issues a certificate for one of them |
//! | [`oidc_issuer`](HttpsBundles::oidc_issuer) | absent, `jwt-svid`, `sig` | the same, of the issuer's host and of the host in `jwks_uri` |
//! | [`https_web`](HttpsBundles::https_web) | `jwt-svid` | the same, of the endpoint's host |
//! | [`https_spiffe`](HttpsBundles::https_spiffe) | `jwt-svid` | the owner of the endpoint's X.509-SVID or of an X.509 root of its trust domain; a process that can write the bootstrap bundle or the saved bundle |
//! | one of the first three with [`client`](HttpsBundlesBuilder::client) | the same | depends on how that client verifies servers |
//!
//! Names are resolved by the system, and TLS verifies the server: a false DNS answer leads to an
//! error. Which addresses a name may have is not checked, so a URL or an issuer must never come from
//! a request. An issuer, or a server that redirects, may lead to any https host, unless
//! [`allowed_hosts`](HttpsBundlesBuilder::allowed_hosts) limits it. Error texts contain no part of
//! a response's body.
//!
//! # Defaults
//!
//! | what | default |
//! | --- | --- |
//! | poll interval | a quarter of `spiffe_refresh_hint`, from 60 s to 300 s; 300 s without a hint; 10 % jitter |
//! | `Retry-After` of an error response | lengthens the wait, to 300 s at most |
//! | a failed poll | the next poll is at its usual time; before the first success, after a random wait: at most 1 s, then 2 s, and so on up to 60 s |
//! | unknown `kid` | one early poll per [cooldown](HttpsBundlesBuilder::unknown_key_cooldown), 10 s; not before a `Retry-After` |
//! | connection, with name and TLS | 5 s |
//! | one poll | 10 s |
//! | response | 1 MiB, uncompressed |
//! | redirects | 5, to https only, to [any host](HttpsBundlesBuilder::allowed_hosts) |
//! | [`max_staleness`](HttpsBundlesBuilder::max_staleness) | none: the last good bundle stays |

mod bootstrap;
mod builder;
mod document;
mod error;
mod fetch;
mod poll;
mod shared;
mod state;
mod tls;
mod url;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::task::AbortHandle;

pub use self::bootstrap::SpiffeBootstrap;
pub use self::builder::HttpsBundlesBuilder;
pub use self::error::{HttpsBundlesError, HttpsBundlesErrorReason};
use self::poll::Target;
use self::shared::Shared;
pub use self::state::{HttpsBundlesState, PollError};
use crate::bundle::{BundleAnswer, BundleSource, BundlesUnavailable, JwtBundle};
use crate::identity::{SpiffeId, TrustDomain};
use crate::metrics::MetricsRecorder;

/// The bundle of one trust domain, polled over https. See the [module](self) for the rules.
///
/// A failed poll keeps the last good bundle. Clones are cheap and share everything. When the last
/// one is dropped, the background task ends. The task runs on the tokio runtime that the source was
/// built on. When that runtime ends, tokens cannot be verified: a revoked key would not be noticed.
#[derive(Clone)]
#[doc(alias = "jwks")]
#[doc(alias = "oidc")]
pub struct HttpsBundles {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    task: AbortHandle,
    metrics: Option<Arc<dyn MetricsRecorder>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HttpsBundles {
    /// Creates a source that polls a JWK Set, for example of SPIRE's OIDC discovery provider (`/keys`) or
    /// of an object store. The server is verified in the Web PKI.
    pub fn jwks_url(trust_domain: TrustDomain, url: impl Into<String>) -> HttpsBundlesBuilder {
        HttpsBundlesBuilder::new(trust_domain, Target::Jwks, url.into())
    }

    /// Creates a source that polls the JWK Set of an OIDC issuer, which its discovery document names. The
    /// `issuer` in that document must be exactly this one. The servers are verified in the Web PKI.
    pub fn oidc_issuer(
        trust_domain: TrustDomain,
        issuer: impl Into<String>,
    ) -> HttpsBundlesBuilder {
        let issuer = issuer.into();
        let target = Target::Oidc(issuer.as_str().into());
        HttpsBundlesBuilder::new(trust_domain, target, issuer)
    }

    /// Creates a source that polls a SPIFFE bundle endpoint of profile `https_web`: the server is verified
    /// in the Web PKI (SPIFFE Federation section 5.2.1).
    pub fn https_web(trust_domain: TrustDomain, url: impl Into<String>) -> HttpsBundlesBuilder {
        HttpsBundlesBuilder::new(trust_domain, Target::Web, url.into())
    }

    /// Creates a source that polls a SPIFFE bundle endpoint of profile `https_spiffe`: the server's
    /// X.509-SVID must have exactly this SPIFFE ID, also after redirects (SPIFFE Federation section
    /// 5.2.2).
    ///
    /// It is verified against the latest bundle of the trust domain of `endpoint_id`. If that is
    /// `trust_domain`, the endpoint's own bundle is used after the first poll, unless the bootstrap
    /// bundle has a higher `spiffe_sequence`. Otherwise the bootstrap bundle is always used.
    pub fn https_spiffe(
        trust_domain: TrustDomain,
        url: impl Into<String>,
        endpoint_id: SpiffeId,
        bootstrap: SpiffeBootstrap,
    ) -> HttpsBundlesBuilder {
        let target = Target::Spiffe(endpoint_id, bootstrap);
        HttpsBundlesBuilder::new(trust_domain, target, url.into())
    }

    /// Returns the current bundle.
    ///
    /// # Errors
    /// No bundle arrived yet, it is stale, or the runtime of the source has ended.
    pub fn jwt_bundle(&self) -> Result<Arc<JwtBundle>, BundlesUnavailable> {
        self.inner.shared.current()
    }

    /// Returns the latest accepted document as it was fetched; `None` before the first one.
    pub fn spiffe_bundle(&self) -> Option<Arc<[u8]>> {
        self.inner.shared.document()
    }

    /// Returns the state as it is now.
    pub fn state(&self) -> HttpsBundlesState {
        self.inner.shared.state()
    }

    /// Returns whether the source is healthy, for alerts; see [`HttpsBundlesState::is_healthy`].
    pub fn is_healthy(&self) -> bool {
        self.state().is_healthy()
    }

    /// Waits until tokens can be verified.
    ///
    /// # Errors
    /// The runtime of the source has ended.
    pub async fn ready(&self) -> Result<(), BundlesUnavailable> {
        let shared = &self.inner.shared;
        shared.revision.until(|| shared.revision().is_ok()).await;
        match shared.revision.has_ended() {
            true => Err(BundlesUnavailable::Closed),
            false => Ok(()),
        }
    }
}

impl BundleSource for HttpsBundles {
    fn metrics(&self) -> Option<Arc<dyn MetricsRecorder>> {
        self.inner.metrics.clone()
    }

    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.inner.shared.revision()
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        self.inner.shared.bundle(trust_domain)
    }

    fn changed_since(&self, seen: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        Some(self.inner.shared.revision.changed_since(seen))
    }

    fn is_healthy(&self) -> bool {
        self.state().is_healthy()
    }

    fn unknown_key(&self, trust_domain: &str, _key_id: &str) {
        self.inner.shared.unknown_key(trust_domain);
    }
}

impl fmt::Debug for HttpsBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpsBundles")
            .field("trust_domain", &self.inner.shared.trust_domain)
            .field("revision", &self.inner.shared.revision())
            .finish()
    }
}
