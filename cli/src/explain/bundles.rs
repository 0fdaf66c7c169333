//! Reads bundle files with the code that a server uses.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use tower_spiffe::TrustDomain;
use tower_spiffe::bundle::{JwtBundle, JwtBundleSet};
use tower_spiffe::source::BundleFormat;

use super::args::{Format, Once};
use crate::BoxError;

/// The bundles in a document.
pub(crate) struct Bundles {
    pub(crate) set: JwtBundleSet,
    /// The format that it was read as.
    pub(crate) format: Format,
    /// The entries that were skipped, and why.
    pub(crate) skipped: Vec<String>,
}

/// The bundles to explain a token with.
pub(crate) struct Read {
    pub(crate) set: JwtBundleSet,
    /// A description of the format that was read.
    pub(crate) what: String,
    /// More lines about them for the output.
    pub(crate) notes: Vec<String>,
}

/// Reads the file of `--bundles`.
///
/// # Errors
/// The file cannot be read, or an option is for URLs only.
pub(crate) fn read_file(once: &Once<'_>) -> Result<Read, BoxError> {
    if once.kind.is_some() {
        let text = "--jwks, --oidc, --https-web and --https-spiffe are for URLs: --bundles is a file, \
                    whose format is set with --format";
        return Err(text.into());
    }
    let path = once.bundles.display();
    let document =
        std::fs::read(once.bundles).map_err(|error| format!("cannot read {path}: {error}"))?;
    let bundles = read(&document, once.format, once.trust_domain)
        .map_err(|error| format!("{path}: {error}"))?;
    let skipped = bundles.skipped.iter();
    Ok(Read {
        set: bundles.set,
        what: bundles.format.to_string(),
        notes: skipped.map(|why| format!("skipped: {why}")).collect(),
    })
}

/// Reads a document. Unlike a server, detects the format if it is not set.
///
/// As in a server, an invalid entry of a map does not affect the others: with an invalid name it is
/// skipped, with an invalid bundle its trust domain has no keys.
///
/// # Errors
/// The document is invalid, or no entry is left.
pub(crate) fn read(
    document: &[u8],
    format: Option<Format>,
    trust_domain: Option<&TrustDomain>,
) -> Result<Bundles, BoxError> {
    let format = match format {
        Some(format) => format,
        None => detect(document.strip_prefix(b"\xef\xbb\xbf").unwrap_or(document))?,
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
    let read = format_of_file.read(document);
    let read = read.map_err(|error| format!("{error:#}"))?;
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

/// The library's description of a document that is not a set of keys.
fn kind_found(document: &[u8]) -> Option<&'static str> {
    let any = TrustDomain::parse("any").ok()?;
    JwtBundle::from_jwks(any, document).err()?.kind_found()
}

/// Detects the format. An object with an array `keys` is a JWK Set (`null` is an empty array, as Go
/// writes it), or a SPIFFE bundle if it also has a SPIFFE member. Other formats differ in their values.
fn detect(document: &[u8]) -> Result<Format, BoxError> {
    let is = |format: BundleFormat| format.read(document).is_ok();
    if document.trim_ascii_start().starts_with(b"[") && is(BundleFormat::SpireAgent) {
        return Ok(Format::SpireAgent);
    }
    let members: Members<'_> = serde_json::from_slice(document).map_err(|error| {
        let kind = kind_found(document).map_or_else(String::new, |kind| format!("; {kind}"));
        format!(
            "not a JSON object, or it has a duplicate name (line {}, column {}){kind}",
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
            .unwrap_or("the format is not clear; set it with --format")
            .into()),
    }
}

/// The members of an object, with raw values. A duplicate name is an error.
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
                        return Err(A::Error::custom("duplicate name"));
                    }
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Reader)
    }
}
