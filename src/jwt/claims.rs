//! The claims of a JWT-SVID (JWT-SVID section 3, RFC 7519 section 4.1).

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, SeqAccess, Visitor};

use super::json::{Object, Text, read_numeric_date, read_object, read_text};
use crate::clock::UnixTime;

/// The five claims that are checked. The others stay in the payload.
pub(crate) struct Claims<'a> {
    pub(crate) subject: Cow<'a, str>,
    /// At least one.
    pub(crate) audiences: Audiences<'a>,
    pub(crate) life: Life,
}

/// The times of a token.
#[derive(Clone, Copy)]
pub(crate) struct Life {
    pub(crate) expires_at: UnixTime,
    pub(crate) not_before: Option<UnixTime>,
    pub(crate) issued_at: Option<UnixTime>,
}

/// Why claims are invalid. A wrong type is a fault and never counts as missing.
pub(crate) type ClaimsFault = &'static str;

pub(crate) const PAYLOAD: ClaimsFault = "the payload is not a JSON object in UTF-8";

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
        deserializer.deserialize_seq(AudienceReader).ok()
    }
}

impl<'a> Claims<'a> {
    pub(crate) fn parse(json: &'a str) -> Result<Self, ClaimsFault> {
        let mut members = Members::default();
        if read_object(json, &mut members).map_err(|_| PAYLOAD)? {
            return Err("a claim is duplicate");
        }
        let date = |raw: Option<&'a str>, fault| match raw {
            Some(raw) => read_numeric_date(raw).map(Some).ok_or(fault),
            None => Ok(None),
        };
        Ok(Self {
            subject: members
                .subject
                .and_then(read_text)
                .ok_or("`sub` is missing or not a string")?,
            audiences: members
                .audience
                .and_then(Audiences::read)
                .ok_or("`aud` is missing, empty, or neither a string nor an array of strings")?,
            life: Life {
                expires_at: members
                    .expiry
                    .and_then(read_numeric_date)
                    .ok_or("`exp` is missing or not a number")?,
                not_before: date(members.not_before, "`nbf` is not a number")?,
                issued_at: date(members.issued_at, "`iat` is not a number")?,
            },
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
}

impl<'a> Object<'a> for Members<'a> {
    const ALL_ONCE: bool = true;

    fn place(&mut self, name: &str) -> Option<&mut Option<&'a str>> {
        Some(match name {
            "sub" => &mut self.subject,
            "aud" => &mut self.audience,
            "exp" => &mut self.expiry,
            "nbf" => &mut self.not_before,
            "iat" => &mut self.issued_at,
            _ => return None,
        })
    }
}

struct AudienceReader;

impl<'de> Visitor<'de> for AudienceReader {
    type Value = Audiences<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of at least one string")
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
