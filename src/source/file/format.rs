//! The formats of documents with bundles, and the content of a document.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::entries::{AgentMessage, Entries, Map, NAMED, Unnamed, by_domain};
use super::error::FileBundlesError;
use crate::bundle::{
    BYTE_ORDER_MARK, Expected, IgnoredReason, JwksError, JwtBundle, JwtBundleSet, UseRule,
    wrong_kind,
};
use crate::identity::TrustDomain;
use crate::jwt::{decode, read_text};
use crate::presentable::{json_fault, presentable};

/// A format of a document with bundles. [`FileBundles`](super::FileBundles) has a builder method
/// for each; the format of a document is never guessed.
///
/// [`read`](Self::read) reads a document that did not come from a file, for example for
/// [`MemoryBundles`](crate::source::MemoryBundles).
///
/// ```
/// use tower_spiffe::source::MemoryBundles;
/// use tower_spiffe::source::BundleFormat;
///
/// // The base64 of `{"keys": []}`.
/// let document = br#"{"example.org": "eyJrZXlzIjogW119"}"#;
/// let read = BundleFormat::SpiffeHelper.read(document)?;
/// assert_eq!(read.errors().count(), 0);
/// let bundles = MemoryBundles::new(read.bundle_set());
/// assert!(bundles.bundle_set()?.get("example.org").is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BundleFormat {
    /// The JWK Set of this trust domain. A key counts if `use` is absent, `jwt-svid` or `sig`.
    Jwks(TrustDomain),
    /// The SPIFFE bundle of this trust domain (SPIFFE Trust Domain and Bundle section 4). A key
    /// counts only if `use` is `jwt-svid`.
    SpiffeBundle(TrustDomain),
    /// A SPIFFE Bundle Map (SPIFFE Trust Domain and Bundle section 5):
    /// `{"trust_domains": {"example.org": {"keys": [..]}}}`, of SPIFFE bundles.
    BundleMap,
    /// The same object with JWK Sets: a key counts if `use` is absent or `jwt-svid`.
    JwksMap,
    /// An object from trust domain to JWK Set: `{"example.org": {"keys": [..]}}`. A key counts if
    /// `use` is absent or `jwt-svid`.
    JwksByTrustDomain,
    /// The file that spiffe-helper writes (`jwt_bundle_file_name`): an object from trust domain to
    /// the base64 of its JWK Set. A key counts if `use` is absent or `jwt-svid`.
    SpiffeHelper,
    /// The output of `spire-agent api fetch jwt -output json`, with `bundles` and tokens. The tokens are not
    /// read. A key counts if `use` is absent or `jwt-svid`.
    SpireAgent,
}

/// The content of a document.
#[derive(Debug, Clone, Default)]
pub struct BundleDocument {
    pub(super) bundles: BTreeMap<TrustDomain, Arc<JwtBundle>>,
    /// Trust domains whose part of the document cannot be read, and why.
    pub(super) troubles: BTreeMap<TrustDomain, Box<str>>,
    /// Trust domains whose keys are all unusable, and why.
    pub(super) unusable: BTreeMap<TrustDomain, Box<str>>,
    /// Entries of a map whose name is not that of a trust domain.
    unnamed: Unnamed,
}

impl BundleFormat {
    /// Reads a document. A UTF-8 byte order mark is skipped.
    ///
    /// # Errors
    /// The document is not of this format. An invalid part of it is not an error here: see
    /// [`BundleDocument::errors`].
    pub fn read(&self, document: &[u8]) -> Result<BundleDocument, FileBundlesError> {
        self.parse(document, &JwtBundleSet::default())
    }

    /// The trust domain of a document with one bundle.
    pub(super) fn trust_domain(&self) -> Option<&TrustDomain> {
        match self {
            Self::Jwks(domain) | Self::SpiffeBundle(domain) => Some(domain),
            _ => None,
        }
    }

    /// Reads a document after `known` was read before it: if an entry of a map cannot be read, its
    /// last bundle stays; keys that did not change are not parsed again.
    pub(super) fn parse(
        &self,
        bytes: &[u8],
        known: &JwtBundleSet,
    ) -> Result<BundleDocument, FileBundlesError> {
        let mut contents = BundleDocument::default();
        let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        if let Some(domain) = self.trust_domain() {
            let bundle = self.one(domain, bytes, known.get(domain.name()));
            let bundle = bundle.map_err(|error| {
                FileBundlesError::malformed("its keys cannot be read").because(error)
            })?;
            contents.add(self, bundle.shared(known.get(domain.name())));
            return Ok(contents);
        }
        // For error texts only: it reads the whole document again. The parser's error is not kept: it
        // may quote a token.
        let failed = |fault: String| {
            FileBundlesError::malformed(match wrong_kind(bytes, self.expected()) {
                Some(kind) => format!("{fault}; {kind}"),
                None => fault,
            })
        };
        let text = std::str::from_utf8(bytes)
            .map_err(|_| failed("the map of bundles is not UTF-8".to_owned()))?;
        let entries = self.entries(text).map_err(failed)?;
        let (entries, unnamed) = by_domain(&entries).map_err(FileBundlesError::malformed)?;
        contents.unnamed = unnamed;
        let mut any_read = false;
        for (domain, raw) in entries {
            let before = known.get(domain.name());
            match self.entry(&domain, raw, before) {
                Ok(bundle) => {
                    any_read = true;
                    contents.add(self, bundle.shared(before));
                }
                Err(why) => {
                    if let Some(before) = before {
                        contents.bundles.insert(domain.clone(), before.clone());
                    }
                    contents.troubles.insert(domain, why);
                }
            }
        }
        // Every JSON object is a map of something: if nothing in it is a bundle, it is another
        // document, and removes no trust domain.
        let is_other = !any_read && self.is_flat();
        match contents.summary().filter(|_| is_other) {
            Some(summary) => Err(failed(format!(
                "no entry of the map is a bundle: {summary}"
            ))),
            None => Ok(contents),
        }
    }

    fn entries<'a>(&self, text: &'a str) -> Result<Entries<'a>, String> {
        let fault = |error| json_fault(&error, self.expected_text());
        let found = match self {
            Self::SpireAgent => {
                let messages: Vec<AgentMessage<'a>> = serde_json::from_str(text).map_err(fault)?;
                let mut found = messages.into_iter().filter_map(|message| message.0);
                found.next().filter(|_| found.next().is_none())
            }
            _ if self.is_flat() => Some(serde_json::from_str(text).map_err(fault)?),
            _ => serde_json::from_str::<Map<'a>>(text).map_err(fault)?.0,
        };
        found.ok_or_else(|| self.expected_text().to_owned())
    }

    /// Whether the trust domains are the names of the outermost object.
    fn is_flat(&self) -> bool {
        matches!(self, Self::JwksByTrustDomain | Self::SpiffeHelper)
    }

    fn entry(
        &self,
        domain: &TrustDomain,
        raw: &RawValue,
        before: Option<&Arc<JwtBundle>>,
    ) -> Result<JwtBundle, Box<str>> {
        let decoded;
        let bytes = match self {
            Self::SpiffeHelper | Self::SpireAgent => {
                decoded = read_text(raw.get())
                    .and_then(|text| decode_standard(&text))
                    .ok_or("its value is not the base64 of a JWK Set")?;
                &decoded
            }
            _ => raw.get().as_bytes(),
        };
        let bundle = self.one(domain, bytes, before);
        bundle.map_err(|error| error.to_string().into())
    }

    fn one(
        &self,
        domain: &TrustDomain,
        bytes: &[u8],
        before: Option<&Arc<JwtBundle>>,
    ) -> Result<JwtBundle, JwksError> {
        let before = before.map(|before| &**before);
        let rule = match self {
            Self::Jwks(_) => UseRule::AbsentOrJwtSvidOrSig,
            Self::SpiffeBundle(_) | Self::BundleMap => UseRule::JwtSvid,
            Self::JwksMap | Self::JwksByTrustDomain | Self::SpiffeHelper | Self::SpireAgent => {
                UseRule::AbsentOrJwtSvid
            }
        };
        JwtBundle::read(domain.clone(), bytes, rule, before)
    }

    fn expected(&self) -> Expected {
        match self {
            Self::Jwks(_) | Self::SpiffeBundle(_) => Expected::Keys,
            Self::BundleMap | Self::JwksMap => Expected::Map,
            Self::JwksByTrustDomain | Self::SpiffeHelper => Expected::FlatMap,
            Self::SpireAgent => Expected::AgentOutput,
        }
    }

    fn expected_text(&self) -> &'static str {
        match self {
            Self::JwksByTrustDomain => "the map must be an object from trust domain to JWK Set",
            Self::SpiffeHelper => {
                "the map must be an object from trust domain to the base64 of a JWK Set"
            }
            Self::SpireAgent => {
                "it must be a list with one object that has `bundles`, a map from trust domains to \
                 the base64 of a JWK Set"
            }
            _ => {
                "it must be an object with one `trust_domains`, a map from trust domains to bundles; \
                 a map without that member is read with `jwks_by_trust_domain` or `spiffe_helper`"
            }
        }
    }

    /// How to set `use` so that a key counts.
    fn use_rule(&self) -> &'static str {
        match self {
            Self::Jwks(_) => "set `use` to jwt-svid or sig, or omit it",
            Self::SpiffeBundle(_) | Self::BundleMap => {
                "set `use` to jwt-svid, or configure the file as a JWK Set if it is one"
            }
            _ => "set `use` to jwt-svid, or omit it",
        }
    }
}

impl BundleDocument {
    /// Returns the bundles. A trust domain whose part of the document cannot be read has one
    /// without keys.
    pub fn bundle_set(&self) -> JwtBundleSet {
        let unread = self.troubles.keys().cloned();
        let unread = unread.map(|domain| Arc::new(JwtBundle::without_keys(domain)));
        unread.chain(self.bundles.values().cloned()).collect()
    }

    /// Returns what is wrong with parts of the document: entries that cannot be read, trust domains
    /// whose keys are all unusable, and entries whose name is not that of a trust domain.
    pub fn errors(&self) -> impl Iterator<Item = String> {
        let more = self.unnamed.count.saturating_sub(self.unnamed.texts.len());
        let more = (more > 0).then(|| format!("{more} more names are not trust domains"));
        self.each().chain(more)
    }

    fn add(&mut self, format: &BundleFormat, bundle: Arc<JwtBundle>) {
        let domain = bundle.trust_domain().clone();
        if let Some(first) = bundle.none_usable() {
            let fix = match first.reason() {
                IgnoredReason::Use => format!("; {}", format.use_rule()),
                _ => String::new(),
            };
            let key_id = first.key_id().map_or_else(
                || "without `kid`".to_owned(),
                |id| format!("\"{}\"", presentable(id)),
            );
            let text = format!(
                "no key is usable: key {key_id} at position {}: {first}{fix}",
                first.position()
            );
            self.unusable.insert(domain.clone(), text.into());
        }
        self.bundles.insert(domain, bundle);
    }

    /// The trust domains of the file, readable or not; some come twice.
    pub(super) fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.bundles.keys().chain(self.troubles.keys())
    }

    /// What is wrong, in one text: the first errors, and how many more there are.
    pub(super) fn summary(&self) -> Option<Box<str>> {
        let all = self.troubles.len() + self.unusable.len() + self.unnamed.count;
        let mut texts: Vec<String> = self.each().take(NAMED).collect();
        let more = all.saturating_sub(texts.len());
        if more > 0 {
            texts.push(format!("and {more} more"));
        }
        (!texts.is_empty()).then(|| texts.join("; ").into())
    }

    fn each(&self) -> impl Iterator<Item = String> {
        let domains = self.troubles.iter().chain(&self.unusable);
        domains
            .map(|(domain, why)| format!("trust domain \"{domain}\": {why}"))
            .chain(self.unnamed.texts.iter().cloned())
    }

    /// Whether an entry cannot be read. Keys that are not usable do not count.
    pub(super) fn has_unread(&self) -> bool {
        !self.troubles.is_empty() || self.unnamed.count > 0
    }

    /// Whether `other` has the same bundles, including the ignored elements.
    pub(super) fn is_shown_as(&self, other: &Self) -> bool {
        let bundles = self.bundles.values().zip(other.bundles.values());
        self.bundles == other.bundles && { bundles }.all(|(one, other)| one.is_shown_as(other))
    }
}

/// The bytes of base64 with padding and the standard alphabet (RFC 4648 section 4), as Go and
/// protobuf write bytes into JSON.
fn decode_standard(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) || text.contains(['-', '_']) {
        return None;
    }
    let letters = text.strip_suffix("==").or_else(|| text.strip_suffix('='));
    decode(&letters.unwrap_or(text).replace('+', "-").replace('/', "_"))
}
