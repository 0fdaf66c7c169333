//! A JWK Set, read element by element (RFC 7517 section 5).

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::JwtBundle;
use super::authority::JwtAuthority;
use super::jwk::{self, IgnoredKey, IgnoredReason, UseRule};
use super::wrong_kind::{Expected, wrong_kind};
use crate::jwt::Text;
use crate::presentable::json_fault;

/// The document is not a JWK Set: it is not UTF-8, not one JSON object, or does not have exactly one
/// `keys` that is an array or null. A set without keys is not an error.
///
/// The text names the position of the fault. If the document has another known format (PEM, a
/// discovery document, a Kubernetes manifest and others), it names that too. It repeats nothing of the
/// document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwksError {
    fault: Box<str>,
    kind: Option<&'static str>,
}

impl JwksError {
    fn new(fault: String, document: &[u8]) -> Self {
        Self {
            fault: fault.into(),
            kind: wrong_kind(document, Expected::Keys),
        }
    }

    /// Returns the actual format of the document and what to use instead, as a sentence; `None` if the
    /// format is not known.
    pub fn kind_found(&self) -> Option<&'static str> {
        self.kind
    }
}

impl fmt::Display for JwksError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a JWK Set (RFC 7517 section 5): {}", self.fault)?;
        match self.kind {
            Some(kind) => write!(f, "; {kind}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for JwksError {}

/// The most elements that are reported as ignored: a document with a million invalid elements must
/// not fill the memory.
pub(super) const MOST_IGNORED: usize = 256;

const EXPECTED: &str = "it must be an object with exactly one `keys`, an array";

type Keys = (Box<[Arc<JwtAuthority>]>, Box<[IgnoredKey]>);

/// The authorities in `document`, sorted by key ID, and the ignored elements. Keys that `known` has are not
/// parsed again.
pub(super) fn read(
    document: &[u8],
    rule: UseRule,
    known: Option<&JwtBundle>,
) -> Result<Keys, JwksError> {
    let text =
        std::str::from_utf8(document).map_err(|_| JwksError::new("not UTF-8".into(), document))?;
    let elements =
        elements(text).map_err(|error| JwksError::new(json_fault(&error, EXPECTED), document))?;

    let elements = elements.into_iter().enumerate();
    Ok(sorted(elements.map(|(position, element)| {
        jwk::read(position, element.get(), rule, known)
    })))
}

/// Reads as [`read`] does, from separate elements.
pub(super) fn read_each<K: AsRef<[u8]>>(
    elements: impl IntoIterator<Item = K>,
    rule: UseRule,
) -> Keys {
    let elements = elements.into_iter().enumerate();
    sorted(elements.map(
        |(position, element)| match std::str::from_utf8(element.as_ref()) {
            Ok(element) => jwk::read(position, element, rule, None),
            Err(_) => Err(IgnoredKey::new(position, None, IgnoredReason::Malformed)),
        },
    ))
}

fn sorted(elements: impl Iterator<Item = Result<JwtAuthority, IgnoredKey>>) -> Keys {
    let (mut found, mut ignored) = (Vec::new(), Vec::new());
    for (position, element) in elements.enumerate() {
        match element {
            Ok(authority) => found.push((position, authority)),
            Err(key) => report(&mut ignored, key),
        }
    }
    let authorities = without_ambiguous(found, &mut ignored);
    ignored.sort_by_key(IgnoredKey::position);
    (authorities, ignored.into())
}

/// Drops keys whose key ID two different keys have: otherwise the order of an array would decide
/// which one is trusted. The same key twice is one key, with what both elements allow.
fn without_ambiguous(
    mut found: Vec<(usize, JwtAuthority)>,
    ignored: &mut Vec<IgnoredKey>,
) -> Box<[Arc<JwtAuthority>]> {
    found.sort_by(|(_, a), (_, b)| a.key_id().cmp(b.key_id()));
    let ambiguous: HashSet<Box<str>> = found
        .windows(2)
        .filter_map(|pair| match pair {
            [(_, a), (_, b)] if a.key_id() == b.key_id() && a.key != b.key => {
                Some(a.key_id().into())
            }
            _ => None,
        })
        .collect();
    let mut authorities: Vec<JwtAuthority> = Vec::with_capacity(found.len());
    for (position, authority) in found {
        let key_id = authority.key_id();
        if ambiguous.contains(key_id) {
            let reason = IgnoredReason::AmbiguousKeyId;
            report(ignored, IgnoredKey::new(position, Some(key_id), reason));
        } else if let Some(twin) = authorities.last_mut()
            && twin.key_id() == key_id
        {
            twin.algorithms = twin.algorithms.and(authority.algorithms);
        } else {
            authorities.push(authority);
        }
    }
    authorities.into_iter().map(Arc::new).collect()
}

fn report(ignored: &mut Vec<IgnoredKey>, key: IgnoredKey) {
    if ignored.len() < MOST_IGNORED {
        ignored.push(key);
    } else if key.is_fault()
        && let Some(last) = ignored.last_mut().filter(|last| !last.is_fault())
    {
        // Many keys for other SVIDs must not hide a faulty key.
        *last = key;
    }
}

fn elements(text: &str) -> Result<Vec<&RawValue>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let elements = deserializer.deserialize_map(SetReader)?;
    deserializer.end()?;
    Ok(elements)
}

struct SetReader;

impl<'de> Visitor<'de> for SetReader {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with an array `keys`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut keys = None;
        while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
            // Other members do not matter (SPIFFE Trust Domain and Bundle section 4.1).
            if name != "keys" {
                map.next_value::<IgnoredAny>()?;
            } else {
                // Go writes an empty list as null. An error here would keep revoked keys.
                let elements: Option<Vec<_>> = map.next_value()?;
                if keys.replace(elements.unwrap_or_default()).is_some() {
                    return Err(A::Error::duplicate_field("keys"));
                }
            }
        }
        keys.ok_or_else(|| A::Error::missing_field("keys"))
    }
}
