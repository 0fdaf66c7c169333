//! The private keys of an issuer.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
    RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};

use super::jwks::{Jwk, PublicPart};
use crate::jwt::Algorithm;
use crate::testing::must;

/// A key with its ID.
pub(super) struct SigningKey {
    kid: String,
    algorithm: Algorithm,
    pair: Pair,
}

enum Pair {
    Ec(EcdsaKeyPair, &'static str),
    // One RSA key is used for all six algorithms: its JWK has no `alg`, as those of SPIRE.
    Rsa(Box<RsaKeyPair>),
}

impl SigningKey {
    /// Generates a key for this algorithm, with an ID as in SPIRE: 32 letters and digits.
    pub(super) fn generate(algorithm: Algorithm) -> Self {
        let kid = std::iter::repeat_with(fastrand::alphanumeric)
            .take(32)
            .collect();
        let pair = match algorithm {
            Algorithm::ES256 => ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
            Algorithm::ES384 => ec(&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
            Algorithm::ES512 => ec(&ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
            _ => Pair::Rsa(Box::new(must(
                RsaKeyPair::generate(KeySize::Rsa2048),
                "an RSA key can be generated",
            ))),
        };
        Self {
            kid,
            algorithm,
            pair,
        }
    }

    pub(super) fn kid(&self) -> &str {
        &self.kid
    }

    /// The algorithm that it signs with by default.
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether it can sign with this algorithm.
    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        match self.pair {
            Pair::Ec(..) => self.algorithm == algorithm,
            Pair::Rsa(_) => rsa_encoding(algorithm).is_some(),
        }
    }

    /// Signs with this algorithm, or with the default one if it does not fit: a test with a wrong
    /// algorithm in the header still gets a signature.
    pub(super) fn sign(&self, algorithm: Algorithm, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ec(pair, _) => must(pair.sign(&random, message), "an EC key signs")
                .as_ref()
                .to_vec(),
            Pair::Rsa(pair) => {
                let encoding = rsa_encoding(algorithm)
                    .or_else(|| rsa_encoding(self.algorithm))
                    .unwrap_or(&RSA_PKCS1_SHA256);
                let mut signature = vec![0; pair.public_modulus_len()];
                must(
                    pair.sign(encoding, &random, message, &mut signature),
                    "an RSA key signs",
                );
                signature
            }
        }
    }

    /// The public key.
    pub(super) fn jwk(&self) -> Jwk<'_> {
        let public = match &self.pair {
            Pair::Ec(pair, crv) => {
                // SEC1, uncompressed: 4, then both coordinates at full length.
                let point = pair.public_key().as_ref().get(1..).unwrap_or_default();
                let (x, y) = point.split_at(point.len() / 2);
                PublicPart::ec(crv, x, y)
            }
            Pair::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                PublicPart::rsa(&public.n, &public.e)
            }
        };
        Jwk::new(&self.kid, public)
    }
}

fn ec(algorithm: &'static EcdsaSigningAlgorithm, crv: &'static str) -> Pair {
    let pair = must(
        EcdsaKeyPair::generate(algorithm),
        "an EC key can be generated",
    );
    Pair::Ec(pair, crv)
}

fn rsa_encoding(algorithm: Algorithm) -> Option<&'static dyn RsaEncoding> {
    Some(match algorithm {
        Algorithm::RS256 => &RSA_PKCS1_SHA256,
        Algorithm::RS384 => &RSA_PKCS1_SHA384,
        Algorithm::RS512 => &RSA_PKCS1_SHA512,
        Algorithm::PS256 => &RSA_PSS_SHA256,
        Algorithm::PS384 => &RSA_PSS_SHA384,
        Algorithm::PS512 => &RSA_PSS_SHA512,
        _ => return None,
    })
}
