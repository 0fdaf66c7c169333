//! The claims of a JWT-SVID (JWT-SVID section 3, RFC 7519 section 4.1).

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::json::{Names, Text, read_numeric_date, read_text};
use crate::clock::UnixTime;

/// What a payload says of the five claims that we know; the others stay in it.
pub(crate) struct Claims<'a> {
    pub(crate) subject: Cow<'a, str>,
    /// At least one.
    pub(crate) audiences: Audiences<'a>,
    pub(crate) expires_at: UnixTime,
    pub(crate) not_before: Option<UnixTime>,
    pub(crate) issued_at: Option<UnixTime>,
}

/// Why claims are not acceptable; a wrong type is a fault and never counts as absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClaimsFault {
    /// No JSON object in UTF-8.
    Json,
    /// A top-level name comes twice, with or without escapes.
    Duplicate,
    /// `sub` is absent or no string.
    Subject,
    /// `aud` is absent, empty, or neither a string nor an array of strings.
    Audience,
    /// `exp` is absent or no number that a double holds.
    Expiry,
    /// `nbf` is there and no such number.
    NotBefore,
    /// `iat` is there and no such number.
    IssuedAt,
}

/// One audience or several.
pub(crate) enum Audiences<'a> {
    One(Cow<'a, str>),
    Many(Vec<Cow<'a, str>>),
}

impl<'a> Audiences<'a> {
    pub(crate) fn as_slice(&self) -> &[Cow<'a, str>] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }

    fn read(raw: &'a str) -> Option<Self> {
        if let Some(one) = read_text(raw) {
            return Some(Self::One(one));
        }
        let mut deserializer = serde_json::Deserializer::from_str(raw);
        AudienceReader.deserialize(&mut deserializer).ok()
    }
}

impl<'a> Claims<'a> {
    /// Reads the claims, in one pass over the payload; nothing recurses on what we do not know.
    pub(crate) fn parse(json: &'a str) -> Result<Self, ClaimsFault> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let members = Reader
            .deserialize(&mut deserializer)
            .map_err(|_| ClaimsFault::Json)?;
        deserializer.end().map_err(|_| ClaimsFault::Json)?;
        if members.duplicate {
            return Err(ClaimsFault::Duplicate);
        }
        let date = |raw: Option<&'a str>, fault| match raw {
            Some(raw) => read_numeric_date(raw).map(Some).ok_or(fault),
            None => Ok(None),
        };
        Ok(Self {
            subject: members
                .subject
                .and_then(read_text)
                .ok_or(ClaimsFault::Subject)?,
            audiences: members
                .audience
                .and_then(Audiences::read)
                .ok_or(ClaimsFault::Audience)?,
            expires_at: members
                .expiry
                .and_then(read_numeric_date)
                .ok_or(ClaimsFault::Expiry)?,
            not_before: date(members.not_before, ClaimsFault::NotBefore)?,
            issued_at: date(members.issued_at, ClaimsFault::IssuedAt)?,
        })
    }
}

#[derive(Default)]
struct Members<'a> {
    subject: Option<&'a str>,
    audience: Option<&'a str>,
    expiry: Option<&'a str>,
    not_before: Option<&'a str>,
    issued_at: Option<&'a str>,
    duplicate: bool,
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
                "sub" => &mut members.subject,
                "aud" => &mut members.audience,
                "exp" => &mut members.expiry,
                "nbf" => &mut members.not_before,
                "iat" => &mut members.issued_at,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    members.duplicate |= !names.insert(name);
                    continue;
                }
            };
            members.duplicate |= known
                .replace(map.next_value::<&'de RawValue>()?.get())
                .is_some();
        }
        Ok(members)
    }
}

struct AudienceReader;

impl<'de> DeserializeSeed<'de> for AudienceReader {
    type Value = Audiences<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AudienceReader {
    type Value = Audiences<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of strings, one at least")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let Some(Text(first)) = seq.next_element()? else {
            return Err(serde::de::Error::invalid_length(0, &self));
        };
        let Some(Text(second)) = seq.next_element()? else {
            return Ok(Audiences::One(first));
        };
        let mut many = vec![first, second];
        while let Some(Text(next)) = seq.next_element()? {
            many.push(next);
        }
        Ok(Audiences::Many(many))
    }
}
