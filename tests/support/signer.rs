//! Signs tokens, good and hostile, with the published test keys of the conformance vectors.

use std::sync::LazyLock;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    self as lc, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, ParsedPublicKey, RsaEncoding,
    RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tower_spiffe::TrustDomain;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::{JwtBundle, JwtBundleSet};

pub const AUDIENCE: &str = "spiffe://td.test/reports";
pub const SUBJECT: &str = "spiffe://td.test/web";
/// The time of the tests.
pub const NOW: i64 = 1_790_000_000;

pub static VECTORS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../data/jwt-svid.json")).unwrap());

/// A private key with an algorithm to sign with.
pub struct Signer {
    key: Key,
    pub algorithm: Algorithm,
    pub key_id: String,
}

enum Key {
    Ec(EcdsaKeyPair, &'static str),
    Rsa(RsaKeyPair),
}

pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Returns the PKCS#8 DER of a key of the vectors, trusted or not.
fn der(name: &str) -> Vec<u8> {
    let pem = VECTORS["keys"][name]
        .as_str()
        .or(VECTORS["untrusted_keys"][name].as_str());
    let pem = pem.unwrap().lines().filter(|line| !line.starts_with("--"));
    STANDARD.decode(pem.collect::<String>()).unwrap()
}

fn curve(algorithm: Algorithm) -> (&'static EcdsaSigningAlgorithm, &'static str) {
    match algorithm {
        Algorithm::ES256 => (&lc::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
        Algorithm::ES384 => (&lc::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
        _ => (&lc::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
    }
}

fn padding(algorithm: Algorithm) -> &'static dyn RsaEncoding {
    match algorithm {
        Algorithm::RS256 => &lc::RSA_PKCS1_SHA256,
        Algorithm::RS384 => &lc::RSA_PKCS1_SHA384,
        Algorithm::RS512 => &lc::RSA_PKCS1_SHA512,
        Algorithm::PS256 => &lc::RSA_PSS_SHA256,
        Algorithm::PS384 => &lc::RSA_PSS_SHA384,
        _ => &lc::RSA_PSS_SHA512,
    }
}

impl Signer {
    /// The key with this name in the vectors. The name is also its key ID.
    pub fn new(name: &str, algorithm: Algorithm) -> Self {
        let der = der(name);
        let key = if algorithm.as_str().starts_with("ES") {
            let (signing, curve) = curve(algorithm);
            Key::Ec(EcdsaKeyPair::from_pkcs8(signing, &der).unwrap(), curve)
        } else {
            Key::Rsa(RsaKeyPair::from_pkcs8(&der).unwrap())
        };
        Self {
            key,
            algorithm,
            key_id: name.to_owned(),
        }
    }

    /// A new key of an ES algorithm.
    pub fn generate(algorithm: Algorithm, key_id: &str) -> Self {
        let (signing, curve) = curve(algorithm);
        Self {
            key: Key::Ec(EcdsaKeyPair::generate(signing).unwrap(), curve),
            algorithm,
            key_id: key_id.to_owned(),
        }
    }

    /// A key of the vectors for this algorithm.
    pub fn for_algorithm(algorithm: Algorithm) -> Self {
        let name = match algorithm {
            Algorithm::ES256 => "p256",
            Algorithm::ES384 => "p384",
            Algorithm::ES512 => "p521",
            _ => "rsa2048",
        };
        Self::new(name, algorithm)
    }

    pub fn with_key_id(mut self, key_id: &str) -> Self {
        self.key_id = key_id.to_owned();
        self
    }

    /// The public key as an uncompressed point or as DER.
    pub fn public(&self) -> Vec<u8> {
        match &self.key {
            Key::Ec(key, _) => key.public_key().as_ref().to_vec(),
            Key::Rsa(key) => key.public_key().as_ref().to_vec(),
        }
    }

    /// The public key as the DER of a SubjectPublicKeyInfo.
    pub fn spki(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = match &self.key {
            Key::Ec(key, _) => key.public_key().as_der().unwrap(),
            Key::Rsa(key) => key.public_key().as_der().unwrap(),
        };
        der.as_ref().to_vec()
    }

    /// The parsed key of the crypto library, for comparison in benches.
    pub fn parsed(&self) -> ParsedPublicKey {
        let ec: &'static dyn VerificationAlgorithm = match self.algorithm {
            Algorithm::ES256 => &lc::ECDSA_P256_SHA256_FIXED,
            Algorithm::ES384 => &lc::ECDSA_P384_SHA384_FIXED,
            Algorithm::ES512 => &lc::ECDSA_P521_SHA512_FIXED,
            rsa => {
                let params = match rsa {
                    Algorithm::RS256 => &lc::RSA_PKCS1_2048_8192_SHA256,
                    _ => &lc::RSA_PSS_2048_8192_SHA256,
                };
                let public = self.public();
                let (n, e) = rsa_numbers(&public);
                let key = RsaPublicKeyComponents { n, e };
                return key.to_parsed_public_key(params).unwrap();
            }
        };
        ParsedPublicKey::new(ec, self.public()).unwrap()
    }

    pub fn jwk(&self) -> Value {
        match &self.key {
            Key::Ec(key, curve) => {
                let point = key.public_key().as_ref();
                let (x, y) = point[1..].split_at(point.len() / 2);
                json!({"kty": "EC", "kid": self.key_id, "crv": curve,
                       "x": base64(x), "y": base64(y)})
            }
            Key::Rsa(key) => {
                let (n, e) = rsa_numbers(key.public_key().as_ref());
                json!({"kty": "RSA", "kid": self.key_id, "n": base64(n), "e": base64(e)})
            }
        }
    }

    pub fn sign_bytes(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Ec(key, _) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(padding(self.algorithm), &random, message, &mut signature)
                    .unwrap();
                signature
            }
        }
    }

    /// Signs exactly these texts.
    pub fn sign_texts(&self, header: &str, payload: &str) -> String {
        self.sign_parts(&base64(header), &base64(payload))
    }

    /// Signs exactly these two parts.
    pub fn sign_parts(&self, header: &str, payload: &str) -> String {
        let signed = format!("{header}.{payload}");
        let signature = base64(self.sign_bytes(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    pub fn header(&self) -> Value {
        json!({"alg": self.algorithm.as_str(), "kid": self.key_id, "typ": "JWT"})
    }

    /// Signs these claims with the default header.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_texts(&self.header().to_string(), &claims.to_string())
    }

    /// A valid token with a lifetime of five minutes.
    pub fn token(&self) -> String {
        self.sign(&claims())
    }
}

/// The claims of a valid token.
pub fn claims() -> Value {
    json!({"sub": SUBJECT, "aud": [AUDIENCE], "exp": NOW + 300, "iat": NOW})
}

/// The claims of a valid token with one claim changed.
pub fn claims_with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

/// Modulus and exponent from PKCS#1 DER (RFC 8017 A.1.1): a sequence of two integers.
fn rsa_numbers(der: &[u8]) -> (&[u8], &[u8]) {
    fn value(der: &[u8]) -> (&[u8], &[u8]) {
        let (len, rest) = match der[1] {
            0x82 => (usize::from(der[2]) << 8 | usize::from(der[3]), &der[4..]),
            0x81 => (usize::from(der[2]), &der[3..]),
            short => (usize::from(short), &der[2..]),
        };
        rest.split_at(len)
    }
    fn unsigned(number: &[u8]) -> &[u8] {
        if number[0] == 0 { &number[1..] } else { number }
    }
    let (sequence, _) = value(der);
    let (modulus, rest) = value(sequence);
    let (exponent, _) = value(rest);
    (unsigned(modulus), unsigned(exponent))
}

pub fn bundle(trust_domain: &str, keys: &[Value]) -> JwtBundle {
    let jwks = json!({ "keys": keys }).to_string();
    JwtBundle::from_jwks(TrustDomain::parse(trust_domain).unwrap(), jwks.as_bytes()).unwrap()
}

pub fn set_of(trust_domain: &str, keys: &[Value]) -> JwtBundleSet {
    JwtBundleSet::from_iter([bundle(trust_domain, keys)])
}
