//! One file, and what it says.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::bundle::{BYTE_ORDER_MARK, Expected, JwksError, JwtBundle, JwtBundleSet, wrong_kind};
use crate::identity::TrustDomain;
use crate::jwt::Text;
use crate::presentable::{json_fault, presentable};

/// Where bundles stand, and how.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) path: PathBuf,
    /// Whose bundle it is; none for a map.
    pub(super) trust_domain: Option<TrustDomain>,
    pub(super) format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Jwks,
    SpiffeBundle,
}

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) bundles: BTreeMap<TrustDomain, Arc<JwtBundle>>,
    /// Trust domains whose part of the file cannot be read, and why.
    pub(super) troubles: BTreeMap<TrustDomain, Box<str>>,
    /// Entries of a map whose name is not a trust domain's.
    unnamed: Unnamed,
}

/// Counted, and the first few told.
#[derive(Debug, Default)]
struct Unnamed {
    told: Vec<String>,
    count: usize,
}

/// So many of the entries that cannot be read are named in a text.
const TOLD: usize = 2;

impl Contents {
    /// Whose bundles stand there, readable or not; some come twice.
    pub(super) fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.bundles.keys().chain(self.troubles.keys())
    }

    /// What cannot be read, for a person: a few of the trust domains, and how many more there are.
    pub(super) fn told(&self) -> Option<Box<str>> {
        let troubles = self.troubles.iter();
        let mut texts: Vec<String> = troubles
            .map(|(domain, why)| format!("trust domain {domain}: {why}"))
            .chain(self.unnamed.told.iter().cloned())
            .take(TOLD)
            .collect();
        let all = self.troubles.len() + self.unnamed.count;
        let more = all.saturating_sub(texts.len());
        if more > 0 {
            texts.push(format!("and {more} more"));
        }
        (!texts.is_empty()).then(|| texts.join("; ").into())
    }

    /// Whether `other` says the same of everyone, down to what is ignored.
    pub(super) fn says_what(&self, other: &Self) -> bool {
        let bundles = self.bundles.values().zip(other.bundles.values());
        self.bundles == other.bundles && { bundles }.all(|(one, other)| same(one, other))
    }

    pub(super) fn has(&self, domain: &TrustDomain) -> bool {
        self.bundles.contains_key(domain) || self.troubles.contains_key(domain)
    }
}

impl Document {
    pub(super) fn read(&self, max_bytes: u64) -> io::Result<Vec<u8>> {
        // What is none, a pipe say, may never end.
        if !std::fs::metadata(&self.path)?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no regular file",
            ));
        }
        let mut bytes = Vec::new();
        // One byte more than allowed, to see that there is more.
        let read = File::open(&self.path)?
            .take(max_bytes.saturating_add(1))
            .read_to_end(&mut bytes)?;
        if u64::try_from(read).unwrap_or(u64::MAX) > max_bytes {
            let text = format!("it has more than the {max_bytes} bytes allowed");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(bytes)
    }

    /// Reads the bytes against what was known before: an unreadable part of a map keeps its last
    /// bundle, an equal bundle keeps its parsed keys. A byte order mark is skipped.
    pub(super) fn parse(&self, bytes: &[u8], known: &JwtBundleSet) -> Result<Contents, String> {
        let mut contents = Contents::default();
        let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        match &self.trust_domain {
            Some(domain) => {
                let bundle = self
                    .one(domain, bytes, known)
                    .map_err(|error| error.to_string())?;
                contents
                    .bundles
                    .insert(domain.clone(), shared(bundle, known));
            }
            None => {
                // All of it, what is for others too: the parser asks only where it makes a text.
                let failed = |fault: String| match wrong_kind(bytes, Expected::Map) {
                    Some(kind) => format!("{fault}; {kind}"),
                    None => fault,
                };
                let text = std::str::from_utf8(bytes).map_err(|_| failed(NOT_UTF8.to_owned()))?;
                let map: Map<'_> = serde_json::from_str(text)
                    .map_err(|error| failed(json_fault(&error, EXPECTED_MAP)))?;
                let (entries, unnamed) = map.trust_domains.by_domain()?;
                contents.unnamed = unnamed;
                for (domain, raw) in entries {
                    match self.one(&domain, raw.get().as_bytes(), known) {
                        Ok(bundle) => {
                            contents.bundles.insert(domain, shared(bundle, known));
                        }
                        Err(error) => {
                            if let Some(before) = known.get(domain.name()) {
                                contents.bundles.insert(domain.clone(), before.clone());
                            }
                            contents.troubles.insert(domain, error.to_string().into());
                        }
                    }
                }
            }
        }
        Ok(contents)
    }

    fn one(
        &self,
        domain: &TrustDomain,
        bytes: &[u8],
        known: &JwtBundleSet,
    ) -> Result<JwtBundle, JwksError> {
        let before = known.get(domain.name()).map(|before| &**before);
        let domain = domain.clone();
        match self.format {
            Format::Jwks => JwtBundle::from_jwks_after(before, domain, bytes),
            Format::SpiffeBundle => JwtBundle::from_spiffe_bundle_after(before, domain, bytes),
        }
    }
}

/// The same keys, and the same told of what is none.
fn same(one: &JwtBundle, other: &JwtBundle) -> bool {
    one == other && one.ignored() == other.ignored()
}

fn shared(bundle: JwtBundle, known: &JwtBundleSet) -> Arc<JwtBundle> {
    match known.get(bundle.trust_domain().name()) {
        Some(before) if same(before, &bundle) => before.clone(),
        _ => Arc::new(bundle),
    }
}

/// The map, by its one member; other members are for others. Not derived: what is derived takes a
/// list of values for the members, too.
struct Map<'a> {
    trust_domains: Entries<'a>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Map<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = Map<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one `trust_domains`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = None;
                while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
                    if name != "trust_domains" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        // Go writes an empty map as null.
                        let each: Option<Entries<'_>> = map.next_value()?;
                        if entries.replace(each.unwrap_or_default()).is_some() {
                            return Err(A::Error::duplicate_field("trust_domains"));
                        }
                    }
                }
                let missing = || A::Error::missing_field("trust_domains");
                Ok(Map {
                    trust_domains: entries.ok_or_else(missing)?,
                })
            }
        }
        deserializer.deserialize_map(One)
    }
}

const NOT_UTF8: &str = "the map of bundles is not UTF-8";

const EXPECTED_MAP: &str =
    "it must be an object with one `trust_domains`, a map from trust domains to bundles";

/// The entries as they stand there.
#[derive(Default)]
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Entries<'a> {
    /// Each trust domain once: a consumer must reject duplicate names (SPIFFE Trust Domain and
    /// Bundle section 5.1.1), which a plain map would swallow. An entry whose name is not a trust
    /// domain's costs itself only: the trust domain that it was meant for is not in the map.
    fn by_domain(self) -> Result<(BTreeMap<TrustDomain, &'a RawValue>, Unnamed), String> {
        let mut entries = BTreeMap::new();
        let mut unnamed = Unnamed::default();
        let mut names = HashSet::new();
        for (name, bundle) in &self.0 {
            let is_new = match TrustDomain::parse(name) {
                Ok(domain) => entries.insert(domain, *bundle).is_none(),
                Err(error) => {
                    unnamed.count += 1;
                    if unnamed.told.len() < TOLD {
                        let name = presentable(name);
                        unnamed
                            .told
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
