//! The compared crates: row names, roles and footnotes.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A row of a table.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Who {
    pub name: Cow<'static, str>,
    pub role: Role,
    /// Rows of a table are compared if they do the same job.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub job: Cow<'static, str>,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Ours,
    Peer,
    /// A lower limit: the bare signature check, or no layer.
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

    /// Appends this text to the name.
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

/// How each crate differs from tower-spiffe.
const FOOTNOTES: &[(&str, &str)] = &[
    (
        "spiffe",
        "Parses the key and the claims at each verification and caches no results. Does not \
         support ES512. The user must write the policy: in these tables `custom` allows every \
         verified caller, and tower-spiffe checks `Allow`.",
    ),
    (
        "jsonwebtoken",
        "Does less: it has one key and no key lookup, and it reads only the claims that the user \
         defines. It has no SPIFFE IDs, trust domains, policy or ES512. It accepts a token without \
         `aud` and header fields that JWT-SVID forbids.",
    ),
    (
        "by-hand",
        "As users write it: decodes the header, looks up its `kid` in a map of prebuilt keys, then \
         decodes the token. It has no SPIFFE IDs, trust domains or policy. It accepts the same \
         tokens as jsonwebtoken: without `aud`, or with header fields that JWT-SVID forbids.",
    ),
    (
        "jwt-authorizer",
        "Uses jsonwebtoken 9 on ring, so its signature check is ring's. It looks up the key by \
         `kid` in one key set for all issuers. It has no SPIFFE IDs, trust domains, policy or \
         ES512. Its layer returns the body type of axum 0.7, so its baseline is a bare service \
         with that body type.",
    ),
    (
        "axum-jwt-auth",
        "Uses jsonwebtoken 10 and always RustCrypto, so its signature check is RustCrypto's. It \
         tries its keys in turn and ignores `kid`; in these tables it has one key. It has no \
         SPIFFE IDs, trust domains, policy or ES512. It is an axum extractor, used here as a layer \
         through `axum::middleware::from_extractor_with_state`. Its 401 has no challenge. A token \
         with an unknown `alg` gets a 500.",
    ),
    (
        "slim-auth",
        "Uses jsonwebtoken 10 on aws-lc. Measured is its JWT verifier with one prebuilt key, which \
         ignores `kid`. It caches verified tokens in a map without a size limit in bytes. It has \
         no SPIFFE IDs or trust domains, and its 401 has no challenge. Its SPIRE verifier uses \
         spiffe 0.16 and also needs an X.509-SVID from the agent. Its requests run in a separate \
         process, in the same rounds. The baseline of its differences runs in the main process.",
    ),
    (
        "oauth2",
        "Uses jsonwebtoken 11.1. It looks up the key by `kid` in one key set for its issuer. It \
         has no SPIFFE IDs, trust domains, policy or ES512.",
    ),
    (
        "static",
        "Compares the header with a fixed value. It verifies no token and identifies no caller, \
         and tower-http has deprecated it. It shows the minimum cost of a layer.",
    ),
    (
        "constant",
        "Adds a fixed header, which is invalid as soon as its token expires. It shows the minimum \
         cost of a layer.",
    ),
];

/// Returns the footnotes that this text references, with their keys.
pub fn footnotes(text: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let used = |key: &str| text.contains(&format!("[^{key}]"));
    FOOTNOTES.iter().copied().filter(move |(key, _)| used(key))
}
