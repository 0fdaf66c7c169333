//! A token of this workload, to send.

use std::fmt;
use std::sync::Arc;

#[cfg(feature = "client")]
use super::SvidRequest;
use crate::clock::UnixTime;
use crate::identity::SpiffeId;
use crate::jwt::MAX_TOKEN_LEN;
use crate::jwt::{Claims, Split, decode, key_id_unchecked};
use crate::presentable::debug_fields;

/// A JWT-SVID of this workload from an issuer, or an [access token](JwtSvid::access_token) used
/// instead. Clones are cheap.
///
/// `Debug` and `Display` do not show the token; [`token`](Self::token) returns it.
///
/// ```
/// use tower_spiffe::token::{JwtSvid, ParseJwtSvidError};
///
/// assert_eq!(JwtSvid::parse_unverified("a.b", "").unwrap_err(), ParseJwtSvidError::Parts);
/// ```
#[derive(Clone)]
pub struct JwtSvid(Arc<Inner>);

struct Inner {
    // `Bearer ` + the token, so that a header value can share this memory.
    bearer: Box<str>,
    subject: Arc<Subject>,
    audiences: Arc<[Box<str>]>,
    expires_at: UnixTime,
    issued_at: Option<UnixTime>,
}

/// The part that many tokens of one workload have in common.
#[derive(PartialEq, Eq)]
pub(crate) struct Subject {
    spiffe_id: SpiffeId,
    key_id: Option<Box<str>>,
    hint: Box<str>,
}

const BEARER: &str = "Bearer ";

/// Why a text is not a token that can be sent. Contains no part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ParseJwtSvidError {
    /// It is longer than [`MAX_TOKEN_LEN`].
    TooLong,
    /// It does not have exactly three non-empty parts.
    Parts,
    /// A part is not base64url.
    Encoding,
    /// The payload is not a JSON object with `sub`, `aud` and `exp` of the right types.
    Claims,
    /// `sub` is not a SPIFFE ID.
    Subject,
    /// An access token has a character that RFC 6750 does not allow, or is empty.
    Characters,
}

impl JwtSvid {
    /// Reads a token from the issuer of this workload. The signature is **not** verified: the
    /// receiver of the token does that. This only checks that the token can be sent.
    ///
    /// # Errors
    /// Returns a [`ParseJwtSvidError`] if the token cannot be sent.
    pub fn parse_unverified(token: &str, hint: &str) -> Result<Self, ParseJwtSvidError> {
        if token.len() > MAX_TOKEN_LEN {
            return Err(ParseJwtSvidError::TooLong);
        }
        let split = Split::new(token).ok_or(ParseJwtSvidError::Parts)?;
        if split.signature.contains('.') {
            return Err(ParseJwtSvidError::Parts);
        }
        let header = decode(split.header).ok_or(ParseJwtSvidError::Encoding)?;
        let payload = decode(split.payload).ok_or(ParseJwtSvidError::Encoding)?;
        decode(split.signature).ok_or(ParseJwtSvidError::Encoding)?;
        let payload = std::str::from_utf8(&payload).map_err(|_| ParseJwtSvidError::Claims)?;
        let claims = Claims::parse(payload).map_err(|_| ParseJwtSvidError::Claims)?;
        let spiffe_id = SpiffeId::parse(&claims.subject).map_err(|_| ParseJwtSvidError::Subject)?;
        let audiences = claims.audiences.as_slice().iter();
        Ok(Self(Arc::new(Inner {
            bearer: [BEARER, token].concat().into(),
            subject: Arc::new(Subject {
                spiffe_id,
                key_id: key_id_unchecked(&header).map(|key_id| key_id.as_ref().into()),
                hint: hint.into(),
            }),
            audiences: audiences.map(|audience| audience.as_ref().into()).collect(),
            expires_at: claims.life.expires_at,
            issued_at: claims.life.issued_at,
        })))
    }

    /// Creates a token that is not a JWT-SVID, such as an OAuth access token, for your own
    /// [`FetchSvid`](super::FetchSvid). Its content is not read. It has the audiences of `request`,
    /// was issued to `spiffe_id` at `issued_at`, and is not sent after `expires_at`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_spiffe::JwtSvid;
    /// use tower_spiffe::clock::UnixTime;
    /// use tower_spiffe::token::SvidRequest;
    ///
    /// let request = SvidRequest::new(["https://api.example.org"])?;
    /// let now = UnixTime::now();
    /// let end = now.saturating_add(Duration::from_secs(3600));
    /// let token = JwtSvid::access_token("2YotnFZFEjr1zCsi", &request, "spiffe://x/web".parse()?, now, end)?;
    /// assert_eq!(token.token(), "2YotnFZFEjr1zCsi");
    /// assert!(token.audiences().eq(["https://api.example.org"]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The token is longer than 8 KiB ([`TooLong`](ParseJwtSvidError::TooLong)), empty, or not in
    /// the syntax of a bearer token, RFC 6750 section 2.1
    /// ([`Characters`](ParseJwtSvidError::Characters)).
    #[cfg(feature = "client")]
    pub fn access_token(
        token: &str,
        request: &SvidRequest,
        spiffe_id: SpiffeId,
        issued_at: UnixTime,
        expires_at: UnixTime,
    ) -> Result<Self, ParseJwtSvidError> {
        if token.len() > MAX_TOKEN_LEN {
            return Err(ParseJwtSvidError::TooLong);
        }
        if !is_bearer_token(token) {
            return Err(ParseJwtSvidError::Characters);
        }
        Ok(Self(Arc::new(Inner {
            bearer: [BEARER, token].concat().into(),
            subject: Arc::new(Subject {
                spiffe_id,
                key_id: None,
                hint: request.hint().unwrap_or_default().into(),
            }),
            audiences: request.shared_audiences().clone(),
            expires_at,
            issued_at: Some(issued_at),
        })))
    }

    /// Shares memory with other tokens of a cache: the audiences with the request, the subject with the
    /// result of `common`. Does nothing if there are clones of the token.
    #[cfg(feature = "client")]
    pub(crate) fn share(
        &mut self,
        request: &SvidRequest,
        common: impl FnOnce(&Arc<Subject>) -> Arc<Subject>,
    ) {
        let Some(inner) = Arc::get_mut(&mut self.0) else {
            return;
        };
        if inner.audiences == *request.shared_audiences() {
            inner.audiences = request.shared_audiences().clone();
        }
        inner.subject = common(&inner.subject);
    }

    /// Returns the token itself. Anyone who has it can act as this workload towards its audiences
    /// until it expires.
    pub fn token(&self) -> &str {
        self.0.bearer.get(BEARER.len()..).unwrap_or_default()
    }

    /// Returns the value of an `authorization` header with this token (RFC 6750 section 2.1).
    #[cfg(feature = "client")]
    pub(crate) fn bearer(&self) -> &str {
        &self.0.bearer
    }

    /// Returns the identity of this workload: the token's `sub`.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.0.subject.spiffe_id
    }

    /// Returns the token's audiences (`aud`); never empty.
    pub fn audiences(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.0.audiences.iter().map(AsRef::as_ref)
    }

    /// Returns when it expires: its `exp`.
    pub fn expires_at(&self) -> UnixTime {
        self.0.expires_at
    }

    /// Returns when it was issued: its `iat`, if it has one.
    pub fn issued_at(&self) -> Option<UnixTime> {
        self.0.issued_at
    }

    /// Returns the ID of the key that signed it (`kid`), if it has one.
    pub fn key_id(&self) -> Option<&str> {
        self.0.subject.key_id.as_deref()
    }

    /// Returns the issuer's hint for the use of this identity; empty if there is no hint.
    pub fn hint(&self) -> &str {
        &self.0.subject.hint
    }
}

/// The syntax of RFC 6750 section 2.1: letters, digits and `-._~+/`, then any number of `=`.
#[cfg(feature = "client")]
pub(super) fn is_bearer_token(token: &str) -> bool {
    let text = token.trim_end_matches('=');
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

debug_fields!(JwtSvid, |it| {
    spiffe_id: it.spiffe_id(),
    audiences: it.0.audiences,
    expires_at: it.0.expires_at,
    key_id: it.key_id(),
    hint: it.hint(),
});

/// The SPIFFE ID.
impl fmt::Display for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.spiffe_id(), f)
    }
}

impl fmt::Display for ParseJwtSvidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => {
                "the token is longer than 8 KiB; configure the issuer to add fewer claims"
            }
            Self::Parts => "the token does not have exactly three non-empty parts",
            Self::Encoding => "a part of the token is not base64url",
            Self::Claims => "the token's payload has no readable `sub`, `aud` and `exp`",
            Self::Subject => "the token's `sub` is not a SPIFFE ID",
            Self::Characters => {
                "the access token is empty, or has a character that RFC 6750 does not allow"
            }
        })
    }
}

impl std::error::Error for ParseJwtSvidError {}
