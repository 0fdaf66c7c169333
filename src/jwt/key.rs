//! Public keys, parsed once, and verification of signatures.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED,
    EcdsaVerificationAlgorithm, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
};

use super::{Algorithm, AlgorithmSet};

/// An EC or RSA public key. A clone shares the parsed key.
#[derive(Clone)]
pub(crate) enum PublicKey {
    Ec(Arc<EcKey>),
    Rsa(Arc<RsaKey>),
}

/// A curve. Each one belongs to exactly one algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
    P521,
}

/// Why bytes are not a valid key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyFault {
    /// A coordinate does not have the full length of the curve.
    CoordinateLength,
    /// The point is not on the curve.
    NotOnCurve,
    /// The modulus is even, or has fewer than 2048 bits or more than 8192.
    Modulus,
    /// The exponent is even, below 3, or longer than 33 bits.
    Exponent,
}

pub(crate) struct EcKey {
    curve: Curve,
    parsed: ParsedPublicKey,
}

/// aws-lc ties a parsed RSA key to one algorithm, and a JWK rarely has `alg`: so the key is parsed for
/// each algorithm when a token first needs it.
pub(crate) struct RsaKey {
    modulus: Box<[u8]>,
    exponent: Box<[u8]>,
    parsed: [OnceLock<Option<ParsedPublicKey>>; 6],
}

// === impl Curve ===

impl Curve {
    /// The curve with exactly this name (RFC 7518 section 6.2.1.1), case-sensitive.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "P-256" => Some(Self::P256),
            "P-384" => Some(Self::P384),
            "P-521" => Some(Self::P521),
            _ => None,
        }
    }

    pub(crate) const fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::ES256,
            Self::P384 => Algorithm::ES384,
            Self::P521 => Algorithm::ES512,
        }
    }

    const fn coordinate_len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    const fn verifier(self) -> &'static EcdsaVerificationAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED,
            Self::P384 => &ECDSA_P384_SHA384_FIXED,
            Self::P521 => &ECDSA_P521_SHA512_FIXED,
        }
    }
}

// === impl PublicKey ===

impl PublicKey {
    /// The key with these coordinates, big-endian and at full length. Shares `known` if it is equal.
    pub(crate) fn ec(
        curve: Curve,
        x: &[u8],
        y: &[u8],
        known: Option<&Self>,
    ) -> Result<Self, KeyFault> {
        let len = curve.coordinate_len();
        if x.len() != len || y.len() != len {
            return Err(KeyFault::CoordinateLength);
        }
        // The uncompressed point of SEC 1 section 2.3.3.
        let point = [&[4], x, y].concat();
        if let Some(Self::Ec(key)) = known
            && key.curve == curve
            && key.parsed.as_ref() == point
        {
            return Ok(Self::Ec(key.clone()));
        }
        let parsed =
            ParsedPublicKey::new(curve.verifier(), point).map_err(|_| KeyFault::NotOnCurve)?;
        Ok(Self::Ec(Arc::new(EcKey { curve, parsed })))
    }

    /// The key with this modulus and this exponent, big-endian. Shares `known` if it is equal.
    pub(crate) fn rsa(
        modulus: &[u8],
        exponent: &[u8],
        known: Option<&Self>,
    ) -> Result<Self, KeyFault> {
        let modulus = without_leading_zeros(modulus);
        let exponent = without_leading_zeros(exponent);
        if let Some(Self::Rsa(key)) = known
            && (&*key.modulus, &*key.exponent) == (modulus, exponent)
        {
            return Ok(Self::Rsa(key.clone()));
        }
        let is_odd = |number: &[u8]| number.last().is_some_and(|last| last & 1 == 1);
        // aws-lc accepts 1024 bits. Without an upper limit, a bundle could make each check slow.
        if !is_odd(modulus) || !(2048..=8192).contains(&bits(modulus)) {
            return Err(KeyFault::Modulus);
        }
        if !is_odd(exponent) || !(2..=33).contains(&bits(exponent)) {
            return Err(KeyFault::Exponent);
        }
        Ok(Self::Rsa(Arc::new(RsaKey {
            modulus: modulus.into(),
            exponent: exponent.into(),
            parsed: [const { OnceLock::new() }; 6],
        })))
    }

    /// The algorithms that fit the type and the curve.
    pub(crate) fn algorithms(&self) -> AlgorithmSet {
        match self {
            Self::Ec(key) => AlgorithmSet::only(key.curve.algorithm()),
            Self::Rsa(_) => Algorithm::ALL
                .into_iter()
                .filter(|algorithm| rsa_verifier(*algorithm).is_some())
                .fold(AlgorithmSet::NONE, AlgorithmSet::with),
        }
    }

    /// Whether `signature` over `message` is by this key; false if the algorithm does not fit.
    pub(crate) fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ec(key) => {
                key.curve.algorithm() == algorithm
                    && key.parsed.verify_sig(message, signature).is_ok()
            }
            Self::Rsa(key) => key
                .parsed(algorithm)
                .is_some_and(|parsed| parsed.verify_sig(message, signature).is_ok()),
        }
    }

    /// Whether both are the same parsed key.
    #[cfg(test)]
    pub(crate) fn is_one_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ec(a), Self::Ec(b)) => Arc::ptr_eq(a, b),
            (Self::Rsa(a), Self::Rsa(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Ec(key) => match key.curve {
                Curve::P256 => "EC P-256",
                Curve::P384 => "EC P-384",
                Curve::P521 => "EC P-521",
            },
            Self::Rsa(_) => "RSA",
        }
    }
}

/// The key itself is compared, not which algorithms it was parsed for.
impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ec(a), Self::Ec(b)) => {
                Arc::ptr_eq(a, b) || a.curve == b.curve && a.parsed.as_ref() == b.parsed.as_ref()
            }
            (Self::Rsa(a), Self::Rsa(b)) => {
                Arc::ptr_eq(a, b) || a.modulus == b.modulus && a.exponent == b.exponent
            }
            _ => false,
        }
    }
}

// === RSA ===

impl RsaKey {
    fn parsed(&self, algorithm: Algorithm) -> Option<&ParsedPublicKey> {
        let (slot, verifier) = rsa_verifier(algorithm)?;
        let parse = || {
            RsaPublicKeyComponents {
                n: &self.modulus,
                e: &self.exponent,
            }
            .to_parsed_public_key(verifier)
            .ok()
        };
        self.parsed.get(slot)?.get_or_init(parse).as_ref()
    }
}

/// The salt of PS… is as long as the hash (RFC 7518 section 3.5); aws-lc checks that.
const fn rsa_verifier(algorithm: Algorithm) -> Option<(usize, &'static RsaParameters)> {
    match algorithm {
        Algorithm::RS256 => Some((0, &RSA_PKCS1_2048_8192_SHA256)),
        Algorithm::RS384 => Some((1, &RSA_PKCS1_2048_8192_SHA384)),
        Algorithm::RS512 => Some((2, &RSA_PKCS1_2048_8192_SHA512)),
        Algorithm::PS256 => Some((3, &RSA_PSS_2048_8192_SHA256)),
        Algorithm::PS384 => Some((4, &RSA_PSS_2048_8192_SHA384)),
        Algorithm::PS512 => Some((5, &RSA_PSS_2048_8192_SHA512)),
        Algorithm::ES256 | Algorithm::ES384 | Algorithm::ES512 => None,
    }
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

/// The length in bits of a big-endian number without leading zeros.
fn bits(number: &[u8]) -> usize {
    let first = number.first().map_or(0, |first| first.leading_zeros());
    (number.len() * 8).saturating_sub(first as usize)
}
