//! Keys, key sets and tokens for all crates. Each run creates new ones.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    self as lc, EcdsaKeyPair, EcdsaSigningAlgorithm, EcdsaVerificationAlgorithm, KeyPair,
    ParsedPublicKey, RsaEncoding, RsaKeyPair, RsaParameters, RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tower_spiffe::bundle::Algorithm;

pub const TRUST_DOMAIN: &str = "prod.example";
pub const SUBJECT: &str = "spiffe://prod.example/web";
pub const AUDIENCE: &str = "spiffe://prod.example/reports";

pub const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::ES512,
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// A private key. Its ID has SPIRE's format: 32 letters and digits.
pub struct Signer {
    pub algorithm: Algorithm,
    pub key_id: String,
    pair: Pair,
}

enum Pair {
    Ec(Box<EcdsaKeyPair>, &'static str),
    Rsa(Box<RsaKeyPair>),
}

struct Ec {
    curve: &'static str,
    signing: &'static EcdsaSigningAlgorithm,
    verification: &'static EcdsaVerificationAlgorithm,
}

fn ec(algorithm: Algorithm) -> Option<Ec> {
    let (curve, signing, verification) = match algorithm {
        Algorithm::ES256 => (
            "P-256",
            &lc::ECDSA_P256_SHA256_FIXED_SIGNING,
            &lc::ECDSA_P256_SHA256_FIXED,
        ),
        Algorithm::ES384 => (
            "P-384",
            &lc::ECDSA_P384_SHA384_FIXED_SIGNING,
            &lc::ECDSA_P384_SHA384_FIXED,
        ),
        Algorithm::ES512 => (
            "P-521",
            &lc::ECDSA_P521_SHA512_FIXED_SIGNING,
            &lc::ECDSA_P521_SHA512_FIXED,
        ),
        _ => return None,
    };
    Some(Ec {
        curve,
        signing,
        verification,
    })
}

fn rsa(algorithm: Algorithm) -> (&'static dyn RsaEncoding, &'static RsaParameters) {
    match algorithm {
        Algorithm::RS256 => (&lc::RSA_PKCS1_SHA256, &lc::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => (&lc::RSA_PKCS1_SHA384, &lc::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => (&lc::RSA_PKCS1_SHA512, &lc::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => (&lc::RSA_PSS_SHA256, &lc::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => (&lc::RSA_PSS_SHA384, &lc::RSA_PSS_2048_8192_SHA384),
        _ => (&lc::RSA_PSS_SHA512, &lc::RSA_PSS_2048_8192_SHA512),
    }
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    pub fn new(algorithm: Algorithm, key_id: &str) -> Self {
        let pair = match ec(algorithm) {
            Some(ec) => Pair::Ec(
                Box::new(EcdsaKeyPair::generate(ec.signing).unwrap()),
                ec.curve,
            ),
            None => Pair::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())),
        };
        Self {
            algorithm,
            key_id: key_id.to_owned(),
            pair,
        }
    }

    pub fn usual() -> Self {
        Self::new(Algorithm::ES256, "C6vs25welZOx6WksNYfbMfiw9l96pMnD")
    }

    /// Returns the public key as SPIRE writes it: without `alg` and `use`.
    pub fn jwk(&self) -> Value {
        self.jwk_named(&self.key_id)
    }

    pub fn jwk_named(&self, key_id: &str) -> Value {
        match &self.pair {
            Pair::Ec(pair, curve) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "kid": key_id, "crv": curve, "x": base64(x), "y": base64(y)})
            }
            Pair::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({"kty": "RSA", "kid": key_id, "n": base64(&public.n), "e": base64(&public.e)})
            }
        }
    }

    /// Returns a key set with only this key.
    pub fn jwks(&self) -> String {
        json!({"keys": [self.jwk()]}).to_string()
    }

    /// Returns the key in the form that aws-lc-rs verifies fastest.
    pub fn parsed(&self) -> ParsedPublicKey {
        match &self.pair {
            Pair::Ec(pair, _) => {
                let ec = ec(self.algorithm).unwrap();
                ParsedPublicKey::new(ec.verification, pair.public_key().as_ref()).unwrap()
            }
            Pair::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                let public = RsaPublicKeyComponents {
                    n: public.n,
                    e: public.e,
                };
                public.to_parsed_public_key(rsa(self.algorithm).1).unwrap()
            }
        }
    }

    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = format!(
            "{}.{}",
            base64(header.to_string()),
            base64(claims.to_string())
        );
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Ec(pair, _) => base64(pair.sign(&random, signed.as_bytes()).unwrap()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(
                    rsa(self.algorithm).0,
                    &random,
                    signed.as_bytes(),
                    &mut signature,
                )
                .unwrap();
                base64(signature)
            }
        };
        format!("{signed}.{signature}")
    }

    pub fn header(&self) -> Value {
        json!({"alg": self.algorithm.as_str(), "kid": self.key_id, "typ": "JWT"})
    }

    pub fn token(&self, claims: &Value) -> String {
        self.sign(&self.header(), claims)
    }

    /// Returns this number of different valid tokens.
    pub fn tokens(&self, count: usize) -> Vec<String> {
        (0..count).map(|n| self.token(&claims(n))).collect()
    }
}

pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// Returns the claims of a valid token. `jti` makes the tokens different; SPIRE's tokens have none.
pub fn claims(n: usize) -> Value {
    json!({
        "sub": SUBJECT,
        "aud": [AUDIENCE],
        "iat": now(),
        "exp": now() + 6 * 3600,
        "jti": format!("{n:016x}"),
    })
}
