//! A request for a token of this workload.

#[cfg(feature = "client")]
use std::collections::BTreeSet;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

#[cfg(feature = "client")]
use super::JwtSvid;
#[cfg(feature = "oauth")]
use super::SubjectToken;
use crate::identity::SpiffeId;

/// A request for a token: its audiences, and its identity (a SPIFFE ID, a hint, or the first one
/// that the issuer returns). The order of the audiences is not significant.
#[derive(Clone, PartialEq, Eq)]
pub struct SvidRequest {
    // First, because it is compared first. A hash of the other fields, with a key of this process, for look-ups. Short, because each
    // cached token has one.
    hash: u32,
    // Sorted, without duplicates, none empty, at least one.
    audiences: Arc<[Box<str>]>,
    // `None`: the first identity that the issuer returns.
    identity: Option<Identity>,
    single_use: bool,
    #[cfg(feature = "oauth")]
    subject: Option<SubjectToken>,
}

impl Hash for SvidRequest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.hash);
    }
}

/// The requested identity. One word in size, because each cached token has one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity(Arc<As>);

#[derive(PartialEq, Eq, Hash)]
enum As {
    Id(SpiffeId),
    Hint(Box<str>),
}

impl Identity {
    pub(crate) fn id(id: SpiffeId) -> Self {
        Self(Arc::new(As::Id(id)))
    }

    pub(crate) fn hint(hint: &str) -> Result<Self, SvidRequestError> {
        if hint.is_empty() {
            return Err(SvidRequestError::EmptyHint);
        }
        Ok(Self(Arc::new(As::Hint(hint.into()))))
    }
}

/// Why a token cannot be requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SvidRequestError {
    /// There is no audience (Workload API section 6.2.1).
    NoAudience,
    /// An audience is the empty string. SPIRE would always respond with UNAVAILABLE, so the request
    /// is not sent.
    EmptyAudience,
    /// An audience begins or ends with white space, such as a line break from a file: the receiver
    /// would reject the token.
    AudienceWhitespace,
    /// The hint is empty.
    EmptyHint,
}

impl SvidRequest {
    /// Creates a request for a token with these audiences.
    ///
    /// # Errors
    /// There is no audience, or one is empty, or begins or ends with white space.
    pub fn new<A>(audiences: impl IntoIterator<Item = A>) -> Result<Self, SvidRequestError>
    where
        A: AsRef<str>,
    {
        let mut all: Vec<Box<str>> = Vec::new();
        for audience in audiences {
            let audience = audience.as_ref();
            if audience.is_empty() {
                return Err(SvidRequestError::EmptyAudience);
            }
            if audience.trim().len() != audience.len() {
                return Err(SvidRequestError::AudienceWhitespace);
            }
            all.push(audience.into());
        }
        if all.is_empty() {
            return Err(SvidRequestError::NoAudience);
        }
        all.sort_unstable();
        all.dedup();
        let request = Self {
            hash: 0,
            audiences: all.into(),
            identity: None,
            single_use: false,
            #[cfg(feature = "oauth")]
            subject: None,
        };
        Ok(request.hashed())
    }

    /// Requests the token of this identity; replaces a hint.
    #[must_use]
    pub fn with_spiffe_id(self, id: SpiffeId) -> Self {
        self.with_identity(Identity::id(id))
    }

    /// Requests the token of the identity with this hint; replaces an ID.
    ///
    /// # Errors
    /// The hint is empty: an empty hint means no hint (Workload API section 6.2.1).
    pub fn with_hint(self, hint: &str) -> Result<Self, SvidRequestError> {
        Ok(self.with_identity(Identity::hint(hint)?))
    }

    pub(crate) fn with_identity(self, identity: Identity) -> Self {
        let identity = Some(identity);
        Self { identity, ..self }.hashed()
    }

    /// Requests the identity that `other` requests.
    #[cfg(feature = "oauth")]
    pub(crate) fn with_identity_of(self, other: &Self) -> Self {
        let identity = other.identity.clone();
        Self { identity, ..self }.hashed()
    }

    /// Requests a token on behalf of this subject, by token exchange: see
    /// [`AccessTokens`](crate::oauth::AccessTokens). The cache keeps one token for each subject
    /// token. A source that does not exchange tokens fails the request.
    #[cfg(feature = "oauth")]
    #[must_use]
    pub fn on_behalf_of(self, subject: SubjectToken) -> Self {
        let subject = Some(subject);
        Self { subject, ..self }.hashed()
    }

    /// Returns the subject token, if the request is on behalf of a subject.
    #[cfg(feature = "oauth")]
    pub fn subject(&self) -> Option<&SubjectToken> {
        self.subject.as_ref()
    }

    /// Whether it has a subject token.
    #[cfg(feature = "client")]
    pub(crate) fn has_subject(&self) -> bool {
        #[cfg(feature = "oauth")]
        return self.subject.is_some();
        #[cfg(not(feature = "oauth"))]
        false
    }

    /// Requests a single-use token: a cache fetches one for each `get`, `header` and request of a
    /// layer, and stores none.
    ///
    /// For verifiers that accept each token once, by its `jti`: SPIRE issues such tokens for
    /// registration entries with `jwt_svid_include_jti`, and its agent does not cache them. Each
    /// request waits for a call to the issuer, within the limits of the cache: 16 concurrent calls,
    /// 200 calls per second, and a wait of 5 s by default. After a failure, requests fail
    /// immediately until the next attempt. If the issuer returns a token that was sent already, the
    /// request fails with [`Unacceptable`](super::FetchSvidReason::Unacceptable).
    #[must_use]
    pub fn single_use(self) -> Self {
        let single_use = true;
        Self { single_use, ..self }.hashed()
    }

    /// Returns whether each request needs its own token.
    pub fn is_single_use(&self) -> bool {
        self.single_use
    }

    fn hashed(mut self) -> Self {
        // Audiences may be derived from untrusted input, so the hash has a random key.
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let of = (&self.audiences, &self.identity, self.single_use);
        #[cfg(feature = "oauth")]
        let of = (of, &self.subject);
        self.hash = KEY.hash_one(of) as u32;
        self
    }

    /// Returns the audiences, sorted and without duplicates; at least one.
    pub fn audiences(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.audiences.iter().map(AsRef::as_ref)
    }

    /// Whether the token is for exactly these audiences.
    #[cfg(feature = "client")]
    pub(crate) fn has_audiences_of(&self, svid: &JwtSvid) -> bool {
        let given: BTreeSet<&str> = svid.audiences().collect();
        given.into_iter().eq(self.audiences())
    }

    #[cfg(feature = "client")]
    pub(crate) fn shared_audiences(&self) -> &Arc<[Box<str>]> {
        &self.audiences
    }

    /// The index of the request's shard. `shards` is at least one.
    #[cfg(feature = "client")]
    pub(crate) fn shard(&self, shards: usize) -> usize {
        self.hash as usize % shards
    }

    /// Returns the SPIFFE ID of the requested identity, if the request has one.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        match self.identity_as()? {
            As::Id(id) => Some(id),
            As::Hint(_) => None,
        }
    }

    /// Returns the hint of the requested identity, if the request has one.
    pub fn hint(&self) -> Option<&str> {
        match self.identity_as()? {
            As::Hint(hint) => Some(hint),
            As::Id(_) => None,
        }
    }

    #[cfg(feature = "client")]
    pub(crate) fn names_an_identity(&self) -> bool {
        self.identity.is_some()
    }

    fn identity_as(&self) -> Option<&As> {
        self.identity.as_ref().map(|identity| &*identity.0)
    }
}

impl fmt::Debug for SvidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("SvidRequest");
        out.field("audiences", &self.audiences);
        match self.identity_as() {
            None => {}
            Some(As::Id(id)) => {
                out.field("spiffe_id", id);
            }
            Some(As::Hint(hint)) => {
                out.field("hint", hint);
            }
        }
        if self.single_use {
            out.field("single_use", &true);
        }
        #[cfg(feature = "oauth")]
        if let Some(subject) = &self.subject {
            out.field("subject", subject);
        }
        out.finish()
    }
}

impl fmt::Display for SvidRequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAudience => "audience is missing; name the service that the token is for",
            Self::EmptyAudience => "an audience is empty; name the service that the token is for",
            Self::AudienceWhitespace => {
                "an audience begins or ends with white space, such as a line break; trim it"
            }
            Self::EmptyHint => {
                "the hint is empty; leave it out, or use a hint that is registered at the issuer"
            }
        })
    }
}

impl std::error::Error for SvidRequestError {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn equal_requests_ask_for_the_same_token() {
        let of = |audiences: &[&str]| SvidRequest::new(audiences).unwrap();
        let id: SpiffeId = "spiffe://x/web".parse().unwrap();
        let same = [
            (of(&["a", "b"]), of(&["b", "a", "b"])),
            (
                of(&["a"]).with_spiffe_id(id.clone()),
                of(&["a"])
                    .with_hint("h")
                    .unwrap()
                    .with_spiffe_id(id.clone()),
            ),
            (
                of(&["a"]).with_hint("h").unwrap(),
                of(&["a"])
                    .with_spiffe_id(id.clone())
                    .with_hint("h")
                    .unwrap(),
            ),
        ];
        for (one, other) in &same {
            assert_eq!(one, other);
            assert!(HashSet::from([one]).contains(other));
        }
        let different = [
            of(&["a"]),
            of(&["b"]),
            of(&["a", "b"]),
            of(&["ab"]),
            of(&["a"]).with_spiffe_id(id),
            of(&["a"]).with_hint("spiffe://x/web").unwrap(),
            of(&["a"]).with_hint("b").unwrap(),
        ];
        assert_eq!(
            different.iter().collect::<HashSet<_>>().len(),
            different.len()
        );
    }
}
