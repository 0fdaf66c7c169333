//! JWK Sets as SPIRE writes them, and SPIFFE bundles.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

use crate::testing::must;

/// One public key. Members are in SPIRE's order; `None` is omitted.
#[derive(Serialize)]
pub(super) struct Jwk<'a> {
    kty: &'static str,
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    usage: Option<&'static str>,
    kid: &'a str,
    #[serde(flatten)]
    public: PublicPart,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum PublicPart {
    Ec {
        crv: &'static str,
        x: String,
        y: String,
    },
    Rsa {
        n: String,
        e: String,
    },
}

impl PublicPart {
    pub(super) fn ec(crv: &'static str, x: &[u8], y: &[u8]) -> Self {
        Self::Ec {
            crv,
            x: URL_SAFE_NO_PAD.encode(x),
            y: URL_SAFE_NO_PAD.encode(y),
        }
    }

    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Self {
        Self::Rsa {
            n: URL_SAFE_NO_PAD.encode(n),
            e: URL_SAFE_NO_PAD.encode(e),
        }
    }
}

impl<'a> Jwk<'a> {
    pub(super) fn new(kid: &'a str, public: PublicPart) -> Self {
        let kty = match public {
            PublicPart::Ec { .. } => "EC",
            PublicPart::Rsa { .. } => "RSA",
        };
        Self {
            kty,
            usage: None,
            kid,
            public,
        }
    }
}

/// The JWK Set of the Workload API: indented, with `keys` only, without `use` and `alg`.
pub(super) fn jwks(keys: &[Jwk<'_>]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Set<'a> {
        keys: &'a [Jwk<'a>],
    }
    indented(&Set { keys })
}

/// The document of a bundle endpoint: each key has a `use` (JWT-SVID section 6.1).
pub(super) fn spiffe_bundle(mut keys: Vec<Jwk<'_>>, sequence: u64) -> Vec<u8> {
    #[derive(Serialize)]
    struct Bundle<'a> {
        keys: Vec<Jwk<'a>>,
        spiffe_sequence: u64,
        spiffe_refresh_hint: u32,
    }
    for key in &mut keys {
        key.usage = Some("jwt-svid");
    }
    indented(&Bundle {
        keys,
        spiffe_sequence: sequence,
        spiffe_refresh_hint: 300,
    })
}

/// SPIRE indents by four.
fn indented(value: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(b"    "));
    must(value.serialize(&mut writer), "a JWK set becomes JSON");
    out
}
