//! Who may call: the question after *who is it*.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::request::Parts;

use super::policy_error::PolicyError;
use super::protocol::Protocol;
use crate::identity::{SpiffeId, SpiffeIdError, SpiffeIdMatcher, TrustDomain};
use crate::verify::VerifiedSvid;

/// What a [`Policy`] decides about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Decision {
    /// The caller may make this request.
    Allow,
    /// The caller may not make this request: 403, in gRPC `PERMISSION_DENIED`.
    Deny,
    /// An anonymous caller may not make this request, a verified one may: 401, in gRPC
    /// `UNAUTHENTICATED`. For a verified caller it is the same as `Deny`.
    AuthenticationRequired,
}

/// Decides who may call: [`Allow`], [`GrpcPolicy`](super::GrpcPolicy), [`SwapPolicy`], an `Arc` of
/// a policy, or a type of your own. A closure becomes a policy by [`Allow::when`].
///
/// No caller gains by hiding its identity: if a policy allows an anonymous caller to make a
/// request, the layers allow every verified caller to make it, whatever `decide` returns for that
/// caller. A request with an invalid token is rejected before the policy is asked.
///
/// ```
/// use http::request::Parts;
/// use tower_spiffe::VerifiedSvid;
/// use tower_spiffe::server::{Decision, Policy};
///
/// /// Everyone may read, only operators may write.
/// struct ReadOnly;
///
/// impl Policy for ReadOnly {
///     fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision {
///         match caller {
///             _ if parts.method.is_safe() => Decision::Allow,
///             None => Decision::AuthenticationRequired,
///             Some(caller) if caller.spiffe_id().path().starts_with("/ops/") => Decision::Allow,
///             Some(_) => Decision::Deny,
///         }
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a policy",
    label = "expected an `Allow`, a `GrpcPolicy`, a `SwapPolicy` or another `Policy`",
    note = "`Allow::id` and similar functions return a `Result`, and a `GrpcPolicyBuilder` becomes a \
            policy by `.build()`: add `?`",
    note = "a closure becomes a policy by `Allow::when(|caller, parts| …)`",
    note = "to allow every workload of every known trust domain, write `Allow::any_trust_domain()`"
)]
pub trait Policy: Send + Sync + 'static {
    /// Decides whether `caller` may make this request. `None` is an anonymous caller: the request
    /// has no token. `parts` are those of the request, its credential marked sensitive.
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision;

    /// Returns whether this request needs no token even if the layer is
    /// [`required`](super::ValidateJwtSvidLayer::required). It opens nothing by itself: `decide`
    /// must return [`Decision::Allow`] for an anonymous caller too. The default is `false`.
    fn is_public(&self, parts: &Parts) -> bool {
        let _ = parts;
        false
    }

    /// Returns the protocol that a server with this policy speaks, if the policy implies one.
    /// Rejections use it unless the layer's
    /// [`protocol`](super::ValidateJwtSvidLayer::protocol) is set. The default is `None`.
    fn protocol(&self) -> Option<Protocol> {
        None
    }
}

impl<P: Policy + ?Sized> Policy for Arc<P> {
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision {
        (**self).decide(caller, parts)
    }

    fn is_public(&self, parts: &Parts) -> bool {
        (**self).is_public(parts)
    }

    fn protocol(&self) -> Option<Protocol> {
        (**self).protocol()
    }
}

/// Asks the policy about a verified caller, who is never worse off than an anonymous one.
pub(crate) fn allows_verified(policy: &dyn Policy, caller: &VerifiedSvid, parts: &Parts) -> bool {
    policy.decide(Some(caller), parts) == Decision::Allow
        || policy.decide(None, parts) == Decision::Allow
}

/// The callers that are allowed. All others are denied, and anonymous callers are asked for a token
/// (401) by every rule except [`anyone`](Self::anyone).
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

type Closure = dyn Fn(&VerifiedSvid, &Parts) -> bool + Send + Sync;

#[derive(Clone)]
enum Rule {
    Anyone,
    Ids(SpiffeIdMatcher),
    Closure(Arc<Closure>),
    Policy(Arc<dyn Policy>),
    Either(Arc<(Allow, Allow)>),
    Both(Arc<(Allow, Allow)>),
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

    /// Allows everyone: anonymous callers and every verified caller, of whatever trust domain. A
    /// request with an invalid token is still rejected.
    ///
    /// For [`optional`](super::ValidateJwtSvidLayer::optional) layers, over which routes or
    /// handlers ask for an identity where they need one. A
    /// [`required`](super::ValidateJwtSvidLayer::required) layer rejects anonymous callers before
    /// it asks for this rule.
    pub fn anyone() -> Self {
        Self(Rule::Anyone)
    }

    /// Allows the verified callers for whom this closure returns `true`. The parts are those of the
    /// request, its credential marked sensitive.
    ///
    /// ```
    /// use tower_spiffe::Allow;
    ///
    /// let readers = Allow::when(|caller, parts| {
    ///     parts.method == http::Method::GET && caller.spiffe_id().path().starts_with("/web/")
    /// });
    /// # drop(readers);
    /// ```
    pub fn when(allows: impl Fn(&VerifiedSvid, &Parts) -> bool + Send + Sync + 'static) -> Self {
        Self(Rule::Closure(Arc::new(allows)))
    }

    /// Allows what another policy allows, to combine it by [`or`](Self::or) and
    /// [`and`](Self::and).
    ///
    /// ```
    /// use tower_spiffe::server::{Allow, GrpcPolicy};
    ///
    /// let methods = GrpcPolicy::deny_by_default()
    ///     .method("/r.Reports/Get", Allow::any_trust_domain())
    ///     .build()?;
    /// let policy = Allow::policy(methods).and(Allow::trust_domain("example.org")?);
    /// # drop(policy);
    /// # Ok::<(), tower_spiffe::server::PolicyError>(())
    /// ```
    pub fn policy(policy: impl Policy) -> Self {
        Self(Rule::Policy(Arc::new(policy)))
    }

    /// Allows what this rule or the other one allows. Otherwise an anonymous caller is asked for a
    /// token if one of the two rules asks for it.
    #[must_use]
    pub fn or(self, other: Allow) -> Self {
        Self(Rule::Either(Arc::new((self, other))))
    }

    /// Allows what both rules allow. Otherwise the request is denied if one of the two rules denies
    /// it, and an anonymous caller is asked for a token if not.
    #[must_use]
    pub fn and(self, other: Allow) -> Self {
        Self(Rule::Both(Arc::new((self, other))))
    }
}

/// [`Decision::Allow`] for a verified caller that `allows` accepts.
fn verified(caller: Option<&VerifiedSvid>, allows: impl FnOnce(&VerifiedSvid) -> bool) -> Decision {
    match caller {
        None => Decision::AuthenticationRequired,
        Some(caller) if allows(caller) => Decision::Allow,
        Some(_) => Decision::Deny,
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
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision {
        use Decision::{Allow, AuthenticationRequired, Deny};

        match &self.0 {
            Rule::Anyone => Allow,
            Rule::Ids(matcher) => verified(caller, |caller| matcher.matches(caller.spiffe_id())),
            Rule::Closure(allows) => verified(caller, |caller| allows(caller, parts)),
            Rule::Policy(policy) => policy.decide(caller, parts),
            Rule::Either(both) => match both.0.decide(caller, parts) {
                Allow => Allow,
                first => match both.1.decide(caller, parts) {
                    Deny => first,
                    second => second,
                },
            },
            Rule::Both(both) => match both.0.decide(caller, parts) {
                Deny => Deny,
                Allow => both.1.decide(caller, parts),
                AuthenticationRequired => match both.1.decide(caller, parts) {
                    Deny => Deny,
                    Allow | AuthenticationRequired => AuthenticationRequired,
                },
            },
        }
    }

    // One public rule is enough: it exempts from the layer's mode, and `decide` still combines.
    fn is_public(&self, parts: &Parts) -> bool {
        match &self.0 {
            Rule::Anyone | Rule::Ids(_) | Rule::Closure(_) => false,
            Rule::Policy(policy) => policy.is_public(parts),
            Rule::Either(both) | Rule::Both(both) => {
                both.0.is_public(parts) || both.1.is_public(parts)
            }
        }
    }

    fn protocol(&self) -> Option<Protocol> {
        match &self.0 {
            Rule::Anyone | Rule::Ids(_) | Rule::Closure(_) => None,
            Rule::Policy(policy) => policy.protocol(),
            Rule::Either(both) | Rule::Both(both) => {
                both.0.protocol().or_else(|| both.1.protocol())
            }
        }
    }
}

impl fmt::Debug for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Rule::Anyone => f.write_str("Allow(anyone)"),
            Rule::Ids(matcher) => f.debug_tuple("Allow").field(matcher).finish(),
            Rule::Closure(_) => f.write_str("Allow(<closure>)"),
            Rule::Policy(_) => f.write_str("Allow(<policy>)"),
            Rule::Either(both) => write!(f, "{:?}.or({:?})", both.0, both.1),
            Rule::Both(both) => write!(f, "{:?}.and({:?})", both.0, both.1),
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
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision {
        self.0.load().decide(caller, parts)
    }

    fn is_public(&self, parts: &Parts) -> bool {
        self.0.load().is_public(parts)
    }

    fn protocol(&self) -> Option<Protocol> {
        self.0.load().protocol()
    }
}

impl fmt::Debug for SwapPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwapPolicy")
    }
}
