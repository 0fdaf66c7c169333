//! Access tokens of an OAuth authorization server, for services that do not accept JWT-SVIDs.
//!
//! [`AccessTokens`] authenticates to the token endpoint with this workload's JWT-SVID, without a
//! client secret, and can be used instead of a `JwtSource` in every client of this crate:
//!
//! ```
//! use http::{Request, Response, header::AUTHORIZATION};
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_spiffe::oauth::AccessTokens;
//! use tower_spiffe::testing::{FakeAgent, FakeAuthorizationServer};
//! use tower_spiffe::{AddJwtSvidLayer, Audience};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let agent = FakeAgent::start("example.org").await?;
//! let source = agent.source().await?;
//! let server = FakeAuthorizationServer::new("https://as.example.org", source.clone());
//!
//! let tokens = AccessTokens::builder(source)
//!     .issuer("https://as.example.org") // the audience of the JWT-SVIDs
//!     .token_endpoint("https://as.example.org/token")
//!     .http_client(server.service()) // in production: `.reqwest(client)`, or your client
//!     .build()?;
//!
//! // An audience, bound to the origins of its tokens, as for JWT-SVIDs.
//! let audience = Audience::fixed("https://api.example.org").for_origin("https://api.example.org")?;
//! let client = AddJwtSvidLayer::new(tokens, audience).layer(service_fn(
//!     async |request: Request<()>| {
//!         Ok::<_, std::io::Error>(Response::new(request.headers()[AUTHORIZATION].clone()))
//!     },
//! ));
//!
//! let request = Request::get("https://api.example.org/").body(())?;
//! let sent = client.oneshot(request).await?.into_body();
//! let issued = server.find(sent.to_str()?.trim_start_matches("Bearer ")).expect("issued by this server");
//! assert_eq!(issued.client.as_str(), "spiffe://example.org/workload");
//! assert_eq!(issued.audiences, ["https://api.example.org"]);
//! # Ok(())
//! # }
//! ```
//!
//! The guide has the [settings of common servers and the errors](crate::guide::oauth).
//!
//! # Requests
//!
//! A `POST` to the token endpoint, with a form as its body:
//!
//! | parameter | value |
//! | --- | --- |
//! | `grant_type` | `client_credentials`, or token exchange ([`token_exchange`](AccessTokensBuilder::token_exchange)) |
//! | `client_assertion_type` | `jwt-spiffe` (draft-ietf-oauth-spiffe-client-auth) or `jwt-bearer` (RFC 7523): [`assertion_type`](AccessTokensBuilder::assertion_type) |
//! | `client_assertion` | this workload's JWT-SVID; its only audience is the [`issuer`](AccessTokensBuilder::issuer) |
//! | `client_id` | if set: [`client_id`](AccessTokensBuilder::client_id) |
//! | `subject_token`, `subject_token_type` | token exchange: this workload's JWT-SVID, or the [`SubjectToken`] of the request |
//! | `actor_token`, `actor_token_type` | token exchange for a caller, if set: this workload's JWT-SVID ([`actor_token`](AccessTokensBuilder::actor_token)) |
//! | `audience` or `resource` | the audiences of the request: [`target`](AccessTokensBuilder::target) |
//! | `scope` | if set: [`scope`](AccessTokensBuilder::scope), [`scope_for`](AccessTokensBuilder::scope_for) |
//! | others | [`parameter`](AccessTokensBuilder::parameter) |
//!
//! If a request or a layer has an identity (a SPIFFE ID or a hint), the JWT-SVID of that identity is
//! used.
//!
//! # Responses
//!
//! | response | the token |
//! | --- | --- |
//! | `expires_in` is a positive number, or a string of digits | has this lifetime, at most [`max_lifetime`](AccessTokensBuilder::max_lifetime) (24 h), counted from the start of the request |
//! | `expires_in` is missing or `null` | has the lifetime [`default_lifetime`](AccessTokensBuilder::default_lifetime) (5 min) |
//! | `expires_in` is zero, negative, or anything else | is not accepted |
//! | `token_type` is not `Bearer`, in any case | is not accepted: a DPoP token needs a proof in each request |
//! | the token has characters that RFC 6750 does not allow, or is longer than 8 KiB | is not accepted |
//! | an access token for a caller's token | is not sent after the caller's token has expired. If both expire at the same time, it is not refreshed |
//! | a redirect | is not followed: set the final URL |
//! | more than 64 KiB, or not JSON | is not accepted |
//!
//! The token is opaque: its content is not read. In this crate it is a [`JwtSvid`](crate::JwtSvid)
//! with the SPIFFE ID that it was issued to.
//!
//! # Cache
//!
//! Access tokens are cached, refreshed and retried like JWT-SVIDs: see [`token`](crate::token).
//! Concurrent requests share one exchange, an error never replaces a token, and a 401 of the
//! resource causes at most one exchange per 10 s. `Retry-After` of an error response is honored, up
//! to 60 s. If the server does not accept the JWT-SVID (`invalid_client`), the next exchange uses
//! another one, at most once per 10 s.
//!
//! # Errors
//!
//! Errors are [`TokenError`](crate::token::TokenError)s.
//! [`FetchSvidError::oauth`](crate::token::FetchSvidError::oauth) has the server's response.
//!
//! | error of the server | [`TokenErrorReason`](crate::token::TokenErrorReason) |
//! | --- | --- |
//! | `invalid_request`, `unsupported_grant_type`, `invalid_scope`, `invalid_target` | `InvalidRequest`: the next exchange is in 60 s |
//! | `invalid_client`, `invalid_grant`, `unauthorized_client`, `access_denied` | `Denied` |
//! | `temporarily_unavailable`, `server_error`, status 429 or 5xx | `Unavailable` |
//! | any other with status 401 or 403 | `Denied` |
//! | any other, and redirects | `Other` |
//! | a response that is not accepted | `Unacceptable` |
//! | no response | `Unavailable`, or `Timeout` within the time limit of the cache |
//!
//! If there is no JWT-SVID to authenticate with, the reason is that of the failed fetch of the
//! JWT-SVID.

mod builder;
mod error;
mod exchange;
mod response;
mod state;
mod transport;

use std::sync::Arc;

pub use self::builder::{AccessTokensBuilder, AssertionType, TargetParameter};
pub use self::error::{AccessTokensError, AccessTokensErrorReason};
use self::exchange::Exchange;
pub use self::state::AccessTokensState;
pub use crate::token::oauth_error::OAuthError;
pub use crate::token::subject::{SubjectToken, SubjectTokenError};

use crate::presentable::debug_fields;
use crate::token::SvidCache;

/// Any error, as in tower's middleware.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A source of access tokens: an OAuth authorization server, this workload's JWT-SVIDs, and a cache.
///
/// Clones, and the caches made of them by `SvidCache::from`, share the source and its tokens. See
/// the [module docs](crate::oauth).
#[derive(Clone)]
pub struct AccessTokens {
    exchange: Arc<Exchange>,
    cache: SvidCache,
}

impl AccessTokens {
    /// Creates a builder for a source that authenticates with tokens of `svids`: a `JwtSource`, or
    /// an `SvidCache` over your own fetcher.
    pub fn builder(svids: impl Into<SvidCache>) -> AccessTokensBuilder {
        AccessTokensBuilder::new(svids.into())
    }

    /// Returns the state: the exchanges, the last error, and each access token.
    pub fn state(&self) -> AccessTokensState {
        let Exchange { history, clock, .. } = &*self.exchange;
        history.state(
            self.exchange.shown_endpoint(),
            &self.cache,
            clock.monotonic(),
        )
    }
}

/// The cache of the source.
impl From<AccessTokens> for SvidCache {
    fn from(tokens: AccessTokens) -> Self {
        tokens.cache
    }
}

/// The cache of the source.
impl From<&AccessTokens> for SvidCache {
    fn from(tokens: &AccessTokens) -> Self {
        tokens.cache.clone()
    }
}

debug_fields!(AccessTokens, |it| {
    token_endpoint: it.exchange.shown_endpoint(),
    cache: it.cache,
});
