//! Bundles of many trust domains, and a source that never changes.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::source::{BundleAnswer, BundleSource, BundlesUnavailable};
use super::{JwtBundle, TrustDomain};

/// One bundle per trust domain. Clones are cheap.
///
/// Two sets are equal when they have equal bundles.
#[derive(Clone, Default, PartialEq)]
pub struct JwtBundleSet {
    bundles: Arc<HashMap<TrustDomain, Arc<JwtBundle>>>,
}

impl JwtBundleSet {
    /// Returns the bundle of the trust domain with this name.
    pub fn get(&self, trust_domain: &str) -> Option<&Arc<JwtBundle>> {
        self.bundles.get(trust_domain)
    }

    /// Returns all bundles, in no particular order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<JwtBundle>> {
        self.bundles.values()
    }

    /// Returns the number of bundles.
    pub fn len(&self) -> usize {
        self.bundles.len()
    }

    /// Returns whether there is no bundle.
    pub fn is_empty(&self) -> bool {
        self.bundles.is_empty()
    }
}

/// If two bundles are for one trust domain, the later one stays.
impl FromIterator<Arc<JwtBundle>> for JwtBundleSet {
    fn from_iter<I: IntoIterator<Item = Arc<JwtBundle>>>(bundles: I) -> Self {
        let by_name = |bundle: Arc<JwtBundle>| (bundle.trust_domain().clone(), bundle);
        Self {
            bundles: Arc::new(bundles.into_iter().map(by_name).collect()),
        }
    }
}

/// If two bundles are for one trust domain, the later one stays.
impl FromIterator<JwtBundle> for JwtBundleSet {
    fn from_iter<I: IntoIterator<Item = JwtBundle>>(bundles: I) -> Self {
        bundles.into_iter().map(Arc::new).collect()
    }
}

impl fmt::Debug for JwtBundleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.bundles.values()).finish()
    }
}

/// A source whose bundles never change and are always available. For tests, and for programs that
/// restart to get other bundles.
#[derive(Debug, Clone, Default)]
pub struct FixedBundles {
    set: JwtBundleSet,
}

impl FixedBundles {
    /// Creates a source with these bundles.
    pub fn new(set: JwtBundleSet) -> Self {
        Self { set }
    }

    /// Returns the bundles.
    pub fn bundle_set(&self) -> &JwtBundleSet {
        &self.set
    }
}

impl BundleSource for FixedBundles {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        Ok(0)
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        match self.set.get(trust_domain) {
            Some(bundle) => BundleAnswer::Ready(Arc::clone(bundle)),
            None => BundleAnswer::UnknownTrustDomain,
        }
    }
}
