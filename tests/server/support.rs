//! Shared helpers: an issuer with one key, bundles that change, and requests.

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request};
use serde_json::{Value, json};
use tower_spiffe::TrustDomain;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::JwtBundle;
use tower_spiffe::clock::{Clock, SystemClock};
use tower_spiffe::verify::{Validator, ValidatorBuilder};
pub use tower_spiffe_test_support::bundles::Bundles;
use tower_spiffe_test_support::signer;

pub const AUDIENCE: &str = "spiffe://x/reports";
pub const WEB: &str = "spiffe://x/web";
pub const OPS: &str = "spiffe://x/ops";

/// An issuer with its own ES256 key.
pub struct Signer {
    key: signer::Signer,
    pub trust_domain: TrustDomain,
}

impl Signer {
    pub fn new(trust_domain: &str, kid: &str) -> Self {
        Self {
            key: signer::Signer::generate(Algorithm::ES256, kid),
            trust_domain: trust_domain.parse().unwrap(),
        }
    }

    pub fn jwk(&self) -> Value {
        self.key.jwk()
    }

    pub fn bundle(&self) -> JwtBundle {
        bundle_of(&self.trust_domain, &[self])
    }

    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.key
            .sign_texts(&header.to_string(), &claims.to_string())
    }

    pub fn header(&self) -> Value {
        self.key.header()
    }

    /// Returns a token for this service, valid for five minutes, with changed or (null) removed claims.
    pub fn token_with(&self, id: &str, changes: Value) -> String {
        let now = SystemClock::shared().now().secs();
        let mut claims = json!({ "sub": id, "aud": [AUDIENCE], "iat": now, "exp": now + 300 });
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        self.sign(&self.header(), &claims)
    }

    pub fn token(&self, id: &str) -> String {
        self.token_with(id, json!({}))
    }
}

pub fn bundle_of(trust_domain: &TrustDomain, signers: &[&Signer]) -> JwtBundle {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    signer::bundle(trust_domain.name(), &keys)
}

/// A trust domain `x` with one issuer, and a validator for [`AUDIENCE`].
pub struct World {
    pub issuer: Signer,
    pub bundles: Bundles,
    pub validator: Validator,
}

impl World {
    pub fn new() -> Self {
        Self::with(|builder| builder)
    }

    pub fn with(configure: impl FnOnce(ValidatorBuilder) -> ValidatorBuilder) -> Self {
        let issuer = Signer::new("x", "k1");
        let bundles = Bundles::of([issuer.bundle()]);
        let builder = Validator::builder(bundles.clone()).audience(AUDIENCE);
        let validator = configure(builder).build().unwrap();
        Self {
            issuer,
            bundles,
            validator,
        }
    }

    pub fn bearer(&self, id: &str) -> HeaderValue {
        bearer(&self.issuer.token(id))
    }

    pub fn request(&self, id: &str) -> Request<String> {
        with_authorization(&self.bearer(id))
    }
}

pub fn bearer(token: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("Bearer {token}")).unwrap()
}

pub fn with_authorization(value: &HeaderValue) -> Request<String> {
    Request::builder()
        .header(AUTHORIZATION, value)
        .body(String::new())
        .unwrap()
}
