//! The three forms in which bundles come.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use tower_spiffe::TrustDomain;
use tower_spiffe::bundle::{JwtBundle, JwtBundleSet};

use super::args::Format;
use crate::BoxError;

/// What a document says.
pub(crate) struct Bundles {
    pub(crate) set: JwtBundleSet,
    /// The form that it was read as.
    pub(crate) format: Format,
    /// Entries of a map that cannot be read, and why.
    pub(crate) skipped: Vec<String>,
}

/// Reads a document; a byte order mark is skipped, as in the files of a server.
pub(crate) fn read(
    document: &[u8],
    format: Option<Format>,
    trust_domain: Option<&TrustDomain>,
) -> Result<Bundles, BoxError> {
    let document = document.strip_prefix(b"\xef\xbb\xbf").unwrap_or(document);
    let members: Members<'_> = serde_json::from_slice(document).map_err(|error| {
        let kind = kind_found(document).map_or_else(String::new, |kind| format!("; {kind}"));
        format!(
            "no JSON object whose names come once (line {}, column {}){kind}",
            error.line(),
            error.column()
        )
    })?;
    let format = match format {
        Some(format) => format,
        None => guess(&members, document)?,
    };
    let mut skipped = Vec::new();
    let one = |read: fn(TrustDomain, &[u8]) -> _| -> Result<JwtBundleSet, BoxError> {
        let trust_domain = trust_domain
            .ok_or("--trust-domain is missing: the file does not say whose keys these are")?;
        let bundle: JwtBundle = read(trust_domain.clone(), document)?;
        Ok(JwtBundleSet::from_iter([bundle]))
    };
    let set = match format {
        Format::Jwks => one(JwtBundle::from_jwks)?,
        Format::Bundle => one(JwtBundle::from_spiffe_bundle)?,
        Format::Map => map(&members, &mut skipped)?,
    };
    Ok(Bundles {
        set,
        format,
        skipped,
    })
}

/// What the document is instead of a set of keys, as the library says it.
fn kind_found(document: &[u8]) -> Option<&'static str> {
    let any = TrustDomain::parse("any").ok()?;
    JwtBundle::from_jwks(any, document).err()?.kind_found()
}

/// `keys` that is an array, or null as Go writes an empty one, makes a JWK Set, and a SPIFFE member beside it a SPIFFE bundle.
fn guess(members: &Members<'_>, document: &[u8]) -> Result<Format, BoxError> {
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
        _ if members.0.values().all(|raw| raw.get().starts_with('{')) => Ok(Format::Map),
        _ => Err(kind_found(document)
            .unwrap_or("it is not plain what this is; say --format jwks, bundle or map")
            .into()),
    }
}

/// A SPIFFE Bundle Map (SPIFFE Trust Domain and Bundle section 5.1.1), whose bundles are SPIFFE
/// bundles, or what the Workload API gives: trust domains with JWK Sets.
///
/// An entry that cannot be read costs itself only, as in a server: with a wrong name it is left out,
/// with a wrong bundle its trust domain has no keys. It is an error if no name is right.
fn map(members: &Members<'_>, skipped: &mut Vec<String>) -> Result<JwtBundleSet, BoxError> {
    let inner: Members<'_>;
    let (members, read): (_, fn(TrustDomain, &[u8]) -> _) = match members.0.get("trust_domains") {
        Some(raw) => {
            // Go writes an empty map as null.
            let entries: Option<Members<'_>> = serde_json::from_str(raw.get())
                .map_err(|_| "`trust_domains` is no object whose names come once")?;
            inner = entries.unwrap_or_default();
            (&inner, JwtBundle::from_spiffe_bundle)
        }
        None => (members, JwtBundle::from_jwks),
    };
    let mut bundles: BTreeMap<TrustDomain, JwtBundle> = BTreeMap::new();
    for (name, raw) in &members.0 {
        let named = |why: &dyn std::fmt::Display| format!("trust domain {name:?}: {why}");
        let trust_domain = match TrustDomain::parse(name) {
            Ok(trust_domain) => trust_domain,
            Err(why) => {
                skipped.push(named(&why));
                continue;
            }
        };
        let bundle = match read(trust_domain.clone(), raw.get().as_bytes()) {
            Ok(bundle) => bundle,
            Err(why) => {
                skipped.push(named(&why));
                JwtBundle::from_jwks(trust_domain.clone(), br#"{"keys": []}"#)?
            }
        };
        if bundles.insert(trust_domain, bundle).is_some() {
            return Err(named(&"comes twice").into());
        }
    }
    match skipped.first() {
        Some(why) if bundles.is_empty() => Err(why.clone().into()),
        _ => Ok(bundles.into_values().collect()),
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
