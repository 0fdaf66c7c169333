//! JWT bundles: the public keys that a trust domain's tokens are verified with.
//!
//! A [`JwtBundle`] is read from a JWK Set, element by element: an invalid key does not
//! affect the others. A [`JwtBundleSet`] has one bundle per trust domain, and a [`BundleSource`]
//! returns the current bundle of a trust domain.
//!
//! ```
//! use tower_spiffe::bundle::{BundleAnswer, BundleSource, FixedBundles, JwtBundle, JwtBundleSet};
//! use tower_spiffe::TrustDomain;
//! use tower_spiffe::bundle::Algorithm;
//!
//! let jwks = br#"{"keys": [
//!     {"kty": "EC", "kid": "a", "crv": "P-256",
//!      "x": "bVDjA5e6fbeeyTcGBKr7nOk7JcsJBBSY5AfzijSjWi0",
//!      "y": "Cav0NjSa0vjokblBt6XX3cuVwwqCmhC20E0wgNmBGMU"},
//!     {"kty": "of tomorrow", "kid": "b"}
//! ]}"#;
//! let bundle = JwtBundle::from_jwks(TrustDomain::parse("example.org")?, jwks)?;
//! assert_eq!(bundle.len(), 1);
//! assert_eq!(bundle.ignored()[0].key_id(), Some("b"));
//! assert!(bundle.authority("a").is_some_and(|key| key.supports(Algorithm::ES256)));
//!
//! let source = FixedBundles::new(JwtBundleSet::from_iter([bundle]));
//! assert!(matches!(source.bundle("example.org"), BundleAnswer::Ready(_)));
//! assert!(matches!(source.bundle("example.com"), BundleAnswer::UnknownTrustDomain));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod authority;
mod jwk;
mod jwks;
mod set;
mod source;
mod wrong_kind;

use std::sync::Arc;

pub use crate::jwt::{Algorithm, UnknownAlgorithm};
pub use authority::JwtAuthority;
pub(crate) use jwk::UseRule;
pub use jwk::{IgnoredKey, IgnoredReason};
pub use jwks::JwksError;
pub use set::{FixedBundles, JwtBundleSet};
pub use source::{BundleAnswer, BundleSource, BundlesUnavailable};

#[cfg(any(feature = "server", feature = "client"))]
pub(crate) use wrong_kind::{BYTE_ORDER_MARK, Expected, wrong_kind};

use crate::identity::TrustDomain;

/// The JWT authorities of one trust domain. May be empty: then every token of that trust domain is
/// untrusted (SPIFFE Trust Domain and Bundle section 4.1.3).
///
/// Two bundles are equal if they have the same trust domain and the same authorities. The order in
/// the documents and the ignored elements make no difference.
#[derive(Debug, Clone)]
pub struct JwtBundle {
    trust_domain: TrustDomain,
    // Sorted by key ID, each once.
    authorities: Box<[Arc<JwtAuthority>]>,
    ignored: Box<[IgnoredKey]>,
}

impl JwtBundle {
    /// Reads the JWK Set that a Workload API returns for a trust domain (SPIFFE Workload API section
    /// 6.2.2, RFC 7517). A key counts if `use` is missing or `jwt-svid`.
    ///
    /// # Errors
    /// The document is not a JWK Set. A set with no usable keys is not an error: see
    /// [`ignored`](Self::ignored).
    pub fn from_jwks(trust_domain: TrustDomain, jwks: &[u8]) -> Result<Self, JwksError> {
        Self::read(trust_domain, jwks, UseRule::AbsentOrJwtSvid, None)
    }

    /// Reads JWKs given one by one, by the rules of [`from_jwks`](Self::from_jwks). A JWK that cannot
    /// be used is in [`ignored`](Self::ignored), with its position in `keys`.
    ///
    /// ```
    /// use tower_spiffe::TrustDomain;
    /// use tower_spiffe::bundle::{IgnoredReason, JwtBundle};
    ///
    /// let key = br#"{"kty": "EC", "kid": "a", "crv": "P-256",
    ///     "x": "bVDjA5e6fbeeyTcGBKr7nOk7JcsJBBSY5AfzijSjWi0",
    ///     "y": "Cav0NjSa0vjokblBt6XX3cuVwwqCmhC20E0wgNmBGMU"}"#;
    /// let keys: [&[u8]; 3] = [b"{}", key, b"\xff"];
    /// let bundle = JwtBundle::from_keys(TrustDomain::parse("example.org")?, keys);
    /// assert!(bundle.authority("a").is_some());
    /// assert_eq!(bundle.ignored()[0].reason(), IgnoredReason::KeyId);
    /// assert_eq!(bundle.ignored()[1].position(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_keys<K: AsRef<[u8]>>(
        trust_domain: TrustDomain,
        keys: impl IntoIterator<Item = K>,
    ) -> Self {
        let (authorities, ignored) = jwks::read_each(keys, UseRule::AbsentOrJwtSvid);
        Self {
            trust_domain,
            authorities,
            ignored,
        }
    }

    /// Reads a SPIFFE bundle (SPIFFE Trust Domain and Bundle section 4), from a federation endpoint
    /// or a file. A key counts only if `use` is `jwt-svid`.
    ///
    /// # Errors
    /// The document is not a JWK Set. A set with no usable keys is not an error: see
    /// [`ignored`](Self::ignored).
    pub fn from_spiffe_bundle(trust_domain: TrustDomain, bundle: &[u8]) -> Result<Self, JwksError> {
        Self::read(trust_domain, bundle, UseRule::JwtSvid, None)
    }

    /// Reads a JWK Set that an OIDC issuer publishes, or another JWK Set that the user assigned to
    /// this trust domain. A key counts if `use` is missing, `jwt-svid` or `sig`: SPIRE's OIDC
    /// discovery provider writes `sig` with `set_key_use`.
    ///
    /// # Errors
    /// The document is not a JWK Set. A set with no usable keys is not an error: see
    /// [`ignored`](Self::ignored).
    pub fn from_oidc_jwks(trust_domain: TrustDomain, jwks: &[u8]) -> Result<Self, JwksError> {
        Self::read(trust_domain, jwks, UseRule::AbsentOrJwtSvidOrSig, None)
    }

    /// Reads a document, reusing the keys that `previous` has parsed and sharing its authorities. Most
    /// documents did not change.
    pub(crate) fn read(
        trust_domain: TrustDomain,
        document: &[u8],
        rule: UseRule,
        previous: Option<&Self>,
    ) -> Result<Self, JwksError> {
        let previous = previous.filter(|previous| previous.trust_domain == trust_domain);
        let (authorities, ignored) = jwks::read(document, rule, previous)?;
        let read = Self {
            trust_domain,
            authorities,
            ignored,
        };
        Ok(match previous {
            Some(previous) => read.sharing_with(previous),
            None => read,
        })
    }

    /// The bundle of a trust domain that is known, but whose keys are not.
    #[cfg(any(feature = "server", feature = "client"))]
    pub(crate) fn without_keys(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            authorities: Box::default(),
            ignored: Box::default(),
        }
    }

    /// Returns the trust domain of these authorities.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Returns the authority with this key ID, compared byte for byte.
    pub fn authority(&self, key_id: &str) -> Option<&Arc<JwtAuthority>> {
        let at = self
            .authorities
            .binary_search_by(|authority| authority.key_id().cmp(key_id))
            .ok()?;
        self.authorities.get(at)
    }

    /// Returns all authorities, sorted by key ID.
    pub fn authorities(&self) -> impl ExactSizeIterator<Item = &Arc<JwtAuthority>> {
        self.authorities.iter()
    }

    /// Returns the number of authorities.
    pub fn len(&self) -> usize {
        self.authorities.len()
    }

    /// Returns whether there is no authority.
    pub fn is_empty(&self) -> bool {
        self.authorities.is_empty()
    }

    /// Returns the elements of the document that are not authorities, and why, for the operator of the
    /// issuer; at most 256 of them.
    pub fn ignored(&self) -> &[IgnoredKey] {
        &self.ignored
    }

    /// If no key is usable, returns the first ignored key that is not for another kind of SVID: the
    /// issuer wanted it to be used. `None` for an empty set.
    #[cfg(any(feature = "server", feature = "client"))]
    #[allow(dead_code, reason = "used by sources that are features")]
    pub(crate) fn none_usable(&self) -> Option<&IgnoredKey> {
        let faults = || self.ignored.iter().find(|key| key.is_fault());
        self.is_empty().then(faults).flatten()
    }

    /// Shares the authorities that `previous` has too: tokens verified with them stay cached, and parsed
    /// keys stay parsed.
    #[must_use]
    pub(crate) fn sharing_with(mut self, previous: &JwtBundle) -> Self {
        if self.trust_domain == previous.trust_domain {
            for authority in &mut self.authorities {
                if let Some(known) = previous.authority(authority.key_id())
                    && known == authority
                {
                    *authority = Arc::clone(known);
                }
            }
        }
        self
    }
}

#[cfg(any(feature = "server", feature = "client"))]
impl JwtBundle {
    /// Whether the keys and the ignored elements are the same.
    pub(crate) fn is_shown_as(&self, other: &Self) -> bool {
        self == other && self.ignored() == other.ignored()
    }

    /// Returns `before` if it is the same.
    pub(crate) fn shared(self, before: Option<&Arc<Self>>) -> Arc<Self> {
        match before {
            Some(before) if before.is_shown_as(&self) => before.clone(),
            _ => Arc::new(self),
        }
    }
}

impl PartialEq for JwtBundle {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain && self.authorities == other.authorities
    }
}
