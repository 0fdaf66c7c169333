//! The entries of documents with several trust domains.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
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

impl<'a> Entries<'a> {
    /// Rejects duplicate names, as a consumer must (SPIFFE Trust Domain and Bundle section 5.1.1); a
    /// plain map would hide them. An entry whose name is not that of a trust domain is skipped: the
    /// trust domain that it was meant for counts as missing.
    pub(super) fn by_domain(
        self,
    ) -> Result<(BTreeMap<TrustDomain, &'a RawValue>, Unnamed), String> {
        let mut entries = BTreeMap::new();
        let mut unnamed = Unnamed::default();
        let mut names = HashSet::new();
        for (name, bundle) in &self.0 {
            let is_new = match TrustDomain::parse(name) {
                Ok(domain) => entries.insert(domain, *bundle).is_none(),
                Err(error) => {
                    unnamed.count += 1;
                    if unnamed.texts.len() < NAMED {
                        let name = presentable(name);
                        unnamed
                            .texts
                            .push(format!("trust domain \"{name}\": {error}"));
                    }
                    names.insert(name)
                }
            };
            if !is_new {
                return Err(format!(
                    "the map of bundles has \"{}\" twice",
                    presentable(name)
                ));
            }
        }
        Ok((entries, unnamed))
    }
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

/// A map of bundles: one member counts, others are ignored. Not derived, because a derived type also
/// accepts an array with the values of the members.
pub(super) struct Map<'a> {
    pub(super) trust_domains: Entries<'a>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Map<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = deserializer.deserialize_map(Member("trust_domains"))?;
        let missing = || D::Error::missing_field("trust_domains");
        Ok(Self {
            trust_domains: entries.ok_or_else(missing)?,
        })
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

/// A list of objects. One of them has `bundles`; the others have the tokens.
pub(super) struct AgentOutput<'a>(pub(super) Entries<'a>);

/// One object of the list.
struct AgentMessage<'a>(Option<Entries<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for AgentMessage<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = deserializer.deserialize_map(Member("bundles"))?;
        Ok(Self(entries))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for AgentOutput<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = AgentOutput<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of objects")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut found = None;
                while let Some(AgentMessage(entries)) = list.next_element()? {
                    if let Some(entries) = entries
                        && found.replace(entries).is_some()
                    {
                        return Err(A::Error::duplicate_field("bundles"));
                    }
                }
                let missing = || A::Error::missing_field("bundles");
                Ok(AgentOutput(found.ok_or_else(missing)?))
            }
        }
        deserializer.deserialize_seq(List)
    }
}
