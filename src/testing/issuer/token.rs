//! Valid and invalid tokens.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Issuer;
use crate::clock::UnixTime;
use crate::jwt::Algorithm;
use crate::testing::{misuse, must};

/// A token before it is signed. Initially it is like a token of SPIRE: the header has exactly
/// `alg`, `kid` and `typ`; the claims are `sub`, `aud` (always a list), `iat` (now) and `exp`. The
/// methods change it, without a check that the result is valid.
///
/// ```
/// use std::time::Duration;
/// use tower_spiffe::testing::Issuer;
///
/// let issuer = Issuer::new("example.org")?;
/// let web = || issuer.token("spiffe://example.org/web", "db");
///
/// let good = web().claim("tenant", 7).sign();
/// let expired = web().expired(Duration::from_secs(120)).sign();
/// let forged = web().signed_by(&Issuer::new("example.org")?).sign();
/// let unsigned = web().header("alg", "none").signature(b"").sign();
/// assert!(unsigned.ends_with('.'));
/// # let _ = (good, expired, forged);
/// # Ok::<(), tower_spiffe::identity::SpiffeIdError>(())
/// ```
#[derive(Clone)]
#[must_use = "nothing is signed before `sign` or `bearer`"]
pub struct TokenBuilder {
    issuer: Issuer,
    signer: Option<Issuer>,
    header: Map<String, Value>,
    claims: Map<String, Value>,
    algorithm: Option<Algorithm>,
    kid: Option<String>,
    raw_header: Option<Vec<u8>>,
    raw_payload: Option<Vec<u8>>,
    signature: Option<Vec<u8>>,
    // Members set or removed by `header` and `without_header`: signing does not change them.
    headers_set: Vec<String>,
}

impl TokenBuilder {
    pub(in crate::testing) fn new<'a>(
        issuer: Issuer,
        spiffe_id: &str,
        audiences: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let now = issuer.clock().now();
        let life = issuer.token_life();
        let this = Self {
            issuer,
            signer: None,
            header: Map::new(),
            claims: Map::new(),
            algorithm: None,
            kid: None,
            raw_header: None,
            raw_payload: None,
            signature: None,
            headers_set: Vec::new(),
        };
        this.claim("sub", spiffe_id)
            .audiences(audiences)
            .issued_at(now)
            .expires_at(now.saturating_add(life))
    }

    /// Adds an audience.
    pub fn audience(mut self, audience: &str) -> Self {
        match self.claims.get_mut("aud") {
            Some(Value::Array(all)) => {
                all.push(audience.into());
                self
            }
            _ => self.audiences([audience]),
        }
    }

    /// Replaces the audiences by this list.
    pub fn audiences<'a>(self, audiences: impl IntoIterator<Item = &'a str>) -> Self {
        let audiences: Vec<&str> = audiences.into_iter().collect();
        self.claim("aud", audiences)
    }

    /// Sets `iat` to now, and `exp` to `life` after that.
    pub fn expires_in(self, life: Duration) -> Self {
        let now = self.issuer.clock().now();
        self.issued_at(now).expires_at(now.saturating_add(life))
    }

    /// Makes the token expired: its `exp` is `ago` before now, and its lifetime is the default of
    /// the issuer.
    pub fn expired(self, ago: Duration) -> Self {
        let expiry = self.issuer.clock().now().saturating_sub(ago);
        let life = self.issuer.token_life();
        self.issued_at(expiry.saturating_sub(life))
            .expires_at(expiry)
    }

    /// Sets `exp` to this time, rounded down to a second.
    pub fn expires_at(self, time: UnixTime) -> Self {
        self.claim("exp", time.secs())
    }

    /// Sets `iat` to this time, rounded down to a second.
    pub fn issued_at(self, time: UnixTime) -> Self {
        self.claim("iat", time.secs())
    }

    /// Sets a claim.
    ///
    /// # Panics
    /// `value` cannot be written as JSON.
    #[track_caller]
    pub fn claim(mut self, name: &str, value: impl Serialize) -> Self {
        self.claims.insert(name.to_owned(), json(value));
        self
    }

    /// Removes this claim.
    pub fn without_claim(mut self, name: &str) -> Self {
        self.claims.remove(name);
        self
    }

    /// Sets a member of the header. It does not change the key or the algorithm of the signature: see
    /// [`algorithm`](Self::algorithm) and [`key`](Self::key).
    ///
    /// # Panics
    /// `value` cannot be written as JSON.
    #[track_caller]
    pub fn header(mut self, name: &str, value: impl Serialize) -> Self {
        self.headers_set.push(name.to_owned());
        self.header.insert(name.to_owned(), json(value));
        self
    }

    /// Removes this member from the header.
    pub fn without_header(mut self, name: &str) -> Self {
        self.headers_set.push(name.to_owned());
        self.header.remove(name);
        self
    }

    /// Signs with this algorithm, and sets `alg`. The key is the newest one in the issuer's bundle that
    /// fits it. If no key does, a new one is added.
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = Some(algorithm);
        self
    }

    /// Signs with the issuer's key of this ID, which may be revoked or not yet active.
    pub fn key(mut self, kid: &str) -> Self {
        self.kid = Some(kid.to_owned());
        self
    }

    /// Forges the token: signs with the key of another issuer, under the key ID of this one.
    pub fn signed_by(mut self, other: &Issuer) -> Self {
        self.signer = Some(other.clone());
        self
    }

    /// Replaces the whole header by these bytes.
    pub fn raw_header(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.raw_header = Some(bytes.into());
        self
    }

    /// Replaces the whole claims by these bytes.
    pub fn raw_payload(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.raw_payload = Some(bytes.into());
        self
    }

    /// Replaces the signature by these bytes.
    pub fn signature(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.signature = Some(bytes.into());
        self
    }

    /// Signs the token and returns it.
    ///
    /// # Panics
    /// The issuer never had the key of [`key`](Self::key).
    #[track_caller]
    pub fn sign(self) -> String {
        self.sign_and_name().0
    }

    /// Signs the token, and returns it with the ID of its key.
    #[track_caller]
    pub(in crate::testing) fn sign_and_name(self) -> (String, String) {
        let own = match (&self.kid, self.algorithm) {
            (Some(kid), _) => match self.issuer.key(kid) {
                Some(key) => key,
                None => misuse("the issuer never had a key with this ID"),
            },
            (None, Some(algorithm)) => self.issuer.key_for(algorithm),
            (None, None) => self.issuer.signing(),
        };
        let algorithm = self.algorithm.unwrap_or(own.algorithm());
        let signing = match &self.signer {
            Some(signer) => signer.key_for(algorithm),
            None => own.clone(),
        };

        let mut header = self.header;
        for (name, value) in [
            ("alg", algorithm.as_str()),
            ("kid", own.kid()),
            ("typ", "JWT"),
        ] {
            if !self.headers_set.iter().any(|set| set == name) {
                header.insert(name.to_owned(), value.into());
            }
        }
        let header = self.raw_header.unwrap_or_else(|| text(&header));
        let payload = self.raw_payload.unwrap_or_else(|| text(&self.claims));
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(payload, &mut token);
        let signature = self
            .signature
            .unwrap_or_else(|| signing.sign(algorithm, token.as_bytes()));
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        (token, own.kid().to_owned())
    }

    /// Signs the token and returns it as the value of an `authorization` header, marked sensitive.
    ///
    /// # Panics
    /// As [`sign`](Self::sign).
    #[track_caller]
    pub fn bearer(self) -> HeaderValue {
        bearer(&self.sign())
    }
}

/// `Bearer` and the token, marked sensitive.
pub(in crate::testing) fn bearer(token: &str) -> HeaderValue {
    let mut value = must(
        HeaderValue::try_from(format!("Bearer {token}")),
        "base64url and dots are valid in a header",
    );
    value.set_sensitive(true);
    value
}

#[track_caller]
fn json(value: impl Serialize) -> Value {
    must(
        serde_json::to_value(value),
        "a claim or header member can be written as JSON",
    )
}

fn text(members: &Map<String, Value>) -> Vec<u8> {
    Value::Object(members.clone()).to_string().into_bytes()
}

impl fmt::Debug for TokenBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenBuilder")
            .field("issuer", &self.issuer)
            .field("claims", &self.claims)
            .finish_non_exhaustive()
    }
}
