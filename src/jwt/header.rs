//! The JOSE header of a JWT-SVID (JWT-SVID section 2).

use std::borrow::Cow;

use super::json::{Object, read_object, read_text};
use super::{Algorithm, MAX_KEY_ID_LEN};

/// The fields of a valid header.
pub(crate) struct Header<'a> {
    pub(crate) algorithm: Algorithm,
    /// `None` if the token does not name its key, which JWT-SVID section 2.2 allows.
    pub(crate) key_id: Option<Cow<'a, str>>,
}

/// Why a header is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    /// Not a JSON object in UTF-8.
    Json,
    /// `alg` is missing, not a string, or unknown.
    Algorithm,
    /// Another field is invalid or not accepted: why.
    Field(&'static str),
}

impl<'a> Header<'a> {
    /// Reads a header; `allow_unknown` ignores unknown fields.
    pub(crate) fn parse(json: &'a [u8], allow_unknown: bool) -> Result<Self, HeaderFault> {
        let json = std::str::from_utf8(json).map_err(|_| HeaderFault::Json)?;
        let mut members = Members::default();
        if read_object(json, &mut members).map_err(|_| HeaderFault::Json)? {
            return Err(HeaderFault::Field("a header field is duplicate"));
        }
        // JWT-5: the algorithm is checked before all other fields.
        let algorithm = members
            .algorithm
            .and_then(|raw| Algorithm::from_name(&read_text(raw)?))
            .ok_or(HeaderFault::Algorithm)?;
        if members.forbidden {
            // They change how a token is read, or contain a key.
            let why = "it has a header field that is never accepted (crit, b64, jku, jwk, x5…)";
            return Err(HeaderFault::Field(why));
        }
        if members.unknown && !allow_unknown {
            let why = "it has a header field other than alg, kid and typ";
            return Err(HeaderFault::Field(why));
        }
        if let Some(raw) = members.typ
            && !matches!(read_text(raw).as_deref(), Some("JWT" | "JOSE"))
        {
            return Err(HeaderFault::Field("`typ` is neither JWT nor JOSE"));
        }
        let why = "`kid` is empty, not a string, or longer than 1024 bytes";
        let key_id = match members.key_id {
            Some(raw) => Some(key_id(raw).ok_or(HeaderFault::Field(why))?),
            None => None,
        };
        Ok(Self { algorithm, key_id })
    }
}

/// The `kid` of a header without any other check; `None` if it cannot be read.
pub(crate) fn key_id_unchecked(json: &[u8]) -> Option<Cow<'_, str>> {
    let mut members = Members::default();
    read_object(std::str::from_utf8(json).ok()?, &mut members).ok()?;
    members.key_id.and_then(key_id)
}

fn key_id(raw: &str) -> Option<Cow<'_, str>> {
    read_text(raw).filter(|key_id| !key_id.is_empty() && key_id.len() <= MAX_KEY_ID_LEN)
}

#[derive(Default)]
struct Members<'a> {
    algorithm: Option<&'a str>,
    typ: Option<&'a str>,
    key_id: Option<&'a str>,
    forbidden: bool,
    unknown: bool,
}

impl<'a> Object<'a> for Members<'a> {
    const ALL_ONCE: bool = true;

    fn place(&mut self, name: &str) -> Option<&mut Option<&'a str>> {
        Some(match name {
            "alg" => &mut self.algorithm,
            "typ" => &mut self.typ,
            "kid" => &mut self.key_id,
            other => {
                // Every `x5…` field contains certificates, including fields that may be defined later.
                self.forbidden |=
                    other.starts_with("x5") || matches!(other, "crit" | "b64" | "jku" | "jwk");
                self.unknown = true;
                return None;
            }
        })
    }
}
