//! Where bundles come from, as a validator sees it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::JwtBundle;
use crate::metrics::MetricsRecorder;

/// A place that has bundles now, or says why it cannot judge.
///
/// A validator asks it for each token: `revision` on every one, cached or not, and `bundle` where
/// the revision is not the one that a verdict was reached at. Both must be quick and never block.
///
/// The contract: whoever changes what [`bundle`](Self::bundle) answers makes the change visible
/// first and raises the revision after it. Then a revision read before a bundle is never newer
/// than that bundle, and a verdict tied to it is re-judged once too often rather than once too
/// seldom.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no source of bundles",
    label = "expected a `JwtSource`, a `FileBundles`, an `HttpsBundles`, a `FixedBundles`, or your own `BundleSource`",
    note = "it is taken by value: a clone of a `JwtSource` is the same source"
)]
pub trait BundleSource: Send + Sync + 'static {
    /// Whether the source can judge at all, and at which revision its bundles are.
    ///
    /// # Errors
    /// [`BundlesUnavailable`] where no verdict would be worth anything now.
    fn revision(&self) -> Result<u64, BundlesUnavailable>;

    /// The bundle of the trust domain with this name.
    fn bundle(&self, trust_domain: &str) -> BundleAnswer;

    /// Returns whether nothing is wrong with this source, for alerts. By default whether it can
    /// judge.
    fn is_healthy(&self) -> bool {
        self.revision().is_ok()
    }

    /// Resolves when the revision is no longer `seen`; `None` where this source never changes or
    /// cannot tell.
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

/// The three answers of a [`BundleSource`]: a bare `Option` could not tell a 401 from a 503.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum BundleAnswer {
    /// The bundle as it is now.
    Ready(Arc<JwtBundle>),
    /// The source can judge, and does not know this trust domain: its tokens are untrusted.
    UnknownTrustDomain,
    /// The source cannot judge.
    Unavailable(BundlesUnavailable),
}

/// Why a source cannot judge: our side's trouble, never the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BundlesUnavailable {
    /// No bundles have arrived yet.
    NotReady,
    /// The issuer withdrew the bundles (Workload API section 6.2.2).
    Withdrawn,
    /// The last contact with the issuer is longer ago than the user allows.
    Stale,
    /// The source was shut down.
    Closed,
}

impl BundlesUnavailable {
    /// The reason as a fixed, short word, fit for a label: `not-ready`, `withdrawn`, `stale` or
    /// `closed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "not-ready",
            Self::Withdrawn => "withdrawn",
            Self::Stale => "stale",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for BundlesUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReady => "no bundles have arrived yet",
            Self::Withdrawn => "the issuer withdrew the bundles",
            Self::Stale => "the bundles are older than allowed",
            Self::Closed => "the source was shut down",
        })
    }
}

impl std::error::Error for BundlesUnavailable {}
