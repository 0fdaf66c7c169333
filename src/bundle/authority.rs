//! A public key of a trust domain.

use std::fmt;

use crate::jwt::{Algorithm, AlgorithmSet, PublicKey};

/// A JWT authority: a public key, its ID, and the algorithms that it may be used with.
///
/// Two authorities are equal if their ID, key and algorithms are.
#[derive(PartialEq)]
pub struct JwtAuthority {
    key_id: Box<str>,
    pub(super) key: PublicKey,
    pub(super) algorithms: AlgorithmSet,
}

impl JwtAuthority {
    pub(super) fn new(key_id: &str, key: PublicKey, allowed: AlgorithmSet) -> Self {
        Self {
            key_id: key_id.into(),
            algorithms: key.algorithms().and(allowed),
            key,
        }
    }

    /// Returns the key ID, an opaque string that the issuer chose.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Returns whether this key can verify tokens with this algorithm: its type and curve fit, and the
    /// `alg` and `key_ops` of the JWK, if present, allow it.
    pub fn supports(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(algorithm)
    }

    /// Whether `signature` over `message` is by this key.
    pub(crate) fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        self.supports(algorithm) && self.key.verify(algorithm, message, signature)
    }
}

impl fmt::Debug for JwtAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtAuthority")
            .field("key_id", &self.key_id)
            .field("type", &self.key.type_name())
            .finish_non_exhaustive()
    }
}
