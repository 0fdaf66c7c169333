//! A token of a caller or an end user, for token exchange.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::jwt_svid::is_bearer_token;
use crate::clock::UnixTime;
use crate::identity::SpiffeId;
use crate::jwt::MAX_TOKEN_LEN;
use crate::presentable::debug_fields;
use crate::verify::VerifiedSvid;

/// The token of a caller or an end user, to be exchanged for an access token (RFC 8693
/// `subject_token`). Clones are cheap.
///
/// In the extensions of a request, or in a request for a token
/// ([`SvidRequest::on_behalf_of`](crate::token::SvidRequest::on_behalf_of)), it replaces the token
/// of this workload. The access token is cached for this subject token only, and never used after
/// the subject token has expired.
///
/// `Debug` shows the SPIFFE ID, the type and the expiry, but not the token.
#[derive(Clone)]
pub struct SubjectToken(Arc<Inner>);

struct Inner {
    /// A hash with a key of this process.
    hash: u64,
    token: Box<str>,
    token_type: Box<str>,
    expires_at: UnixTime,
    spiffe_id: Option<SpiffeId>,
}

/// Why a text cannot be a [`SubjectToken`]. Contains no part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubjectTokenError {
    /// It is longer than 8 KiB.
    TooLong,
    /// It is empty, or not in the syntax of a bearer token (RFC 6750 section 2.1).
    Characters,
}

/// The type of a JWT (RFC 8693 section 3).
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

impl SubjectToken {
    /// Creates a subject token from a token that you have verified. Its type is JWT. No access
    /// token for it is sent after `expires_at`: pass the `exp` of the JWT.
    ///
    /// # Errors
    /// The token is too long, or has characters that a bearer token cannot have.
    pub fn new(token: &str, expires_at: UnixTime) -> Result<Self, SubjectTokenError> {
        if token.len() > MAX_TOKEN_LEN {
            return Err(SubjectTokenError::TooLong);
        }
        if !is_bearer_token(token) {
            return Err(SubjectTokenError::Characters);
        }
        Ok(Self::of(token, JWT, expires_at, None))
    }

    /// Returns the token of a verified caller, if `headers` still have it: a `ValidateJwtSvidLayer`
    /// leaves it in the request with `keep_credential`. `None` if it is missing, or another token
    /// is there.
    ///
    /// ```
    /// use http::{Request, Response};
    /// use std::convert::Infallible;
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_spiffe::oauth::SubjectToken;
    /// use tower_spiffe::{Allow, CallerState, ValidateJwtSvidLayer, Validator};
    /// # use tower_spiffe::testing::FakeAgent;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    /// # let agent = FakeAgent::start("example.org").await?;
    /// # let validator = Validator::builder(agent.source().await?).audience("gateway").build()?;
    /// let gateway = service_fn(async |request: Request<String>| {
    ///     let caller = CallerState::from_extensions(request.extensions()).and_then(CallerState::verified);
    ///     let subject = caller.and_then(|caller| SubjectToken::of_caller(caller, request.headers()));
    ///
    ///     // A request of this service, on behalf of the caller.
    ///     let mut onward = Request::get("https://api.example.org/").body(()).unwrap();
    ///     if let Some(subject) = subject {
    ///         onward.extensions_mut().insert(subject);
    ///     }
    ///     Ok::<_, Infallible>(Response::new(onward.extensions().get::<SubjectToken>().is_some()))
    /// });
    /// let gateway = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org")?)
    ///     .keep_credential()
    ///     .layer(gateway);
    /// # let bearer = agent.bearer("spiffe://example.org/web", "gateway");
    /// # let request = Request::get("/").header("authorization", bearer).body(String::new())?;
    /// # assert!(gateway.oneshot(request).await?.into_body());
    /// # Ok(())
    /// # }
    /// ```
    pub fn of_caller(caller: &VerifiedSvid, headers: &HeaderMap) -> Option<Self> {
        let token = caller.token();
        let is_callers = |value: &http::HeaderValue| {
            let split = value.as_bytes().split_at_checked(7);
            split.is_some_and(|(scheme, credential)| {
                scheme.eq_ignore_ascii_case(b"bearer ")
                    && credential.trim_ascii() == token.as_bytes()
            })
        };
        if token.is_empty() || !headers.get_all(AUTHORIZATION).iter().any(is_callers) {
            return None;
        }
        let id = Some(caller.spiffe_id().clone());
        Some(Self::of(token, JWT, caller.expires_at(), id))
    }

    /// Sets its type, a URI of RFC 8693 section 3. `urn:ietf:params:oauth:token-type:jwt` by
    /// default.
    #[must_use]
    pub fn token_type(self, uri: &str) -> Self {
        let spiffe_id = self.spiffe_id().cloned();
        Self::of(self.token(), uri, self.expires_at(), spiffe_id)
    }

    fn of(token: &str, kind: &str, expires_at: UnixTime, spiffe_id: Option<SpiffeId>) -> Self {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(Arc::new(Inner {
            hash: KEY.hash_one((token, kind)),
            token: token.into(),
            token_type: kind.into(),
            expires_at,
            spiffe_id,
        }))
    }

    /// Returns the token itself. Anyone who has it can act as its subject towards its audiences
    /// until it expires.
    pub fn token(&self) -> &str {
        &self.0.token
    }

    /// Returns when it expires.
    pub fn expires_at(&self) -> UnixTime {
        self.0.expires_at
    }

    /// Returns the identity of the verified caller, if the token is that of a verified caller.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        self.0.spiffe_id.as_ref()
    }

    pub(crate) fn kind(&self) -> &str {
        &self.0.token_type
    }
}

impl PartialEq for SubjectToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || self.0.hash == other.0.hash
                && self.0.token == other.0.token
                && self.0.token_type == other.0.token_type
                && self.0.expires_at == other.0.expires_at
    }
}

impl Eq for SubjectToken {}

impl Hash for SubjectToken {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

debug_fields!(SubjectToken, |it| {
    spiffe_id: it.0.spiffe_id,
    token_type: it.0.token_type,
    expires_at: it.0.expires_at,
});

impl fmt::Display for SubjectTokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "the subject token is longer than 8 KiB",
            Self::Characters => {
                "the subject token is empty, or has a character that a bearer token cannot have"
            }
        })
    }
}

impl std::error::Error for SubjectTokenError {}
