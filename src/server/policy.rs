//! Who may call: the question after *who is it*.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::request::Parts;

use super::policy_error::PolicyError;
use crate::spiffe_id::{SpiffeId, SpiffeIdError, SpiffeIdMatcher, TrustDomain};
use crate::svid::VerifiedSvid;

/// Decides who may call. [`Allow`], [`GrpcPolicy`](super::GrpcPolicy), [`SwapPolicy`] and closures
/// over `(&VerifiedSvid, &Parts)` are policies. A closure has to name the types of its arguments,
/// or stand in [`Allow::when`], which knows them.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no policy",
    label = "expected an `Allow`, a `GrpcPolicy`, a `SwapPolicy` or a closure \
             `|caller: &VerifiedSvid, parts: &Parts| -> bool`",
    note = "`Allow::id` and its like give a `Result`, and a `GrpcPolicyBuilder` becomes a policy by \
            `.build()`: add `?`",
    note = "to admit every workload of every known trust domain, write `Allow::any_trust_domain()`"
)]
pub trait Policy: Send + Sync + 'static {
    /// Whether this verified caller may make this request.
    fn allows(&self, caller: &VerifiedSvid, parts: &Parts) -> bool;

    /// Whether this request is open to everybody, so that its credential is not even looked at.
    fn is_public(&self, parts: &Parts) -> bool {
        let _ = parts;
        false
    }
}

impl<F> Policy for F
where
    F: Fn(&VerifiedSvid, &Parts) -> bool + Send + Sync + 'static,
{
    fn allows(&self, caller: &VerifiedSvid, parts: &Parts) -> bool {
        self(caller, parts)
    }
}

/// Which callers are admitted. Everyone whom it does not name is not.
///
/// ```
/// use tower_spiffe::server::Allow;
///
/// let policy = Allow::path_prefix("spiffe://example.org/web")?
///     .or(Allow::id("spiffe://example.org/ops")?);
/// assert!(Allow::one_of(Vec::<String>::new()).is_err());
/// assert!(Allow::id("spiffe://Example.org/web").is_err());
/// # drop(policy);
/// # Ok::<(), tower_spiffe::server::PolicyError>(())
/// ```
#[derive(Clone)]
pub struct Allow(Rule);

#[derive(Clone)]
enum Rule {
    Ids(SpiffeIdMatcher),
    Closure(Arc<dyn Policy>),
    Either(Arc<(Allow, Allow)>),
}

impl Allow {
    /// Exactly this SPIFFE ID.
    ///
    /// # Errors
    /// The text is not a SPIFFE ID.
    pub fn id<I>(id: I) -> Result<Self, PolicyError>
    where
        I: TryInto<SpiffeId> + AsRef<str>,
        SpiffeIdError: From<I::Error>,
    {
        Ok(Self(Rule::Ids(SpiffeIdMatcher::id(spiffe_id(id)?))))
    }

    /// Exactly these SPIFFE IDs.
    ///
    /// # Errors
    /// There is none, or one of the texts is not a SPIFFE ID.
    pub fn one_of<I>(ids: impl IntoIterator<Item = I>) -> Result<Self, PolicyError>
    where
        I: TryInto<SpiffeId> + AsRef<str>,
        SpiffeIdError: From<I::Error>,
    {
        let ids: Vec<SpiffeId> = ids.into_iter().map(spiffe_id).collect::<Result<_, _>>()?;
        Self::matching(SpiffeIdMatcher::one_of(ids))
    }

    /// Every ID of this trust domain (`example.org`, or its ID).
    ///
    /// # Errors
    /// The text is not the name of a trust domain.
    pub fn trust_domain<T>(trust_domain: T) -> Result<Self, PolicyError>
    where
        T: TryInto<TrustDomain> + AsRef<str>,
        SpiffeIdError: From<T::Error>,
    {
        let text = trust_domain.as_ref().to_owned();
        let trust_domain = trust_domain.try_into().map_err(|error| {
            let error = error.into();
            PolicyError::TrustDomain { text, error }
        })?;
        Ok(Self(Rule::Ids(SpiffeIdMatcher::trust_domain(trust_domain))))
    }

    /// This ID and every ID below it, by whole path segments: `spiffe://x/web` admits
    /// `spiffe://x/web` and `spiffe://x/web/1`, not `spiffe://x/webhook`.
    ///
    /// # Errors
    /// The text is not a SPIFFE ID.
    pub fn path_prefix<I>(prefix: I) -> Result<Self, PolicyError>
    where
        I: TryInto<SpiffeId> + AsRef<str>,
        SpiffeIdError: From<I::Error>,
    {
        Ok(Self(Rule::Ids(SpiffeIdMatcher::path_prefix(spiffe_id(
            prefix,
        )?))))
    }

    /// Whomever this matcher matches.
    ///
    /// # Errors
    /// It matches nobody.
    pub fn matching(matcher: SpiffeIdMatcher) -> Result<Self, PolicyError> {
        if matcher.matches_nothing() {
            return Err(PolicyError::Empty);
        }
        Ok(Self(Rule::Ids(matcher)))
    }

    /// Every workload that has a good token for us, of whatever trust domain. With federation that
    /// is every workload of every federated trust domain too.
    pub fn any_trust_domain() -> Self {
        Self(Rule::Ids(SpiffeIdMatcher::any()))
    }

    /// Whomever this closure admits. The parts are those of the request, its credential marked
    /// sensitive.
    ///
    /// ```
    /// use tower_spiffe::Allow;
    ///
    /// let readers = Allow::when(|caller, parts| {
    ///     parts.method == http::Method::GET && caller.spiffe_id().path().starts_with("/web/")
    /// });
    /// # drop(readers);
    /// ```
    pub fn when(admits: impl Fn(&VerifiedSvid, &Parts) -> bool + Send + Sync + 'static) -> Self {
        Self(Rule::Closure(Arc::new(admits)))
    }

    /// Whomever this or the other admits.
    #[must_use]
    pub fn or(self, other: Allow) -> Self {
        Self(Rule::Either(Arc::new((self, other))))
    }
}

fn spiffe_id<I>(id: I) -> Result<SpiffeId, PolicyError>
where
    I: TryInto<SpiffeId> + AsRef<str>,
    SpiffeIdError: From<I::Error>,
{
    // A policy has many names, so the error says which one is meant.
    let text = id.as_ref().to_owned();
    id.try_into().map_err(|error| {
        let error = error.into();
        PolicyError::SpiffeId { text, error }
    })
}

impl Policy for Allow {
    fn allows(&self, caller: &VerifiedSvid, parts: &Parts) -> bool {
        match &self.0 {
            Rule::Ids(matcher) => matcher.matches(caller.spiffe_id()),
            Rule::Closure(admits) => admits.allows(caller, parts),
            Rule::Either(both) => both.0.allows(caller, parts) || both.1.allows(caller, parts),
        }
    }
}

impl fmt::Debug for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Rule::Ids(matcher) => f.debug_tuple("Allow").field(matcher).finish(),
            Rule::Closure(_) => f.write_str("Allow(<closure>)"),
            Rule::Either(both) => write!(f, "{:?}.or({:?})", both.0, both.1),
        }
    }
}

/// A policy that can be replaced while requests are served. Clones are handles to the same one.
///
/// ```
/// use tower_spiffe::server::{Allow, SwapPolicy};
///
/// let policy = SwapPolicy::new(Allow::trust_domain("example.org")?);
/// let in_the_layer = policy.clone();
/// // Later, when the configuration changed: the next request is judged by the new one.
/// policy.replace(Allow::id("spiffe://example.org/ops")?);
/// # drop(in_the_layer);
/// # Ok::<(), tower_spiffe::server::PolicyError>(())
/// ```
#[derive(Clone)]
pub struct SwapPolicy(Arc<ArcSwap<Box<dyn Policy>>>);

impl SwapPolicy {
    /// Begins with this policy.
    pub fn new(policy: impl Policy) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Box::new(policy))))
    }

    /// From now on, this one decides.
    pub fn replace(&self, policy: impl Policy) {
        self.0.store(Arc::new(Box::new(policy)));
    }
}

impl Policy for SwapPolicy {
    fn allows(&self, caller: &VerifiedSvid, parts: &Parts) -> bool {
        self.0.load().allows(caller, parts)
    }

    fn is_public(&self, parts: &Parts) -> bool {
        self.0.load().is_public(parts)
    }
}

impl fmt::Debug for SwapPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwapPolicy")
    }
}
