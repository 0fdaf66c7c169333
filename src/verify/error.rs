//! Why a caller's token is rejected.

use std::fmt;

use crate::bundle::BundlesUnavailable;

/// Why a token was rejected: a class, a fixed sentence, and what the token claimed, if that was read.
///
/// It contains single values from the token, bounded and escaped, and never the token or its
/// signature: it can be logged.
#[derive(Clone, PartialEq, Eq)]
pub struct ValidateError {
    reason: ValidateReason,
    detail: &'static str,
    key_id: Option<Box<str>>,
    trust_domain: Option<Box<str>>,
    audiences: Option<String>,
}

/// The class of a [`ValidateError`]. For all but the last, the token is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ValidateReason {
    /// The token is longer than the validator allows; it was not read.
    TooLong,
    /// Not three parts of base64url, or a header that is not a JSON object.
    Malformed,
    /// A header field is missing, invalid, duplicate, or not allowed.
    Header,
    /// `alg` is missing or not allowed.
    Algorithm,
    /// A claim is missing, of a wrong type, duplicate, or not acceptable.
    Claims,
    /// `exp` has passed, leeway included.
    Expired,
    /// `nbf` is in the future, leeway included.
    NotYetValid,
    /// `aud` has none of the validator's audiences, or it has several values and the validator requires a
    /// [`sole_audience`](crate::verify::ValidatorBuilder::sole_audience).
    Audience,
    /// There is no bundle for the trust domain of `sub`.
    TrustDomainUnknown,
    /// The bundle has no key with this `kid`. If the token has no `kid`: the bundle has no key, or
    /// more than four, that fit its `alg`.
    KeyUnknown,
    /// The key cannot be used with this `alg`.
    KeyUnfit,
    /// The signature does not verify with that key. If the token has no `kid`: no key that fits its `alg`
    /// verifies the signature.
    Signature,
    /// There are no usable bundles now; the token may be valid.
    BundlesUnavailable(BundlesUnavailable),
}

impl ValidateReason {
    /// Returns the name of the class, for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too-long",
            Self::Malformed => "malformed-token",
            Self::Header => "header",
            Self::Algorithm => "algorithm",
            Self::Claims => "claims",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::Audience => "audience",
            Self::TrustDomainUnknown => "trust-domain-unknown",
            Self::KeyUnknown => "key-unknown",
            Self::KeyUnfit => "key-unfit",
            Self::Signature => "signature",
            Self::BundlesUnavailable(_) => "cannot-judge",
        }
    }
}

impl fmt::Display for ValidateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The longest text of a caller in an error, in bytes, escapes included.
const SHOWN: usize = 64;

impl ValidateError {
    pub(super) fn new(reason: ValidateReason, detail: &'static str) -> Self {
        Self {
            reason,
            detail,
            key_id: None,
            trust_domain: None,
            audiences: None,
        }
    }

    pub(super) fn with_key_id(mut self, key_id: Option<&str>) -> Self {
        self.key_id = key_id.map(shown);
        self
    }

    pub(super) fn with_trust_domain(mut self, trust_domain: &str) -> Self {
        self.trust_domain = Some(trust_domain.into());
        self
    }

    pub(super) fn with_audiences(mut self, audiences: &[impl AsRef<str>]) -> Self {
        const MOST: usize = 3;
        let mut text = String::with_capacity(MOST * (SHOWN + 2) + "…".len());
        for audience in audiences.iter().take(MOST) {
            if !text.is_empty() {
                text.push_str(", ");
            }
            show(&mut text, audience.as_ref());
        }
        if audiences.len() > MOST {
            text.push_str(", …");
        }
        self.audiences = Some(text);
        self
    }

    /// Returns the class.
    pub fn reason(&self) -> ValidateReason {
        self.reason
    }

    /// Returns the details, a fixed sentence.
    pub fn detail(&self) -> &'static str {
        self.detail
    }

    /// Returns the `kid` that the token claims, escaped, at most 64 bytes. `None` if the token has none or
    /// its header was not read.
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// Returns the trust domain that the token claims, if its `sub` was read. The name is valid, but
    /// anyone can claim it.
    pub fn trust_domain(&self) -> Option<&str> {
        self.trust_domain.as_deref()
    }

    /// Returns the audiences that the token claims, if the reason is [`Audience`](ValidateReason::Audience):
    /// the first three, escaped, at most 64 bytes each.
    pub fn audiences(&self) -> Option<&str> {
        self.audiences.as_deref()
    }
}

/// Printable ASCII of limited length: a caller must not choose the length or the lines of a log.
fn shown(text: &str) -> Box<str> {
    let plain = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\'' | b'\\');
    if text.len() <= SHOWN && text.bytes().all(plain) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len().min(SHOWN));
    show(&mut shown, text);
    shown.into()
}

/// Appends the text, escaped and cut at [`SHOWN`] bytes.
fn show(out: &mut String, text: &str) {
    let end = out.len() + SHOWN;
    for char in text.chars() {
        let escaped = char.escape_default();
        if out.len() + escaped.len() > end {
            break;
        }
        out.extend(escaped);
    }
}

impl fmt::Display for ValidateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

impl fmt::Debug for ValidateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateError")
            .field("reason", &self.reason)
            .field("detail", &self.detail)
            .field("key_id", &self.key_id)
            .field("trust_domain", &self.trust_domain)
            .finish()
    }
}

impl std::error::Error for ValidateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            ValidateReason::BundlesUnavailable(why) => Some(why),
            _ => None,
        }
    }
}
