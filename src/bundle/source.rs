//! Where a validator gets its bundles.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::JwtBundle;
use crate::metrics::MetricsRecorder;

/// A source of bundles, which may be temporarily unavailable.
///
/// A validator calls [`revision`](Self::revision) for every token, and [`bundle`](Self::bundle) if
/// the token is not cached or was cached at another revision. Both must be quick and never block.
///
/// The contract: if a result of `bundle` changes, make the change visible first and raise the
/// revision after it. Then a revision that is read before a bundle is never newer than that bundle,
/// and a cached token is at most checked once too often. [`BundleAnswer::Unavailable`] for one
/// trust domain is such a change too: raise the revision when it begins and when it ends.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a source of bundles",
    label = "expected a `JwtSource`, a `FileBundles`, an `HttpsBundles`, a `FixedBundles`, or your own `BundleSource`",
    note = "pass it by value: a clone of a `JwtSource` is the same source"
)]
pub trait BundleSource: Send + Sync + 'static {
    /// Returns the revision of the bundles.
    ///
    /// # Errors
    /// [`BundlesUnavailable`] if no token can be verified now.
    fn revision(&self) -> Result<u64, BundlesUnavailable>;

    /// Returns the bundle of the trust domain with this name.
    fn bundle(&self, trust_domain: &str) -> BundleAnswer;

    /// Returns whether this source is healthy, for alerts. By default it is if
    /// [`revision`](Self::revision) succeeds.
    fn is_healthy(&self) -> bool {
        self.revision().is_ok()
    }

    /// Resolves when the revision is no longer `seen`; `None` if this source never changes or does not
    /// report changes.
    fn changed_since(&self, seen: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let _ = seen;
        None
    }

    /// Returns the recorder of this source, which a validator of it and the layers of that validator
    /// use unless they are given one of their own. `None` by default.
    fn metrics(&self) -> Option<Arc<dyn MetricsRecorder>> {
        None
    }

    /// Reports a token whose `kid` is not in the bundle of this trust domain. The key may be newer
    /// than the bundle: a source that polls can poll early. Does nothing by default.
    ///
    /// A validator calls this for each such token, before it checks the signature: anyone can cause
    /// a call. It must be quick, must not block, and must limit the work that it causes.
    fn unknown_key(&self, trust_domain: &str, key_id: &str) {
        let _ = (trust_domain, key_id);
    }
}

impl<S: BundleSource + ?Sized> BundleSource for Arc<S> {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        (**self).revision()
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        (**self).bundle(trust_domain)
    }

    fn is_healthy(&self) -> bool {
        (**self).is_healthy()
    }

    fn changed_since(&self, seen: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        (**self).changed_since(seen)
    }

    fn metrics(&self) -> Option<Arc<dyn MetricsRecorder>> {
        (**self).metrics()
    }

    fn unknown_key(&self, trust_domain: &str, key_id: &str) {
        (**self).unknown_key(trust_domain, key_id);
    }
}

/// The result of a [`BundleSource`] for one trust domain. It decides between a 401 and a 503.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum BundleAnswer {
    /// The current bundle.
    Ready(Arc<JwtBundle>),
    /// The source is available and does not know this trust domain: its tokens are rejected.
    UnknownTrustDomain,
    /// The source has no usable bundle now.
    Unavailable(BundlesUnavailable),
}

/// Why tokens cannot be verified now. The cause is on the side of the validator, never of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BundlesUnavailable {
    /// No bundles have arrived yet.
    NotReady,
    /// The issuer withdrew the bundles (Workload API section 6.2.2).
    Withdrawn,
    /// The last accepted bundles are older than `max_staleness` allows. Other contact with the
    /// issuer, such as keepalives and tokens, does not count.
    Stale,
    /// The source was shut down.
    Closed,
}

impl BundlesUnavailable {
    /// Returns the reason as a fixed, short word for labels: `not-ready`, `withdrawn`, `stale` or
    /// `closed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "not-ready",
            Self::Withdrawn => "withdrawn",
            Self::Stale => "stale",
            Self::Closed => "closed",
        }
    }

    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::NotReady => "no bundles have arrived yet",
            Self::Withdrawn => "the issuer withdrew the bundles",
            Self::Stale => "the bundles are older than allowed",
            Self::Closed => "the source was shut down",
        }
    }
}

impl fmt::Display for BundlesUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for BundlesUnavailable {}
