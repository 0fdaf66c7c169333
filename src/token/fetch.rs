//! What it takes to get a token of our own: one request, one answer, no cache.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use super::JwtSvid;
use crate::grpc_code::GrpcCode;
use crate::identity::SpiffeId;

/// The answer of [`FetchSvid`], to be awaited.
pub type FetchSvidFuture =
    Pin<Box<dyn Future<Output = Result<JwtSvid, FetchSvidError>> + Send + 'static>>;

/// One call to an issuer for one token. `SvidCache` over it adds the cache, the single flight and
/// the refresh, so that an implementation need not.
#[diagnostic::on_unimplemented(
    message = "`{Self}` fetches no JWT-SVIDs",
    label = "expected a `JwtSource`, or your own `FetchSvid`"
)]
pub trait FetchSvid: Send + Sync + 'static {
    /// Asks the issuer once. The future does not borrow from `self`: it outlives its caller.
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture;
}

impl<F: FetchSvid + ?Sized> FetchSvid for Arc<F> {
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
        (**self).fetch_svid(request)
    }
}

/// Which token is wanted: for whom (audiences), and as whom (an ID, a hint, or whatever the issuer
/// gives first). Two requests for the same audiences in another order are equal.
#[derive(Clone)]
pub struct SvidRequest {
    // Of the rest, with a key of this process, so that a look-up need not read it.
    hash: u64,
    // Sorted, without duplicates, none empty, at least one.
    audiences: Arc<[Box<str>]>,
    // Whatever the issuer gives first, where there is none.
    identity: Option<Identity>,
}

impl PartialEq for SvidRequest {
    fn eq(&self, other: &Self) -> bool {
        // Where the memory is the same, an `Arc` looks no further.
        self.hash == other.hash
            && self.audiences == other.audiences
            && self.identity == other.identity
    }
}

impl Eq for SvidRequest {}

impl Hash for SvidRequest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// As whom a token is asked for. One word, since each cached token has one.
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

/// Why a token cannot be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SvidRequestError {
    /// There is no audience (Workload API section 6.2.1).
    NoAudience,
    /// An audience is the empty string. SPIRE answers it with Unavailable for ever, so it is
    /// refused before asking.
    EmptyAudience,
    /// An audience begins or ends with white space, as what is read from a file may: whom the token
    /// is meant for would refuse it.
    AudienceWhitespace,
    /// The hint is empty.
    EmptyHint,
}

impl SvidRequest {
    /// A token for these audiences.
    ///
    /// # Errors
    /// No audience, an empty one, or one that begins or ends with white space.
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
        Ok(Self::of(all.into(), None))
    }

    /// As this identity; replaces a hint.
    #[must_use]
    pub fn with_spiffe_id(self, id: SpiffeId) -> Self {
        self.with_identity(Identity::id(id))
    }

    /// As the identity that the issuer gives this hint; replaces an ID.
    ///
    /// # Errors
    /// The hint is empty: the empty hint names nothing (Workload API section 6.2.1).
    pub fn with_hint(self, hint: &str) -> Result<Self, SvidRequestError> {
        Ok(self.with_identity(Identity::hint(hint)?))
    }

    pub(crate) fn with_identity(self, identity: Identity) -> Self {
        Self::of(self.audiences, Some(identity))
    }

    fn of(audiences: Arc<[Box<str>]>, identity: Option<Identity>) -> Self {
        // Audiences may be made of what strangers say, so the key is nobody's to know.
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self {
            hash: KEY.hash_one((&audiences, &identity)),
            audiences,
            identity,
        }
    }

    /// The audiences, sorted, each once.
    pub fn audiences(&self) -> &[Box<str>] {
        &self.audiences
    }

    #[cfg(feature = "client")]
    pub(crate) fn shared_audiences(&self) -> &Arc<[Box<str>]> {
        &self.audiences
    }

    /// The identity asked for by ID.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        match self.asked_as()? {
            As::Id(id) => Some(id),
            As::Hint(_) => None,
        }
    }

    /// The identity asked for by hint.
    pub fn hint(&self) -> Option<&str> {
        match self.asked_as()? {
            As::Hint(hint) => Some(hint),
            As::Id(_) => None,
        }
    }

    #[cfg(feature = "client")]
    pub(crate) fn names_an_identity(&self) -> bool {
        self.identity.is_some()
    }

    fn asked_as(&self) -> Option<&As> {
        self.identity.as_ref().map(|identity| &*identity.0)
    }
}

impl fmt::Debug for SvidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("SvidRequest");
        out.field("audiences", &self.audiences);
        match self.asked_as() {
            None => {}
            Some(As::Id(id)) => {
                out.field("spiffe_id", id);
            }
            Some(As::Hint(hint)) => {
                out.field("hint", hint);
            }
        }
        out.finish()
    }
}

impl fmt::Display for SvidRequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAudience => "no audience given; name the service that the token is for",
            Self::EmptyAudience => "an audience is empty; name the service that the token is for",
            Self::AudienceWhitespace => {
                "an audience begins or ends with white space, a line break perhaps; trim it"
            }
            Self::EmptyHint => "the hint is empty; leave it out, or name one that the issuer gives",
        })
    }
}

impl std::error::Error for SvidRequestError {}

/// Why no token came. Shared by everyone who waited for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchSvidError {
    reason: FetchSvidReason,
    code: Option<GrpcCode>,
    message: Arc<str>,
}

/// The class of a [`FetchSvidError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FetchSvidReason {
    /// The issuer could not be reached, or says that it cannot serve now.
    Unavailable,
    /// The issuer did not answer in time.
    Timeout,
    /// The issuer gives this workload no such identity (it may, later).
    Denied,
    /// The request can never succeed as it is.
    InvalidRequest,
    /// The issuer answered with something that is no acceptable token: malformed, of another
    /// identity or audience, too long.
    Unacceptable,
    /// The agent returned an old token, which has expired: the one that it returned before, or one
    /// whose `iat` is a whole life old. Its server is probably unreachable.
    Stale,
    /// The issuer answered with another token that is already expired: the clocks differ.
    Expired,
    /// The source was shut down.
    Closed,
    /// The fetcher panicked.
    Panicked,
    /// The call needs a tokio runtime with timers, and there is none.
    NoRuntime,
    /// Anything else.
    Other,
}

impl FetchSvidError {
    /// An error of this class; `message` says what happened and what to do, and never holds a
    /// token.
    pub fn new(reason: FetchSvidReason, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            code: None,
            message: Arc::from(message.into()),
        }
    }

    /// Adds the gRPC code that the issuer answered with.
    #[must_use]
    pub fn with_code(mut self, code: GrpcCode) -> Self {
        self.code = Some(code);
        self
    }

    /// The class.
    pub fn reason(&self) -> FetchSvidReason {
        self.reason
    }

    /// The gRPC code that the issuer answered with, where it answered with one.
    pub fn code(&self) -> Option<GrpcCode> {
        self.code
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        !matches!(
            self.reason,
            FetchSvidReason::InvalidRequest | FetchSvidReason::Closed | FetchSvidReason::NoRuntime
        )
    }
}

impl fmt::Display for FetchSvidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.code {
            Some(code) => write!(f, " (gRPC status {code})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for FetchSvidError {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn requests_are_the_same_by_what_they_ask_for() {
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
