//! Bundles that the program itself supplies and replaces.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::revision::Revision;
use crate::bundle::{BundleAnswer, BundleSource, BundlesUnavailable, JwtBundle, JwtBundleSet};

/// Bundles in memory, which the program replaces as a whole. For keys from a database or a
/// configuration service, for example.
///
/// The source keeps the contract of [`BundleSource`]: a new set can be seen before the revision
/// rises, and the revision rises only if a bundle changed. A key that a set no longer has is
/// rejected from the moment at which [`replace`](Self::replace) returns, also for cached tokens.
///
/// Clones are cheap and have the same bundles. [`default`](Self::default) has no set yet: tokens
/// cannot be verified before the first [`replace`](Self::replace).
///
/// ```
/// use tower_spiffe::bundle::{BundleSource, BundlesUnavailable, JwtBundle, JwtBundleSet};
/// use tower_spiffe::TrustDomain;
/// use tower_spiffe::source::MemoryBundles;
///
/// let bundles = MemoryBundles::default();
/// assert_eq!(bundles.revision(), Err(BundlesUnavailable::NotReady));
///
/// let read = |keys: &str| JwtBundle::from_jwks(TrustDomain::parse("example.org")?, keys.as_bytes())
///     .map_err(Box::<dyn std::error::Error>::from);
/// assert!(bundles.replace(JwtBundleSet::from_iter([read(r#"{"keys": []}"#)?])));
/// assert_eq!(bundles.revision(), Ok(1));
///
/// // The same set again changes nothing.
/// assert!(!bundles.replace(JwtBundleSet::from_iter([read(r#"{"keys": []}"#)?])));
/// assert_eq!(bundles.revision(), Ok(1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[doc(alias = "jwks")]
pub struct MemoryBundles {
    inner: Arc<Inner>,
}

struct Inner {
    set: ArcSwap<JwtBundleSet>,
    revision: Revision,
    replacing: Mutex<()>,
}

impl MemoryBundles {
    /// Creates a source with these bundles.
    pub fn new(set: JwtBundleSet) -> Self {
        let source = Self::default();
        source.replace(set);
        source
    }

    /// Replaces all bundles. A trust domain that is not in `set` is unknown from now on. Returns
    /// whether a bundle was added, removed or changed; only then the revision rises.
    ///
    /// Keys that stay are shared with the set before, so that tokens verified with them stay in the
    /// caches of the validators.
    pub fn replace(&self, set: JwtBundleSet) -> bool {
        let inner = &*self.inner;
        let _one = inner
            .replacing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = inner.set.load_full();
        let set: JwtBundleSet = set.iter().map(|bundle| shared(bundle, &before)).collect();
        let is_first = inner.revision.last() == 0;
        let changed = is_first || set != *before;
        inner.set.store(Arc::new(set));
        if changed {
            inner.revision.notify(inner.revision.raise());
        }
        changed
    }

    /// Returns the bundles.
    ///
    /// # Errors
    /// There is no set yet.
    pub fn bundle_set(&self) -> Result<JwtBundleSet, BundlesUnavailable> {
        self.revision()?;
        Ok(JwtBundleSet::clone(&self.inner.set.load()))
    }
}

fn shared(bundle: &Arc<JwtBundle>, before: &JwtBundleSet) -> Arc<JwtBundle> {
    match before.get(bundle.trust_domain().name()) {
        Some(before) if !Arc::ptr_eq(before, bundle) => {
            Arc::new(JwtBundle::clone(bundle).sharing_with(before))
        }
        _ => bundle.clone(),
    }
}

impl Default for MemoryBundles {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                set: ArcSwap::from_pointee(JwtBundleSet::default()),
                revision: Revision::default(),
                replacing: Mutex::new(()),
            }),
        }
    }
}

impl BundleSource for MemoryBundles {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.inner.revision.get()
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        if let Err(why) = self.revision() {
            return BundleAnswer::Unavailable(why);
        }
        match self.inner.set.load().get(trust_domain) {
            Some(bundle) => BundleAnswer::Ready(bundle.clone()),
            None => BundleAnswer::UnknownTrustDomain,
        }
    }

    fn changed_since(&self, seen: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        Some(self.inner.revision.changed_since(seen))
    }
}

impl fmt::Debug for MemoryBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBundles")
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}
