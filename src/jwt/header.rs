//! The JOSE header of a JWT-SVID (JWT-SVID section 2).

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json::{Names, Text, read_text};
use super::{Algorithm, MAX_KEY_ID_LEN};

/// What a header says, once it is acceptable.
pub(crate) struct Header<'a> {
    pub(crate) algorithm: Algorithm,
    pub(crate) key_id: Cow<'a, str>,
}

/// Why a header is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    /// No JSON object in UTF-8.
    Json,
    /// A member name comes twice.
    Duplicate,
    /// `alg` is absent, no string, or none of the nine.
    Algorithm,
    /// `typ` is there and neither `JWT` nor `JOSE`.
    Type,
    /// `kid` is absent, empty, no string, or too long.
    KeyId,
    /// A field that changes how a token is read, or that brings a key: never accepted.
    Forbidden,
    /// Another field than `alg`, `kid`, `typ`.
    Unknown,
}

impl<'a> Header<'a> {
    /// Reads a header; `allow_unknown` lets fields pass that mean nothing to us.
    pub(crate) fn parse(json: &'a [u8], allow_unknown: bool) -> Result<Self, HeaderFault> {
        let json = std::str::from_utf8(json).map_err(|_| HeaderFault::Json)?;
        let members = Members::read(json).ok_or(HeaderFault::Json)?;
        if members.duplicate {
            return Err(HeaderFault::Duplicate);
        }
        // JWT-5: whether the algorithm is supported comes before everything else in it.
        let algorithm = members
            .algorithm
            .and_then(|raw| Algorithm::from_name(&read_text(raw)?))
            .ok_or(HeaderFault::Algorithm)?;
        if members.forbidden {
            return Err(HeaderFault::Forbidden);
        }
        if members.unknown && !allow_unknown {
            return Err(HeaderFault::Unknown);
        }
        if let Some(raw) = members.typ
            && !matches!(read_text(raw).as_deref(), Some("JWT" | "JOSE"))
        {
            return Err(HeaderFault::Type);
        }
        let key_id = members
            .key_id
            .and_then(read_text)
            .filter(|key_id| !key_id.is_empty() && key_id.len() <= MAX_KEY_ID_LEN)
            .ok_or(HeaderFault::KeyId)?;
        Ok(Self { algorithm, key_id })
    }
}

/// The `kid` of a header that is not judged, only looked at; `None` where it has none that can be
/// read.
pub(crate) fn key_id_unchecked(json: &[u8]) -> Option<Cow<'_, str>> {
    let members = Members::read(std::str::from_utf8(json).ok()?)?;
    members
        .key_id
        .and_then(read_text)
        .filter(|key_id| !key_id.is_empty() && key_id.len() <= MAX_KEY_ID_LEN)
}

#[derive(Default)]
struct Members<'a> {
    algorithm: Option<&'a str>,
    typ: Option<&'a str>,
    key_id: Option<&'a str>,
    forbidden: bool,
    unknown: bool,
    duplicate: bool,
}

impl<'a> Members<'a> {
    fn read(json: &'a str) -> Option<Self> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let members = Reader.deserialize(&mut deserializer).ok()?;
        deserializer.end().ok()?;
        Some(members)
    }
}

struct Reader;

impl<'de> DeserializeSeed<'de> for Reader {
    type Value = Members<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Reader {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Members::default();
        let mut names = Names::new();
        while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
            let known = match &*name {
                "alg" => &mut members.algorithm,
                "typ" => &mut members.typ,
                "kid" => &mut members.key_id,
                name_of_other => {
                    // Any `x5…` brings certificates, under names of today or of tomorrow.
                    members.forbidden |= name_of_other.starts_with("x5")
                        || matches!(name_of_other, "crit" | "b64" | "jku" | "jwk");
                    members.unknown = true;
                    map.next_value::<IgnoredAny>()?;
                    members.duplicate |= !names.insert(name);
                    continue;
                }
            };
            let value = map.next_value::<&'de RawValue>()?.get();
            members.duplicate |= known.replace(value).is_some();
        }
        Ok(members)
    }
}
