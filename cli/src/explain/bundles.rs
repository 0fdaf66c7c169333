//! The formats of bundle files, read by the code that a server reads them with.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use tower_spiffe::TrustDomain;
use tower_spiffe::bundle::{JwtBundle, JwtBundleSet};
use tower_spiffe::source::BundleFormat;

use super::args::Format;
use crate::BoxError;

/// What a document says.
pub(crate) struct Bundles {
    pub(crate) set: JwtBundleSet,
    /// The format that it was read as.
    pub(crate) format: Format,
    /// What cannot be used of it, and why.
    pub(crate) skipped: Vec<String>,
}

/// Reads a document. A server never guesses a format; here it is, if it is clear.
///
/// An entry of a map that cannot be read costs itself only, as in a server: with a wrong name it is
/// left out, with a wrong bundle its trust domain has no keys. It is an error if nothing is left.
pub(crate) fn read(
    document: &[u8],
    format: Option<Format>,
    trust_domain: Option<&TrustDomain>,
) -> Result<Bundles, BoxError> {
    let format = match format {
        Some(format) => format,
        None => guess(document.strip_prefix(b"\xef\xbb\xbf").unwrap_or(document))?,
    };
    let trust_domain = || {
        let missing = "--trust-domain is missing: the file does not say whose keys these are";
        trust_domain.cloned().ok_or(missing)
    };
    let format_of_file = match format {
        Format::Jwks => BundleFormat::Jwks(trust_domain()?),
        Format::Bundle => BundleFormat::SpiffeBundle(trust_domain()?),
        Format::Map if has_trust_domains(document) => BundleFormat::BundleMap,
        Format::Map => BundleFormat::JwksByTrustDomain,
        Format::JwksMap => BundleFormat::JwksMap,
        Format::SpiffeHelper => BundleFormat::SpiffeHelper,
        Format::SpireAgent => BundleFormat::SpireAgent,
    };
    let read = format_of_file.read(document)?;
    let (set, skipped) = (read.bundle_set(), read.errors().collect::<Vec<_>>());
    match skipped.first() {
        Some(why) if set.is_empty() => Err(why.clone().into()),
        _ => Ok(Bundles {
            set,
            format,
            skipped,
        }),
    }
}

/// Whether a map is a SPIFFE Bundle Map.
fn has_trust_domains(document: &[u8]) -> bool {
    let document = document.strip_prefix(b"\xef\xbb\xbf").unwrap_or(document);
    serde_json::from_slice::<Members<'_>>(document)
        .is_ok_and(|members| members.0.contains_key("trust_domains"))
}

/// What the document is instead of a set of keys, as the library says it.
fn kind_found(document: &[u8]) -> Option<&'static str> {
    let any = TrustDomain::parse("any").ok()?;
    JwtBundle::from_jwks(any, document).err()?.kind_found()
}

/// `keys` that is an array, or null as Go writes an empty one, makes a JWK Set, and a SPIFFE member
/// beside it a SPIFFE bundle. The others are clear by their values.
fn guess(document: &[u8]) -> Result<Format, BoxError> {
    let is = |format: BundleFormat| format.read(document).is_ok();
    if document.trim_ascii_start().starts_with(b"[") && is(BundleFormat::SpireAgent) {
        return Ok(Format::SpireAgent);
    }
    let members: Members<'_> = serde_json::from_slice(document).map_err(|error| {
        let kind = kind_found(document).map_or_else(String::new, |kind| format!("; {kind}"));
        format!(
            "no JSON object whose names come once (line {}, column {}){kind}",
            error.line(),
            error.column()
        )
    })?;
    let is_list = |raw: &&RawValue| raw.get().starts_with('[') || raw.get() == "null";
    let has = |name: &str| members.0.contains_key(name);
    match members.0.get("keys") {
        Some(keys) if is_list(keys) => {
            if has("spiffe_sequence") || has("spiffe_refresh_hint") {
                Ok(Format::Bundle)
            } else {
                Ok(Format::Jwks)
            }
        }
        _ if has("trust_domains") => Ok(Format::Map),
        _ if members.0.values().all(|raw| raw.get().starts_with('{')) => Ok(Format::Map),
        _ if is(BundleFormat::SpiffeHelper) => Ok(Format::SpiffeHelper),
        _ => Err(kind_found(document)
            .unwrap_or("it is not plain what this is; set its format by --format")
            .into()),
    }
}

/// An object's members, still raw; a name that comes twice is an error.
#[derive(Default)]
pub(crate) struct Members<'a>(pub(crate) BTreeMap<String, &'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name comes twice"));
                    }
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Reader)
    }
}
