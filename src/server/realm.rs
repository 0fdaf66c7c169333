//! The `WWW-Authenticate` challenge (RFC 6750 section 3), and the realm in it.

use std::fmt;
use std::sync::Arc;

use http::HeaderValue;

const DEFAULT: &str = "spiffe";
const MAX_LEN: usize = 128;

/// The realm that challenges name. The default is `spiffe`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Realm(Option<Arc<str>>);

/// An invalid realm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InvalidRealm {
    /// It is empty.
    Empty,
    /// It is longer than 128 bytes.
    TooLong,
    /// It has a character that cannot be quoted in a challenge: `"`, `\`, a line break, another
    /// control character, or one outside ASCII.
    Character,
}

impl Realm {
    pub(crate) const DEFAULT: Self = Self(None);

    pub(crate) fn new(realm: &str) -> Result<Self, InvalidRealm> {
        // The characters that RFC 6750 section 3 allows in descriptions. They need no escapes.
        let legal = |b: u8| matches!(b, 0x20..=0x7e) && b != b'"' && b != b'\\';
        if realm.is_empty() {
            Err(InvalidRealm::Empty)
        } else if realm.len() > MAX_LEN {
            Err(InvalidRealm::TooLong)
        } else if !realm.bytes().all(legal) {
            Err(InvalidRealm::Character)
        } else {
            Ok(Self(Some(realm.into())))
        }
    }

    /// Whether it was not set.
    pub(crate) fn is_default(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the challenge, with the error code and its description if given.
    pub(crate) fn challenge(&self, error: Option<&str>, description: Option<&str>) -> HeaderValue {
        let realm = self.0.as_deref().unwrap_or(DEFAULT);
        let mut text = format!("Bearer realm=\"{realm}\"");
        for (name, value) in [("error", error), ("error_description", description)] {
            if let Some(value) = value {
                text.push_str(&format!(", {name}=\"{value}\""));
            }
        }
        // Cannot fail: the realm was checked, and the rest is fixed text.
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("Bearer realm=\"spiffe\""))
    }
}

impl fmt::Display for InvalidRealm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the realm is empty; name the service, or leave `.realm(…)` out",
            Self::TooLong => "the realm is longer than 128 bytes; use a shorter name",
            Self::Character => {
                "the realm has a character that cannot be quoted in a challenge; use printable \
                 ASCII without `\"` and `\\`"
            }
        })
    }
}

impl std::error::Error for InvalidRealm {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a27_an_unquotable_realm_is_an_error() {
        for realm in [
            "a\"b",
            "a\\b",
            "a\r\nSet-Cookie: x",
            "a\nb",
            "\0",
            "\x7f",
            "caf\u{e9}",
            "a\tb",
        ] {
            assert_eq!(Realm::new(realm), Err(InvalidRealm::Character), "{realm:?}");
        }
        assert_eq!(Realm::new(""), Err(InvalidRealm::Empty));
        assert_eq!(Realm::new(&"x".repeat(129)), Err(InvalidRealm::TooLong));
    }

    #[test]
    fn challenges_have_the_form_of_rfc_6750() {
        let realm = Realm::new("the reports, v2 (it's new)").unwrap();
        assert_eq!(
            realm.challenge(None, None),
            "Bearer realm=\"the reports, v2 (it's new)\""
        );
        assert_eq!(
            Realm::default().challenge(Some("invalid_token"), Some("the token has expired")),
            "Bearer realm=\"spiffe\", error=\"invalid_token\", \
             error_description=\"the token has expired\""
        );
    }
}
