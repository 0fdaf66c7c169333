//! What an endpoint publishes: JWK Sets, SPIFFE bundles, discovery documents.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::fetch::BoxError;
use crate::bundle::{BYTE_ORDER_MARK, JwtBundle, UseRule};
use crate::identity::TrustDomain;
use crate::presentable::json_fault;

/// The content of a document.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) keys: JwtBundle,
    pub(super) about: About,
}

/// What a SPIFFE bundle has besides its keys for JWT-SVIDs; empty for a JWK Set.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    pub(super) sequence: Option<u64>,
    pub(super) refresh_hint: Option<Duration>,
    /// The roots of its X.509-SVIDs.
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Document {
    /// Reads a JWK Set that the user assigned to `trust_domain`, or the SPIFFE bundle of `trust_domain`.
    pub(super) fn read(
        bytes: &[u8],
        is_spiffe_bundle: bool,
        trust_domain: &TrustDomain,
        before: Option<&JwtBundle>,
    ) -> Result<Self, BoxError> {
        let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        let domain = trust_domain.clone();
        Ok(if is_spiffe_bundle {
            Self {
                keys: JwtBundle::read(domain, bytes, UseRule::JwtSvid, before)?,
                about: About::read(bytes)?,
            }
        } else {
            Self {
                keys: JwtBundle::read(domain, bytes, UseRule::AbsentOrJwtSvidOrSig, before)?,
                about: About::default(),
            }
        })
    }
}

#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, default)]
    spiffe_sequence: Option<&'a RawValue>,
    #[serde(borrow, default)]
    spiffe_refresh_hint: Option<&'a RawValue>,
    #[serde(borrow, default)]
    keys: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(rename = "use")]
    usage: String,
    x5c: Vec<String>,
}

impl About {
    /// Reads the bundle; it may come from a file that was saved earlier.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, BoxError> {
        const EXPECTED: &str = "it must be an object with each member once";
        let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        let members: Members<'_> =
            serde_json::from_slice(bytes).map_err(|error| json_fault(&error, EXPECTED))?;
        let sequence = members.spiffe_sequence.map(|raw| raw.get().parse());
        let sequence = sequence
            .transpose()
            .map_err(|_| "`spiffe_sequence` must be an integer from 0 to 2^64 - 1")?;
        // A malformed hint counts as missing.
        let hint = members.spiffe_refresh_hint;
        let hint = hint.and_then(|raw| raw.get().parse().ok());
        let keys = members.keys.unwrap_or_default();
        Ok(Self {
            sequence,
            refresh_hint: hint.map(Duration::from_secs),
            roots: keys.into_iter().filter_map(root).collect(),
        })
    }
}

/// The certificate of a key for X.509-SVIDs: exactly one (SPIFFE Trust Domain and Bundle section
/// 4.2.2 and X509-SVID section 6.2).
fn root(key: &RawValue) -> Option<CertificateDer<'static>> {
    let key: Key = serde_json::from_str(key.get()).ok()?;
    let [certificate] = key.x5c.as_slice() else {
        return None;
    };
    if key.usage != "x509-svid" {
        return None;
    }
    let certificate = CertificateDer::from(STANDARD.decode(certificate).ok()?);
    webpki::anchor_from_trusted_cert(&certificate).ok()?;
    Some(certificate)
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// The `jwks_uri` of a discovery document (OpenID Connect Discovery section 4.3).
pub(super) fn discovery(bytes: &[u8], issuer: &str) -> Result<String, BoxError> {
    const EXPECTED: &str = "a discovery document has one `issuer` and one `jwks_uri`";
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let found: Discovery =
        serde_json::from_slice(bytes).map_err(|error| json_fault(&error, EXPECTED))?;
    if found.issuer != issuer {
        return Err("its `issuer` is not exactly the configured one".into());
    }
    Ok(found.jwks_uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h03_sequence_and_hint_are_read() {
        let read = |text: &str| About::read(text.as_bytes());
        let about = read(r#"{"spiffe_sequence":7,"spiffe_refresh_hint":600,"keys":null}"#).unwrap();
        assert_eq!(about.sequence, Some(7));
        assert_eq!(about.refresh_hint, Some(Duration::from_secs(600)));
        let about = read(r#"{"spiffe_sequence":null,"spiffe_refresh_hint":-1}"#).unwrap();
        assert_eq!((about.sequence, about.refresh_hint), (None, None));
        for bad in [
            r#"{"spiffe_sequence":"7"}"#,
            r#"{"spiffe_sequence":-7}"#,
            r#"{"spiffe_sequence":7.5}"#,
            r#"{"spiffe_sequence":18446744073709551616}"#,
            r#"{"spiffe_sequence":7,"spiffe_sequence":8}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn h02_issuer_must_match_exactly() {
        let issuer = "https://example.org";
        let document = |issuer: &str| {
            format!(r#"{{"issuer":"{issuer}","jwks_uri":"https://example.org/keys"}}"#)
        };
        let read = |text: &str| discovery(text.as_bytes(), issuer);
        assert_eq!(read(&document(issuer)).unwrap(), "https://example.org/keys");
        for other in [
            "https://example.org/",
            "HTTPS://example.org",
            "https://example.org.evil.test",
            "http://example.org",
            "",
        ] {
            assert!(read(&document(other)).is_err(), "{other}");
        }
        assert!(read(r#"{"jwks_uri":"https://example.org/keys"}"#).is_err());
        let twice = document(issuer).replace('}', r#","issuer":"https://example.org"}"#);
        assert!(read(&twice).is_err());
    }
}
