//! Who is compared, what each one is to the others, and what must be said about it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A row of a table.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Who {
    pub name: Cow<'static, str>,
    pub role: Role,
    /// Rows of one table are compared where they do the same job.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub job: Cow<'static, str>,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Ours,
    Peer,
    /// What nobody who does the work can go below: the work itself, or none at all.
    Limit,
}

impl Who {
    const fn new(name: &'static str, role: Role) -> Self {
        Self {
            name: Cow::Borrowed(name),
            role,
            job: Cow::Borrowed(""),
        }
    }

    pub const fn peer(name: &'static str) -> Self {
        Self::new(name, Role::Peer)
    }

    pub const fn limit(name: &'static str) -> Self {
        Self::new(name, Role::Limit)
    }

    /// The same one, doing this in particular.
    pub fn with(&self, what: &str) -> Self {
        Self {
            name: Cow::Owned(format!("{}{what}", self.name)),
            ..self.clone()
        }
    }

    pub fn job(self, job: &'static str) -> Self {
        Self {
            job: Cow::Borrowed(job),
            ..self
        }
    }
}

pub const OURS: Who = Who::new("**tower-spiffe**", Role::Ours);

// Verification.
pub const RAW: Who = Who::limit("aws-lc-rs alone (the limit)");
pub const RAW_AGAIN: Who = Who::limit("aws-lc-rs alone, once more (the noise)");
pub const SPIFFE: Who = Who::peer("spiffe 0.19 `parse_and_validate` [^spiffe]");
pub const JSONWEBTOKEN: Who = Who::peer("jsonwebtoken 12.0, key prebuilt [^jsonwebtoken]");
pub const JWT_AUTHORIZER: Who = Who::peer("jwt-authorizer 0.15 [^jwt-authorizer]");
pub const AXUM_JWT_AUTH: Who = Who::peer("axum-jwt-auth 0.7 [^axum-jwt-auth]");

// Layers.
pub const NO_LAYER: Who = Who::limit("no layer at all");
pub const NO_LAYER_AGAIN: Who = Who::limit("no layer at all, once more (the noise)");
pub const NO_LAYER_AXUM_07: Who = Who::limit("no layer at all, the body of axum 0.7");
pub const STATIC: Who = Who::limit("tower-http 0.7 `bearer` [^static]");
pub const HAND_MADE: Who =
    Who::peer("tower-http 0.7 `custom` + jsonwebtoken 12.0, key by `kid` [^by-hand]");
pub const HAND_MADE_SPIFFE: Who = Who::peer("tower-http 0.7 `custom` + spiffe 0.19 [^spiffe]");
pub const OAUTH2: Who = Who::peer("tower-oauth2-resource-server 0.12 [^oauth2]");
pub const SLIM: Who = Who::peer("agntcy-slim-auth 0.17, a process of its own [^slim-auth]");

/// What each one does less, or otherwise.
const FOOTNOTES: &[(&str, &str)] = &[
    (
        "spiffe",
        "Parses the key and the claims at each verification and keeps no verdict. Knows no ES512. \
         The policy (who may call) is left to the user: `custom` lets in everybody who was verified, \
         ours asks `Allow`.",
    ),
    (
        "jsonwebtoken",
        "It does less: it was given its one key and looks for none, reads the claims that the user \
         names, knows no SPIFFE ID, no trust domain, no policy and no ES512. It accepts a token \
         without `aud`, and header fields that JWT-SVID forbids.",
    ),
    (
        "by-hand",
        "As users write it: the header is decoded, its `kid` looked up in a map of prebuilt keys, \
         then the token decoded. No SPIFFE ID, no trust domain, no policy; it accepts what \
         jsonwebtoken accepts: a token without `aud`, and header fields that JWT-SVID forbids.",
    ),
    (
        "jwt-authorizer",
        "On jsonwebtoken 9 and with it on ring, so that differences in the signature check are \
         ring's. It looks for the key by `kid` in one key set for every issuer: no SPIFFE ID, no \
         trust domain, no policy, no ES512. Its layer answers with the body of axum 0.7 and is \
         compared with a bare service that does.",
    ),
    (
        "axum-jwt-auth",
        "On jsonwebtoken 10 and RustCrypto, which it fixes, so that differences in the signature \
         check are RustCrypto's. It tries its keys in turn, without `kid`: here it has one. No \
         SPIFFE ID, no trust domain, no policy, no ES512. It is an extractor of axum, used here as a \
         layer by `axum::middleware::from_extractor_with_state`. Its 401 has no challenge, and a \
         token with an unknown `alg` gets a 500.",
    ),
    (
        "slim-auth",
        "On jsonwebtoken 10 and aws-lc. Its verifier for JWTs, with one prebuilt key; it looks for \
         no `kid`. It keeps verified tokens in a map that has no bound in bytes. No SPIFFE ID, no \
         trust domain; its 401 has no challenge. Its verifier for SPIRE stands on spiffe 0.16, and \
         wants an X.509-SVID from the agent as well. Requests are made and timed in its process, in \
         the same rounds; the base of its differences is in ours.",
    ),
    (
        "oauth2",
        "On jsonwebtoken 11.1. It looks for the key by `kid` in one key set for its issuer: no \
         SPIFFE ID, no trust domain, no policy, no ES512.",
    ),
    (
        "static",
        "Compares the header with one that never changes: it verifies nothing and knows nobody, \
         and tower-http has deprecated it. It is here as the least that a layer can do.",
    ),
    (
        "constant",
        "Adds the header that it was made with: wrong as soon as that token expires. It is here as \
         the least that a layer can do.",
    ),
];

/// The footnotes that this text refers to, each with its key.
pub fn footnotes(text: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let used = |key: &str| text.contains(&format!("[^{key}]"));
    FOOTNOTES.iter().copied().filter(move |(key, _)| used(key))
}
