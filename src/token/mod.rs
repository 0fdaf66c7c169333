//! Tokens of this workload: requests, fetchers, and the cache that keeps one token for each
//! audience.
//!
//! A [`SvidCache`] over a [`FetchSvid`] makes one call for all waiting requests. It refreshes a
//! token while the old one can still be sent. While the issuer is unavailable, it returns the valid
//! token that it has. A `JwtSource` contains a cache. For your own fetcher, build a cache over it.
//!
//! ```
//! use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
//! use tower_spiffe::token::{FetchSvid, FetchSvidFuture, JwtSvid, SvidRequest};
//! use tower_spiffe::token::SvidCache;
//! use tower_spiffe::clock::{Clock, SystemClock};
//!
//! /// An issuer in this process. Its signatures are not valid.
//! struct LocalIssuer;
//!
//! impl FetchSvid for LocalIssuer {
//!     fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
//!         let now = SystemClock::shared().now().secs();
//!         let claims = format!(
//!             r#"{{"sub":"spiffe://x/web","aud":["{}"],"iat":{now},"exp":{}}}"#,
//!             request.audiences().next().unwrap_or_default(),
//!             now + 300,
//!         );
//!         let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"1"}"#);
//!         let token = format!("{header}.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
//!         Box::pin(async move { Ok(JwtSvid::parse_unverified(&token, "").unwrap()) })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cache = SvidCache::new(LocalIssuer);
//! let reports = SvidRequest::new(["spiffe://x/reports"])?;
//!
//! assert!(cache.try_header(&reports).is_none()); // no token yet; a fetch begins
//! let header = cache.header(&reports).await?; // waits for the same fetch
//! assert!(header.to_str()?.starts_with("Bearer ") && header.is_sensitive());
//! assert_eq!(cache.try_header(&reports), Some(header));
//! assert_eq!(cache.stats().fetches, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Token lifetime
//!
//! L is the token's lifetime (`exp` − `iat`):
//!
//! | from | the token is | a request |
//! | --- | --- | --- |
//! | its arrival | fresh | sends it |
//! | 55 to 65 % of L | due | sends it, and starts a fetch of the next one in the background |
//! | the last 10 % of L, at most 30 s | critical | waits at most 250 ms for the next one, then sends it |
//! | the last 2 % of L, at most 2 s | expired | waits up to 5 s for the next one, or at most 250 ms if the issuer has not responded for 5 s. Fails immediately while the issuer is known to fail |
//!
//! If a service rejects a token, or the key that signed it is removed from the bundle, the token is
//! critical from then on.
//!
//! An error never replaces a token. No token is sent after it has expired on the wall clock or on
//! the monotonic clock. Without requests nothing is refreshed, except for the audiences of
//! [`keep_warm`](SvidCache::keep_warm).
//!
//! # While the issuer is unavailable
//!
//! A token that is due has at least 35 % of its lifetime left, minus the time in which it counts as
//! expired. So if the issuer becomes unavailable, no request fails for 103 s with tokens of 300 s.
//! This applies to audiences that were fetched before, with tokens that had their full lifetime left
//! when they arrived.
//!
//! How soon requests succeed again after the issuer has recovered depends on the outage:
//!
//! - Calls failed, or the issuer was unreachable: within 6 s. The breaker probes every 5 s at the
//!   latest, with the call of one audience for all.
//! - Calls got no response: within 42 s. A probe may have just begun and may take up to 35 s,
//!   because an agent that is only slow needs up to 30 s.
//! - Very many audiences have no token: the first ones as above, and the last one later, by one
//!   second for each 200 audiences ([`rate`](SvidCacheBuilder::rate)).
//!
//! The following table was simulated with one request per second and audience. The agent is
//! unavailable until every token has expired, and for another 120 to 240 s. The table shows the
//! worst of all runs (20 with 30 audiences, one with 10,000):
//!
//! | the agent | audiences | first failure after | calls at once, all expired | last failure after recovery |
//! | --- | --- | --- | --- | --- |
//! | rejects calls | 30 | 108.2 s | 1 | 4.9 s |
//! | hangs | 30 | 108.2 s | 1 | 38.7 s |
//! | rejects calls | 10,000 | 104.1 s | 1 | 61.5 s |
//! | hangs | 10,000 | 104.1 s | 1 | 85.7 s |
//!
//! # Retries
//!
//! | after | first delay | longest delay |
//! | --- | --- | --- |
//! | a failure, while a token can be sent | 1 s | 30 s |
//! | a failure, with no token to send | 250 ms | 5 s |
//! | the issuer denied the identity | 1 s | 10 s |
//! | an invalid request | 60 s | 60 s |
//! | a response without a newer token | 5 s | 30 s |
//! | 3 calls in a row without a response: one call at a time | 250 ms | 5 s |
//! | a fetch because a service rejected the token | 10 s | 10 s |
//! | a response of an authorization server with `Retry-After` | that delay | 60 s |
//!
//! [`retry`](SvidCacheBuilder::retry) sets the bounds of all these delays. If a signing key is
//! removed, the tokens of [`keep_warm`](SvidCache::keep_warm) are fetched again within 5 s, even
//! without requests.
//!
//! # Memory
//!
//! Each audience needs memory for its token and about 560 bytes (`cargo test --test allocations`
//! allows 600). The default limit is 1024 audiences. Each thread keeps copies of up to 8 of the
//! tokens that it sends most, so that threads do not contend. Sending a cached token allocates
//! nothing.
//!
//! # Calls to the issuer
//!
//! A process makes 1 / 0.6 ≈ 1.67 calls per token lifetime and audience that it uses steadily. If
//! many processes share one SPIRE agent, each makes up to 1 / 0.55 ≈ 1.82 calls: the first call after
//! half of the lifetime renews the token for all processes. The agent signs a new token once per 0.55
//! lifetimes.
//!
//! `tower-spiffe agent-load` (crate `tower-spiffe-cli`) simulates this cache and the agent. The agent
//! returns its cached token until 45 to 55 % of the lifetime are left. Tokens have a lifetime of
//! 300 s unless noted. No call returned a token that the cache already had:
//!
//! | processes | audiences | processes start | calls per lifetime and audience | busiest second, against the mean |
//! | --- | --- | --- | --- | --- |
//! | 1 | 200 | apart | 1.665 | |
//! | 1 | 200, tokens of 3,600 s | apart | 1.661 | |
//! | 1 | 10,000, of 1,000 runs | apart | 1.662 (5 %: 1.67, half: 1.67, 95 %: 1.67, most: 2.00) | 1.21 times |
//! | 100 | 200 | together, one audience after the other | 1.821 | 1.57 times |
//! | 10 | 200 | apart | 1.827 | 3.64 times |
//! | 100 | 10 | apart | 1.830 | 5.79 times |
//!
//! The last two rows are a consequence of two guarantees: no call returns the same token again, and
//! no request fails in 103 s without an agent. These guarantees leave one tenth of a token's
//! lifetime for the refresh, between 55 and 65 %. Processes that share an agent soon have the same
//! token for each audience, so they refresh in the same tenth. With many audiences these tenths are
//! spread out. With few audiences, plan for six times the mean. This command prints this table and
//! the one of outages in about ten minutes; `--help` lists its options:
//!
//! ```text
//! tower-spiffe agent-load --seeds 1000
//! ```

#[cfg(feature = "client")]
mod cache;
mod fetch;
mod jwt_svid;
#[cfg(feature = "oauth")]
pub(crate) mod oauth_error;
mod request;
#[cfg(feature = "oauth")]
pub(crate) mod subject;

pub use crate::grpc_code::GrpcCode;
#[cfg(feature = "client")]
pub use cache::{
    AudienceSnapshot, KeepWarm, PinnedSvid, SvidCache, SvidCacheBuilder, SvidCacheStats,
    SvidUpdates, TokenError, TokenErrorReason, TokenState,
};
#[cfg(feature = "client")]
pub(crate) use cache::{Issue, Issued, Successors, Waiter};
pub use fetch::{FetchSvid, FetchSvidError, FetchSvidFuture, FetchSvidReason};
#[cfg(feature = "client")]
pub(crate) use jwt_svid::Subject;
pub use jwt_svid::{JwtSvid, ParseJwtSvidError};
#[cfg(feature = "oauth")]
pub(crate) use oauth_error::OAuthError;
#[cfg(feature = "client")]
pub(crate) use request::Identity;
pub use request::{SvidRequest, SvidRequestError};
#[cfg(feature = "oauth")]
pub(crate) use subject::SubjectToken;
