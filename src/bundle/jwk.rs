//! One element of a JWK Set (RFC 7517 section 4, RFC 7518 section 6).

use std::fmt;

use super::JwtBundle;
use super::authority::JwtAuthority;
use crate::jwt::{
    Algorithm, AlgorithmSet, Curve, KeyFault, MAX_KEY_ID_LEN, Object, PublicKey, Text, decode,
    read_object, read_text,
};

/// What `use` must be.
#[derive(Clone, Copy)]
pub(crate) enum UseRule {
    /// Workload API: issuers omit it there, and no rule requires it.
    AbsentOrJwtSvid,
    /// SPIFFE bundles (SPIFFE Trust Domain and Bundle section 4.2.2).
    JwtSvid,
    /// JWK Sets of OIDC issuers: some of them write `sig` for keys that sign tokens.
    AbsentOrJwtSvidOrSig,
}

/// An element of a JWK Set that is not used as an authority. It does not affect the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredKey {
    position: usize,
    key_id: Option<Box<str>>,
    reason: IgnoredReason,
    other_svid: Option<OtherSvid>,
}

/// Another kind of SVID. A bundle may have keys for it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OtherSvid {
    X509,
    Wit,
}

/// Why an element of a JWK Set is not used as an authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IgnoredReason {
    /// Not a JSON object.
    NotAnObject,
    /// A member that matters is a duplicate or has a wrong type.
    Malformed,
    /// `kty` is neither `EC` nor `RSA`.
    KeyType,
    /// `crv` is not P-256, P-384 or P-521.
    Curve,
    /// `kid` is missing, empty, or longer than 1024 bytes.
    KeyId,
    /// `use` is not `jwt-svid`, or is missing where it is required.
    Use,
    /// It has a private member: anyone who can read the bundle can sign.
    PrivateKey,
    /// A coordinate, the modulus or the exponent is missing, not base64url, or not of full length.
    Encoding,
    /// The point is not on the curve.
    NotOnCurve,
    /// The RSA modulus has fewer than 2048 bits or more than 8192, or is even.
    Modulus,
    /// The RSA exponent is even, below 3, or longer than 33 bits.
    Exponent,
    /// Two different keys have this key ID, so it is ambiguous.
    AmbiguousKeyId,
}

/// The longest key ID that is shown; a longer one is cut.
const SHOWN: usize = 64;

impl IgnoredKey {
    pub(super) fn new(position: usize, key_id: Option<&str>, reason: IgnoredReason) -> Self {
        let key_id = key_id.map(|key_id| key_id.chars().take(SHOWN).collect::<String>().into());
        Self {
            position,
            key_id,
            reason,
            other_svid: None,
        }
    }

    /// Returns its position in `keys`, from 0.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Returns its key ID, at most 64 characters of it; `None` if it could not be read.
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// Returns why it is ignored.
    pub fn reason(&self) -> IgnoredReason {
        self.reason
    }

    /// Returns whether its `use` is `x509-svid`: a key for X.509-SVIDs, which SPIFFE bundles have
    /// in addition to the keys for JWT-SVIDs. The reason is then [`IgnoredReason::Use`], and the key
    /// is not faulty.
    pub fn is_x509_svid(&self) -> bool {
        self.other_svid == Some(OtherSvid::X509)
    }

    /// Returns whether its `use` is `wit-svid`: a key for Workload Identity Tokens. The reason is
    /// then [`IgnoredReason::Use`], and the key is not faulty.
    pub fn is_wit_svid(&self) -> bool {
        self.other_svid == Some(OtherSvid::Wit)
    }

    /// Whether the issuer may want the key to be used: it is not for another kind of SVID.
    pub(super) fn is_fault(&self) -> bool {
        self.other_svid.is_none()
    }
}

/// Writes the reason, or the kind of SVID that the key is for.
impl fmt::Display for IgnoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.other_svid {
            Some(OtherSvid::X509) => {
                f.write_str("an X.509-SVID key (`use` is x509-svid), not for JWT-SVIDs")
            }
            Some(OtherSvid::Wit) => {
                f.write_str("a WIT-SVID key (`use` is wit-svid), not for JWT-SVIDs")
            }
            None => self.reason.fmt(f),
        }
    }
}

impl fmt::Display for IgnoredReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAnObject => "not a JSON object",
            Self::Malformed => "a member is a duplicate or has a wrong type",
            Self::KeyType => "`kty` is neither EC nor RSA",
            Self::Curve => "`crv` is not P-256, P-384 or P-521",
            Self::KeyId => "`kid` is missing, empty or longer than 1024 bytes",
            Self::Use => "`use` is not jwt-svid",
            Self::PrivateKey => {
                "it has a private member, so the private key is public; replace the key"
            }
            Self::Encoding => "a number is missing, not base64url, or not of full length",
            Self::NotOnCurve => "the point is not on the curve",
            Self::Modulus => "the RSA modulus is even or does not have 2048 to 8192 bits",
            Self::Exponent => "the RSA exponent is even, below 3 or longer than 33 bits",
            Self::AmbiguousKeyId => "two different keys have this `kid`",
        })
    }
}

/// Reads one element. A key that `known` has under its ID is not parsed again.
pub(super) fn read(
    position: usize,
    element: &str,
    rule: UseRule,
    known: Option<&JwtBundle>,
) -> Result<JwtAuthority, IgnoredKey> {
    let members =
        Members::read(element).map_err(|reason| IgnoredKey::new(position, None, reason))?;
    let key_id = members.key_id.and_then(read_text);
    let ignored = |reason| IgnoredKey::new(position, key_id.as_deref(), reason);
    // Checked first: such a key needs no `kid`.
    let other_svid = match members.usage.and_then(read_text).as_deref() {
        Some("x509-svid") => Some(OtherSvid::X509),
        Some("wit-svid") => Some(OtherSvid::Wit),
        _ => None,
    };
    if other_svid.is_some() {
        return Err(IgnoredKey {
            other_svid,
            ..ignored(IgnoredReason::Use)
        });
    }
    let is_valid = |id: &&str| !id.is_empty() && id.len() <= MAX_KEY_ID_LEN;
    let Some(key_id) = key_id.as_deref().filter(is_valid) else {
        return Err(ignored(IgnoredReason::KeyId));
    };
    let known = known.and_then(|known| known.authority(key_id));
    authority(&members, key_id, rule, known.map(|known| &known.key)).map_err(ignored)
}

fn authority(
    members: &Members<'_>,
    key_id: &str,
    rule: UseRule,
    known: Option<&PublicKey>,
) -> Result<JwtAuthority, IgnoredReason> {
    let usage = members.usage.map(read_text);
    let is_for_jwt_svids = match usage.as_ref().map(Option::as_deref) {
        None => !matches!(rule, UseRule::JwtSvid),
        Some(Some("jwt-svid")) => true,
        Some(Some("sig")) => matches!(rule, UseRule::AbsentOrJwtSvidOrSig),
        Some(_) => false,
    };
    if !is_for_jwt_svids {
        return Err(IgnoredReason::Use);
    }
    let key_type = members.key_type.and_then(read_text);
    let is_ec = match key_type.as_deref() {
        Some("EC") => true,
        Some("RSA") => false,
        _ => return Err(IgnoredReason::KeyType),
    };
    if members.private {
        return Err(IgnoredReason::PrivateKey);
    }
    let key = if is_ec {
        let curve = members
            .curve
            .and_then(|raw| Curve::from_name(&read_text(raw)?))
            .ok_or(IgnoredReason::Curve)?;
        PublicKey::ec(curve, &number(members.x)?, &number(members.y)?, known)
    } else {
        PublicKey::rsa(&number(members.n)?, &number(members.e)?, known)
    };
    let key = key.map_err(|fault| match fault {
        KeyFault::CoordinateLength => IgnoredReason::Encoding,
        KeyFault::NotOnCurve => IgnoredReason::NotOnCurve,
        KeyFault::Modulus => IgnoredReason::Modulus,
        KeyFault::Exponent => IgnoredReason::Exponent,
    })?;
    let allowed = allowed_by_alg(members.algorithm).and(allowed_by_key_ops(members.key_ops));
    Ok(JwtAuthority::new(key_id, key, allowed))
}

fn number(raw: Option<&str>) -> Result<Vec<u8>, IgnoredReason> {
    raw.and_then(|raw| decode(&read_text(raw)?))
        .ok_or(IgnoredReason::Encoding)
}

/// An `alg` allows itself only; an unknown one, or one that is not a string, allows nothing. The key
/// stays known, so that the error of its tokens is about the algorithm.
fn allowed_by_alg(raw: Option<&str>) -> AlgorithmSet {
    match raw {
        None => AlgorithmSet::ALL,
        Some(raw) => read_text(raw)
            .and_then(|name| Algorithm::from_name(&name))
            .map_or(AlgorithmSet::NONE, AlgorithmSet::only),
    }
}

/// `key_ops`, if present, must name `verify` (RFC 7517 section 4.3).
fn allowed_by_key_ops(raw: Option<&str>) -> AlgorithmSet {
    let allows = |raw| {
        serde_json::from_str::<Vec<Text<'_>>>(raw)
            .is_ok_and(|operations| operations.iter().any(|Text(name)| name == "verify"))
    };
    match raw {
        Some(raw) if !allows(raw) => AlgorithmSet::NONE,
        _ => AlgorithmSet::ALL,
    }
}

/// The raw values of the members that matter. Each is checked when it is used.
#[derive(Default)]
struct Members<'a> {
    key_type: Option<&'a str>,
    key_id: Option<&'a str>,
    usage: Option<&'a str>,
    algorithm: Option<&'a str>,
    key_ops: Option<&'a str>,
    curve: Option<&'a str>,
    x: Option<&'a str>,
    y: Option<&'a str>,
    n: Option<&'a str>,
    e: Option<&'a str>,
    private: bool,
}

impl<'a> Members<'a> {
    fn read(element: &'a str) -> Result<Self, IgnoredReason> {
        if !element.starts_with('{') {
            return Err(IgnoredReason::NotAnObject);
        }
        let mut members = Self::default();
        match read_object(element, &mut members) {
            Ok(false) => Ok(members),
            Ok(true) | Err(_) => Err(IgnoredReason::Malformed),
        }
    }
}

impl<'a> Object<'a> for Members<'a> {
    const ALL_ONCE: bool = false;

    fn place(&mut self, name: &str) -> Option<&mut Option<&'a str>> {
        Some(match name {
            "kty" => &mut self.key_type,
            "kid" => &mut self.key_id,
            "use" => &mut self.usage,
            "alg" => &mut self.algorithm,
            "key_ops" => &mut self.key_ops,
            "crv" => &mut self.curve,
            "x" => &mut self.x,
            "y" => &mut self.y,
            "n" => &mut self.n,
            "e" => &mut self.e,
            other => {
                // RFC 7518 sections 6.2.2, 6.3.2 and 6.4. The value does not matter.
                self.private |= matches!(other, "d" | "p" | "q" | "dp" | "dq" | "qi" | "oth" | "k");
                return None;
            }
        })
    }
}
