//! A verified token of a caller.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::de::DeserializeOwned;

use crate::bundle::JwtAuthority;
use crate::clock::UnixTime;
use crate::identity::SpiffeId;
use crate::jwt::Life;

/// The identity of a caller whose token was verified. Clones are cheap.
///
/// The token was valid at the time of the check, and ends at [`expires_at`](Self::expires_at).
#[derive(Clone)]
#[doc(alias = "extractor")]
pub struct VerifiedSvid(Arc<Handle>);

/// Each thread has its own handle, so that threads with the same token do not share a reference count
/// on one cache line.
struct Handle(Arc<Verified>);

/// The size of a cache entry without its texts.
const OVERHEAD: usize = 384;

/// A verified token and its claims.
pub(super) struct Verified {
    /// As it was sent; empty for callers made by `testing`.
    pub(super) token: Box<str>,
    pub(super) hash: u64,
    /// The revision of the source at which the authority was last confirmed.
    pub(super) revision: AtomicU64,
    pub(super) spiffe_id: SpiffeId,
    pub(super) audiences: Box<[Box<str>]>,
    pub(super) life: Life,
    pub(super) signer: Signer,
    pub(super) payload: Box<str>,
    /// Created when a policy first reads a claim, and shared by all requests with this token.
    #[cfg(feature = "server")]
    pub(super) claims: std::sync::OnceLock<crate::jwt::ClaimIndex>,
}

pub(super) enum Signer {
    Authority(Arc<JwtAuthority>),
    /// Assumed by a test.
    #[cfg(feature = "testing")]
    Assumed(Box<str>),
}

impl Signer {
    pub(super) fn authority(&self) -> Option<&Arc<JwtAuthority>> {
        match self {
            Self::Authority(authority) => Some(authority),
            #[cfg(feature = "testing")]
            Self::Assumed(_) => None,
        }
    }
}

impl Verified {
    /// Its approximate size in a cache, in bytes: texts, structures and allocations.
    pub(super) fn weight(&self) -> usize {
        let audiences = self.audiences.iter().map(|audience| audience.len() + 32);
        OVERHEAD
            + self.token.len()
            + self.payload.len()
            + self.spiffe_id.as_str().len()
            + audiences.sum::<usize>()
    }
}

impl VerifiedSvid {
    pub(super) fn new(verified: Arc<Verified>) -> Self {
        Self(Arc::new(Handle(verified)))
    }

    /// The token, for other layers of this crate. It is never shown or put into a header.
    #[cfg(any(feature = "server", feature = "client"))]
    pub(crate) fn token(&self) -> &str {
        &self.0.0.token
    }

    pub(super) fn shared(&self) -> &Arc<Verified> {
        &self.0.0
    }

    /// An identity without a token, for tests of services behind the validation.
    #[cfg(feature = "testing")]
    pub(crate) fn assumed(
        spiffe_id: SpiffeId,
        audiences: Vec<String>,
        expires_at: UnixTime,
        issued_at: Option<UnixTime>,
        key_id: &str,
        claims_json: &str,
    ) -> Self {
        Self::new(Arc::new(Verified {
            token: Box::default(),
            hash: 0,
            revision: AtomicU64::new(0),
            spiffe_id,
            audiences: audiences.into_iter().map(Into::into).collect(),
            life: Life {
                expires_at,
                not_before: None,
                issued_at,
            },
            signer: Signer::Assumed(key_id.into()),
            payload: claims_json.into(),
            #[cfg(feature = "server")]
            claims: Default::default(),
        }))
    }

    /// Returns the identity of the caller: the token's `sub`.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.0.0.spiffe_id
    }

    /// Returns the token's audiences (`aud`), all of them; never empty.
    pub fn audiences(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.0.0.audiences.iter().map(AsRef::as_ref)
    }

    /// Returns when the token expires: its `exp`, without leeway. Streams and sessions should end then
    /// too.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    ///
    /// # let caller = tower_spiffe::testing::verified_svid("spiffe://example.org/web");
    /// let left = caller.expires_at().saturating_since(SystemTime::now().into());
    /// assert!(left > Duration::from_secs(290));
    /// ```
    pub fn expires_at(&self) -> UnixTime {
        self.0.0.life.expires_at
    }

    /// Returns its `nbf`, if it has one.
    pub fn not_before(&self) -> Option<UnixTime> {
        self.0.0.life.not_before
    }

    /// Returns its `iat`, if it has one. It is informative unless
    /// [`max_lifetime`](crate::verify::ValidatorBuilder::max_lifetime) is set.
    pub fn issued_at(&self) -> Option<UnixTime> {
        self.0.0.life.issued_at
    }

    /// Returns the ID of the key that signed it.
    pub fn key_id(&self) -> &str {
        match &self.0.0.signer {
            Signer::Authority(authority) => authority.key_id(),
            #[cfg(feature = "testing")]
            Signer::Assumed(key_id) => key_id,
        }
    }

    /// Returns all claims as a type of your own. Their meaning is defined by the caller's trust domain
    /// (SPIFFE-ID section 4.1).
    ///
    /// # Errors
    /// The claims do not fit the type.
    pub fn claims<T: DeserializeOwned>(&self) -> Result<T, ClaimsError> {
        serde_json::from_str(&self.0.0.payload).map_err(|error| ClaimsError {
            line: error.line(),
            column: error.column(),
        })
    }

    /// Returns the JSON text of one claim. The payload is parsed once per token.
    #[cfg(feature = "server")]
    pub(crate) fn claim(&self, name: &str) -> Option<&str> {
        let Verified {
            payload, claims, ..
        } = &*self.0.0;
        let index = claims.get_or_init(|| crate::jwt::ClaimIndex::new(payload));
        index.get(payload, name)
    }

    /// Returns all claims, as the JSON object that was signed.
    pub fn claims_json(&self) -> &str {
        &self.0.0.payload
    }
}

impl fmt::Debug for VerifiedSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedSvid")
            .field("spiffe_id", self.spiffe_id())
            .field("expires_at", &self.expires_at())
            .field("key_id", &self.key_id())
            .finish_non_exhaustive()
    }
}

/// The claims do not fit the requested type. The text has the position, and repeats no claim.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimsError {
    /// The line of the payload, from 1.
    pub line: usize,
    /// The column in it, from 1.
    pub column: usize,
}

impl fmt::Display for ClaimsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the claims do not fit the requested type (line {}, column {} of the payload)",
            self.line, self.column
        )
    }
}

impl std::error::Error for ClaimsError {}
