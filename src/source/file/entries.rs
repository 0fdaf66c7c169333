//! The entries of documents with several trust domains.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::identity::TrustDomain;
use crate::jwt::Text;
use crate::presentable::presentable;

/// The entries in the order of the document.
#[derive(Default)]
pub(super) struct Entries<'a>(Vec<(String, &'a RawValue)>);

/// Entries whose name is not that of a trust domain: their number, and the error texts of the first few.
#[derive(Debug, Clone, Default)]
pub(super) struct Unnamed {
    pub(super) texts: Vec<String>,
    pub(super) count: usize,
}

/// How many errors a summary names.
pub(super) const NAMED: usize = 2;

/// Rejects duplicate names, as a consumer must (SPIFFE Trust Domain and Bundle section 5.1.1); a plain
/// map would hide them. An entry whose name is not that of a trust domain is skipped: the trust domain
/// that it was meant for counts as missing.
pub(super) fn by_domain<'a>(
    entries: &Entries<'a>,
) -> Result<(BTreeMap<TrustDomain, &'a RawValue>, Unnamed), String> {
    let mut by_domain = BTreeMap::new();
    let mut unnamed = Unnamed::default();
    let mut names = HashSet::new();
    for (name, bundle) in &entries.0 {
        let is_new = match TrustDomain::parse(name) {
            Ok(domain) => by_domain.insert(domain, *bundle).is_none(),
            Err(error) => {
                unnamed.count += 1;
                if unnamed.texts.len() < NAMED {
                    let name = presentable(name);
                    let text = format!("trust domain \"{name}\": {error}");
                    unnamed.texts.push(text);
                }
                names.insert(name)
            }
        };
        if !is_new {
            let name = presentable(name);
            return Err(format!("the map of bundles has \"{name}\" twice"));
        }
    }
    Ok((by_domain, unnamed))
}

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from trust domains to bundles")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

/// A map of bundles: one member counts, others are ignored.
pub(super) struct Map<'a>(pub(super) Option<Entries<'a>>);

/// One object of an agent's output. One of them has `bundles`; the others have the tokens.
pub(super) struct AgentMessage<'a>(pub(super) Option<Entries<'a>>);

// Not derived: a derived type also accepts an array with the values of the members.
impl<'de: 'a, 'a> Deserialize<'de> for Map<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_map(Member("trust_domains"))
            .map(Self)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for AgentMessage<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Member("bundles")).map(Self)
    }
}

/// Reads the entries in the member with this name, which may occur once.
struct Member(&'static str);

impl<'de> Visitor<'de> for Member {
    type Value = Option<Entries<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with one `{}`", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = None;
        while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
            if name != self.0 {
                map.next_value::<IgnoredAny>()?;
            } else {
                // Go writes an empty map as null.
                let each: Option<Entries<'_>> = map.next_value()?;
                if entries.replace(each.unwrap_or_default()).is_some() {
                    return Err(A::Error::duplicate_field(self.0));
                }
            }
        }
        Ok(entries)
    }
}
