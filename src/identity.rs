//! SPIFFE IDs and trust domains, parsed strictly, and matchers over them.
//!
//! The rules are those of the SPIFFE-ID document, sections 2 to 2.4. Where it leaves a choice, this
//! crate is strict: upper case in the scheme or the trust domain is rejected (every issuer writes
//! lower case), a trust domain has at most 255 bytes and an ID at most 2048.
//!
//! ```
//! use tower_spiffe::{SpiffeId, TrustDomain};
//! use tower_spiffe::identity::SpiffeIdMatcher;
//!
//! let id: SpiffeId = "spiffe://example.org/reports/reader".parse()?;
//! assert_eq!(id.trust_domain_name(), "example.org");
//! assert_eq!(id.path(), "/reports/reader");
//!
//! let td: TrustDomain = "example.org".parse()?;
//! assert!(id.is_member_of(&td));
//! assert!(SpiffeIdMatcher::path_prefix("spiffe://example.org/reports".parse()?).matches(&id));
//!
//! assert!("spiffe://Example.org/reports".parse::<SpiffeId>().is_err());
//! # Ok::<(), tower_spiffe::identity::SpiffeIdError>(())
//! ```

use std::borrow::Borrow;
use std::convert::Infallible;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[cfg(test)]
mod tests;

const SCHEME: &str = "spiffe://";

/// The longest SPIFFE ID, in bytes, scheme included (SPIFFE-ID section 2.3).
pub const MAX_SPIFFE_ID_LEN: usize = 2048;

/// The longest trust domain name, in bytes (SPIFFE-ID section 2.3).
pub const MAX_TRUST_DOMAIN_LEN: usize = 255;

/// The name of a workload: `spiffe://` + trust domain + optional path (SPIFFE-ID section 2).
///
/// Clones are cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain_len: u8,
}

/// The name of a trust domain, such as `example.org` (SPIFFE-ID section 2.1).
///
/// It is parsed from the bare name or from the ID of the trust domain (`spiffe://example.org`).
/// It compares, orders and hashes as its name, and borrows as `str`: a map from trust domains can be
/// searched with a `&str`.
#[derive(Clone)]
pub struct TrustDomain {
    // A SPIFFE ID of this trust domain, often shared with the `SpiffeId` that it came from.
    uri: Arc<str>,
    len: u8,
}

/// Why a text is not a SPIFFE ID or a trust domain name.
///
/// It does not repeat the text, which may come from an attacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SpiffeIdError {
    /// The text is empty.
    Empty,
    /// It does not begin with `spiffe://` in lower case.
    Scheme,
    /// There is no trust domain between the scheme and the path.
    EmptyTrustDomain,
    /// The trust domain has a character outside `[a-z0-9.-_]`: upper case, `@`, `:`, `%` and all
    /// others.
    TrustDomainCharacter,
    /// The trust domain is longer than 255 bytes.
    TrustDomainTooLong,
    /// The ID is longer than 2048 bytes.
    TooLong,
    /// The path has a character outside `[a-zA-Z0-9.-_/]`: `?`, `#`, `%` and all others.
    PathCharacter,
    /// The path has an empty segment (`//`).
    EmptySegment,
    /// The path ends with `/`.
    TrailingSlash,
    /// A segment is `.` or `..`.
    DotSegment,
    /// The text has a path, but only a trust domain is allowed.
    UnexpectedPath,
}

// === impl SpiffeIdError ===

impl fmt::Display for SpiffeIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty; expected `spiffe://<trust domain>/<path>`",
            Self::Scheme => "must begin with `spiffe://` in lower case",
            Self::EmptyTrustDomain => "no trust domain after `spiffe://`",
            Self::TrustDomainCharacter => {
                "the trust domain may have only `a-z`, `0-9`, `.`, `-` and `_`"
            }
            Self::TrustDomainTooLong => "the trust domain is longer than 255 bytes",
            Self::TooLong => "longer than 2048 bytes",
            Self::PathCharacter => {
                "the path may have only `a-z`, `A-Z`, `0-9`, `.`, `-` and `_` between its slashes"
            }
            Self::EmptySegment => "the path has an empty segment (`//`)",
            Self::TrailingSlash => "the path ends with `/`; remove that slash",
            Self::DotSegment => "the path has a segment `.` or `..`",
            Self::UnexpectedPath => "a trust domain has no path; remove what follows its name",
        })
    }
}

impl std::error::Error for SpiffeIdError {}

/// For functions that take text: they also accept a `SpiffeId` or a `TrustDomain`.
impl From<Infallible> for SpiffeIdError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

// === impl SpiffeId ===

impl SpiffeId {
    /// Parses an ID by the rules of SPIFFE-ID sections 2 to 2.3.
    ///
    /// # Errors
    /// A [`SpiffeIdError`] that names the first rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        let trust_domain_len = check_id(text)?;
        Ok(Self {
            uri: Arc::from(text),
            trust_domain_len,
        })
    }

    /// Returns the whole ID, `spiffe://…`.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// Returns the name of its trust domain, without scheme.
    pub fn trust_domain_name(&self) -> &str {
        name_in(&self.uri, self.trust_domain_len)
    }

    /// Returns its trust domain, which shares the memory of this ID.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain {
            uri: self.uri.clone(),
            len: self.trust_domain_len,
        }
    }

    /// Returns the path, with its leading `/`; empty if the ID has no path.
    pub fn path(&self) -> &str {
        self.uri
            .get(SCHEME.len() + usize::from(self.trust_domain_len)..)
            .unwrap_or_default()
    }

    /// Returns whether the ID belongs to `trust_domain`.
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain_name() == trust_domain.name()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<&str> for SpiffeId {
    type Error = SpiffeIdError;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        Self::parse(text)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

/// For a list in settings: `Allow::one_of(&settings.callers)`.
impl TryFrom<&String> for SpiffeId {
    type Error = SpiffeIdError;

    fn try_from(text: &String) -> Result<Self, Self::Error> {
        Self::parse(text)
    }
}

impl From<&SpiffeId> for SpiffeId {
    fn from(id: &SpiffeId) -> Self {
        id.clone()
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

// === impl TrustDomain ===

impl TrustDomain {
    /// Parses a trust domain name, bare (`example.org`) or as an ID (`spiffe://example.org`).
    ///
    /// # Errors
    /// A [`SpiffeIdError`] that names the first rule that the text breaks; a path is one.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.starts_with(SCHEME) {
            let len = check_id(text)?;
            if text.len() > SCHEME.len() + usize::from(len) {
                return Err(SpiffeIdError::UnexpectedPath);
            }
            return Ok(Self {
                uri: Arc::from(text),
                len,
            });
        }
        if text.is_empty() {
            return Err(SpiffeIdError::Empty);
        }
        let len = check_name(text.as_bytes())?;
        Ok(Self {
            uri: Arc::from(format!("{SCHEME}{text}")),
            len,
        })
    }

    /// Returns the name, without scheme.
    pub fn name(&self) -> &str {
        name_in(&self.uri, self.len)
    }

    /// Returns the SPIFFE ID of the trust domain itself, `spiffe://<name>`.
    pub fn to_spiffe_id(&self) -> SpiffeId {
        let end = SCHEME.len() + usize::from(self.len);
        let uri = match self.uri.get(..end) {
            Some(bare) if self.uri.len() > end => Arc::from(bare),
            _ => self.uri.clone(),
        };
        SpiffeId {
            uri,
            trust_domain_len: self.len,
        }
    }
}

impl PartialEq for TrustDomain {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for TrustDomain {}

impl PartialOrd for TrustDomain {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for TrustDomain {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.name().cmp(other.name())
    }
}

// As `str` hashes, for `Borrow`.
impl Hash for TrustDomain {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl Borrow<str> for TrustDomain {
    fn borrow(&self) -> &str {
        self.name()
    }
}

impl From<&TrustDomain> for TrustDomain {
    fn from(trust_domain: &TrustDomain) -> Self {
        trust_domain.clone()
    }
}

impl AsRef<str> for TrustDomain {
    fn as_ref(&self) -> &str {
        self.name()
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<&str> for TrustDomain {
    type Error = SpiffeIdError;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        Self::parse(text)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl TryFrom<&String> for TrustDomain {
    type Error = SpiffeIdError;

    fn try_from(text: &String) -> Result<Self, Self::Error> {
        Self::parse(text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

// === matchers ===

/// A rule that matches SPIFFE IDs: certain IDs, a trust domain, the IDs under a path, or all IDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpiffeIdMatcher(Matcher);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Matcher {
    Any,
    OneOf(Arc<[SpiffeId]>),
    TrustDomain(TrustDomain),
    PathPrefix(SpiffeId),
}

impl SpiffeIdMatcher {
    /// Matches every SPIFFE ID of every trust domain.
    pub fn any() -> Self {
        Self(Matcher::Any)
    }

    /// Matches exactly this ID.
    pub fn id(id: SpiffeId) -> Self {
        Self(Matcher::OneOf(Arc::from([id])))
    }

    /// Matches exactly these IDs. An empty list matches no ID.
    pub fn one_of(ids: impl IntoIterator<Item = SpiffeId>) -> Self {
        Self(Matcher::OneOf(ids.into_iter().collect()))
    }

    /// Matches every ID of this trust domain.
    pub fn trust_domain(trust_domain: TrustDomain) -> Self {
        Self(Matcher::TrustDomain(trust_domain))
    }

    /// Matches this ID and every ID below it, by whole path segments: `spiffe://x/web` matches
    /// `spiffe://x/web` and `spiffe://x/web/1`, but not `spiffe://x/webhook`.
    pub fn path_prefix(prefix: SpiffeId) -> Self {
        Self(Matcher::PathPrefix(prefix))
    }

    /// Returns whether `id` matches.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match &self.0 {
            Matcher::Any => true,
            Matcher::OneOf(ids) => ids.contains(id),
            Matcher::TrustDomain(trust_domain) => id.is_member_of(trust_domain),
            Matcher::PathPrefix(prefix) => match id.as_str().strip_prefix(prefix.as_str()) {
                Some(rest) => rest.is_empty() || rest.starts_with('/'),
                None => false,
            },
        }
    }

    /// Whether no ID can match.
    pub fn matches_nothing(&self) -> bool {
        matches!(&self.0, Matcher::OneOf(ids) if ids.is_empty())
    }
}

// === the rules ===

fn name_in(uri: &str, len: u8) -> &str {
    uri.get(SCHEME.len()..SCHEME.len() + usize::from(len))
        .unwrap_or_default()
}

/// Checks a whole ID and returns the length of its trust domain name.
fn check_id(text: &str) -> Result<u8, SpiffeIdError> {
    if text.is_empty() {
        return Err(SpiffeIdError::Empty);
    }
    let Some(rest) = text.strip_prefix(SCHEME) else {
        return Err(SpiffeIdError::Scheme);
    };
    if text.len() > MAX_SPIFFE_ID_LEN {
        return Err(SpiffeIdError::TooLong);
    }
    // By bytes: faster than a search for a `char` in such short texts.
    let rest = rest.as_bytes();
    let end = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
    let (name, path) = rest.split_at_checked(end).unwrap_or_default();
    let len = check_name(name)?;
    check_path(path)?;
    Ok(len)
}

fn check_name(name: &[u8]) -> Result<u8, SpiffeIdError> {
    if name.is_empty() {
        return Err(SpiffeIdError::EmptyTrustDomain);
    }
    if !name
        .iter()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
    {
        return Err(SpiffeIdError::TrustDomainCharacter);
    }
    u8::try_from(name.len()).map_err(|_| SpiffeIdError::TrustDomainTooLong)
}

/// Checks a path: empty, or segments that each follow a `/`.
fn check_path(path: &[u8]) -> Result<(), SpiffeIdError> {
    let Some(segments) = path.strip_prefix(b"/") else {
        return Ok(());
    };
    if segments.is_empty() || segments.ends_with(b"/") {
        return Err(SpiffeIdError::TrailingSlash);
    }
    for segment in segments.split(|b| *b == b'/') {
        match segment {
            b"" => return Err(SpiffeIdError::EmptySegment),
            b"." | b".." => return Err(SpiffeIdError::DotSegment),
            _ => {}
        }
        let legal = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if !segment.iter().all(legal) {
            return Err(SpiffeIdError::PathCharacter);
        }
    }
    Ok(())
}
