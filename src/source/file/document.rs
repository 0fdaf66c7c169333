//! One file, and what it says.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::bundle::{JwksError, JwtBundle, JwtBundleSet};
use crate::presentable::{json_fault, presentable};
use crate::spiffe_id::TrustDomain;

/// Where bundles stand, and how.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) path: PathBuf,
    /// Whose bundle it is; none for a map.
    pub(super) trust_domain: Option<TrustDomain>,
    pub(super) format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Jwks,
    SpiffeBundle,
}

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) bundles: BTreeMap<TrustDomain, Arc<JwtBundle>>,
    /// Trust domains whose part of the file cannot be read, and why.
    pub(super) troubles: BTreeMap<TrustDomain, Box<str>>,
}

impl Contents {
    /// Whose bundles stand there, readable or not; some come twice.
    pub(super) fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.bundles.keys().chain(self.troubles.keys())
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
    /// bundle, an equal bundle keeps its parsed keys.
    pub(super) fn parse(&self, bytes: &[u8], known: &JwtBundleSet) -> Result<Contents, String> {
        let mut contents = Contents::default();
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
                let map: Map<'_> = serde_json::from_slice(bytes)
                    .map_err(|error| json_fault(&error, EXPECTED_MAP))?;
                for (domain, raw) in map.trust_domains.by_domain()? {
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

fn shared(bundle: JwtBundle, known: &JwtBundleSet) -> Arc<JwtBundle> {
    match known.get(bundle.trust_domain().name()) {
        Some(before) if **before == bundle => before.clone(),
        _ => Arc::new(bundle),
    }
}

#[derive(Deserialize)]
struct Map<'a> {
    #[serde(borrow)]
    trust_domains: Entries<'a>,
}

const EXPECTED_MAP: &str =
    "it must be an object with one `trust_domains`, a map from trust domains to bundles";

/// The entries as they stand there.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Entries<'a> {
    /// Each trust domain once: a consumer must reject duplicate names (SPIFFE Trust Domain and
    /// Bundle section 5.1.1), which a plain map would swallow.
    fn by_domain(self) -> Result<BTreeMap<TrustDomain, &'a RawValue>, String> {
        let mut entries = BTreeMap::new();
        for (name, bundle) in self.0 {
            let domain = TrustDomain::parse(&name)
                .map_err(|error| format!("\"{}\": {error}", presentable(&name)))?;
            if entries.insert(domain, bundle).is_some() {
                return Err(format!("\"{}\" stands there twice", presentable(&name)));
            }
        }
        Ok(entries)
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
