//! What the tests of this area share: an issuer with one key, bundles that change, and requests.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower_spiffe::bundle::{BundleAnswer, BundleSource, CannotJudge, JwtBundle, JwtBundleSet};
use tower_spiffe::svid::{Validator, ValidatorBuilder};
use tower_spiffe::{Clock, SystemClock, TrustDomain};

pub const AUDIENCE: &str = "spiffe://x/reports";
pub const WEB: &str = "spiffe://x/web";
pub const OPS: &str = "spiffe://x/ops";

/// An issuer with one ES256 key.
pub struct Signer {
    pair: EcdsaKeyPair,
    pub kid: String,
    pub trust_domain: TrustDomain,
}

impl Signer {
    pub fn new(trust_domain: &str, kid: &str) -> Self {
        Self {
            pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            kid: kid.to_owned(),
            trust_domain: trust_domain.parse().unwrap(),
        }
    }

    pub fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        json!({
            "kty": "EC", "crv": "P-256", "kid": self.kid,
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]),
            "y": URL_SAFE_NO_PAD.encode(&point[33..]),
        })
    }

    pub fn bundle(&self) -> JwtBundle {
        bundle_of(&self.trust_domain, &[self])
    }

    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self
            .pair
            .sign(&SystemRandom::new(), signed.as_bytes())
            .unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    pub fn header(&self) -> Value {
        json!({ "alg": "ES256", "kid": self.kid, "typ": "JWT" })
    }

    /// A token for us, good for five minutes, with these claims put in or (null) taken out.
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
    JwtBundle::from_jwks(
        trust_domain.clone(),
        json!({ "keys": keys }).to_string().as_bytes(),
    )
    .unwrap()
}

/// Bundles that a test changes. Clones are handles to the same ones.
#[derive(Clone)]
pub struct Bundles(Arc<Inner>);

struct Inner {
    set: Mutex<Result<JwtBundleSet, CannotJudge>>,
    revision: watch::Sender<u64>,
    pub waits: AtomicU64,
}

impl Bundles {
    pub fn of(bundles: impl IntoIterator<Item = JwtBundle>) -> Self {
        Self(Arc::new(Inner {
            set: Mutex::new(Ok(bundles.into_iter().collect())),
            revision: watch::Sender::new(0),
            waits: AtomicU64::new(0),
        }))
    }

    pub fn set(&self, bundles: impl IntoIterator<Item = JwtBundle>) {
        *self.0.set.lock().unwrap() = Ok(bundles.into_iter().collect());
        self.0.revision.send_modify(|revision| *revision += 1);
    }

    pub fn cannot_judge(&self, why: CannotJudge) {
        *self.0.set.lock().unwrap() = Err(why);
        self.0.revision.send_modify(|revision| *revision += 1);
    }

    /// How often somebody began to wait for a change.
    pub fn waits(&self) -> u64 {
        self.0.waits.load(Ordering::SeqCst)
    }
}

impl BundleSource for Bundles {
    fn revision(&self) -> Result<u64, CannotJudge> {
        match &*self.0.set.lock().unwrap() {
            Ok(_) => Ok(*self.0.revision.borrow()),
            Err(why) => Err(*why),
        }
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        match &*self.0.set.lock().unwrap() {
            Ok(set) => match set.get(trust_domain) {
                Some(bundle) => BundleAnswer::Ready(bundle.clone()),
                None => BundleAnswer::UnknownTrustDomain,
            },
            Err(why) => BundleAnswer::CannotJudge(*why),
        }
    }

    fn changed_since(&self, seen: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        self.0.waits.fetch_add(1, Ordering::SeqCst);
        let mut revision = self.0.revision.subscribe();
        Some(Box::pin(async move {
            let _ = revision.wait_for(|now| *now != seen).await;
        }))
    }
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
