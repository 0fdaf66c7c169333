//! A caller's token that was checked.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::de::DeserializeOwned;

use crate::bundle::JwtAuthority;
use crate::clock::UnixTime;
use crate::identity::SpiffeId;

/// The identity of a caller whose token was verified. A clone is one reference count.
///
/// It is the truth of the moment of the check: [`expires_at`](Self::expires_at) says when it ends.
#[derive(Clone)]
pub struct VerifiedSvid(Arc<Handle>);

/// A level between, so that threads which have the same token need not count on one cache line:
/// each has a handle of its own.
struct Handle(Arc<Verified>);

/// What an entry of a cache costs beside its texts.
const OVERHEAD: usize = 384;

/// What is known of a verified token.
pub(super) struct Verified {
    /// As it was sent; empty for callers made by `testing`.
    pub(super) token: Box<str>,
    pub(super) hash: u64,
    /// The revision of the source at which the authority was last confirmed.
    pub(super) revision: AtomicU64,
    pub(super) spiffe_id: SpiffeId,
    pub(super) audiences: Box<[Box<str>]>,
    pub(super) expires_at: UnixTime,
    pub(super) not_before: Option<UnixTime>,
    pub(super) issued_at: Option<UnixTime>,
    pub(super) signer: Signer,
    pub(super) payload: Box<str>,
    /// Made when a policy first asks for a claim, and shared by all requests with this token.
    #[cfg(feature = "server")]
    pub(super) claims: std::sync::OnceLock<crate::jwt::ClaimIndex>,
}

pub(super) enum Signer {
    Authority(Arc<JwtAuthority>),
    /// A test said so.
    #[cfg(feature = "testing")]
    Nobody(Box<str>),
}

impl Signer {
    pub(super) fn authority(&self) -> Option<&Arc<JwtAuthority>> {
        match self {
            Self::Authority(authority) => Some(authority),
            #[cfg(feature = "testing")]
            Self::Nobody(_) => None,
        }
    }
}

impl Verified {
    /// What it takes in a cache, in bytes, about: its texts, the structures, their allocations, the
    /// cache's own.
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

    /// The token, for other layers of this crate. Never shown, and in no header once it is verified.
    #[cfg(any(feature = "server", feature = "client"))]
    pub(crate) fn token(&self) -> &str {
        &self.0.0.token
    }

    pub(super) fn shared(&self) -> &Arc<Verified> {
        &self.0.0
    }

    /// An identity that nobody verified, for a test of what stands behind the validation.
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
            expires_at,
            not_before: None,
            issued_at,
            signer: Signer::Nobody(key_id.into()),
            payload: claims_json.into(),
            #[cfg(feature = "server")]
            claims: Default::default(),
        }))
    }

    /// Who the caller is: the token's `sub`.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.0.0.spiffe_id
    }

    /// For whom the token is: its `aud`, all of it, one at least.
    pub fn audiences(&self) -> &[Box<str>] {
        &self.0.0.audiences
    }

    /// When the token ends: its `exp`, without leeway. What goes on longer than that (a stream, a
    /// session) should end then too.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    ///
    /// # let caller = tower_spiffe::testing::verified_svid("spiffe://example.org/web");
    /// let left = caller.expires_at().saturating_since(SystemTime::now().into());
    /// assert!(left > Duration::from_secs(290));
    /// ```
    pub fn expires_at(&self) -> UnixTime {
        self.0.0.expires_at
    }

    /// Its `nbf`, where it has one.
    pub fn not_before(&self) -> Option<UnixTime> {
        self.0.0.not_before
    }

    /// Its `iat`, where it has one. Informative: nothing is decided by it, unless a longest life
    /// is set.
    pub fn issued_at(&self) -> Option<UnixTime> {
        self.0.0.issued_at
    }

    /// The ID of the key that signed it.
    pub fn key_id(&self) -> &str {
        match &self.0.0.signer {
            Signer::Authority(authority) => authority.key_id(),
            #[cfg(feature = "testing")]
            Signer::Nobody(key_id) => key_id,
        }
    }

    /// All claims, as a type of your own. They mean what the caller's trust domain says that they
    /// mean (SPIFFE-ID section 4.1).
    ///
    /// # Errors
    /// The claims have not that type's shape.
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

    /// All claims, as the JSON object that was signed.
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

/// The claims have not the shape that was asked for. Says where, and repeats none of them.
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
            "the claims have not the expected shape (line {}, column {} of the payload)",
            self.line, self.column
        )
    }
}

impl std::error::Error for ClaimsError {}
