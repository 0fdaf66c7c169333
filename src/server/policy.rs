//! Who may call: the question after *who is it*.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::request::Parts;

use super::claim::Claim;
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
    /// The same as `Deny`, with a reason for the log line ([`Rejection::policy_reason`]). The peer
    /// never receives it.
    ///
    /// [`Rejection::policy_reason`]: super::Rejection::policy_reason
    DenyBecause(&'static str),
    /// An anonymous caller may not make this request, a verified one may: 401, in gRPC
    /// `UNAUTHENTICATED`. For a verified caller it is the same as `Deny`.
    AuthenticationRequired,
}

impl Decision {
    /// Returns whether this is [`Deny`](Self::Deny) or [`DenyBecause`](Self::DenyBecause).
    pub fn is_deny(self) -> bool {
        matches!(self, Self::Deny | Self::DenyBecause(_))
    }

    /// Returns the reason of [`DenyBecause`](Self::DenyBecause).
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::DenyBecause(reason) => Some(reason),
            _ => None,
        }
    }

    /// Combines two decisions: allowed if both allow. See [`Allow`] for the table.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::DenyBecause(reason), _) => Self::DenyBecause(reason),
            (Self::Deny, other) if other.is_deny() => other,
            (Self::Deny, _) => Self::Deny,
            (_, other) if other.is_deny() => other,
            (Self::AuthenticationRequired, _) | (_, Self::AuthenticationRequired) => {
                Self::AuthenticationRequired
            }
            _ => Self::Allow,
        }
    }

    /// Combines two decisions: allowed if one allows. See [`Allow`] for the table.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Allow, _) | (_, Self::Allow) => Self::Allow,
            (Self::AuthenticationRequired, _) | (_, Self::AuthenticationRequired) => {
                Self::AuthenticationRequired
            }
            (Self::Deny, other) => other,
            (because, _) => because,
        }
    }
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
///
/// A bare closure is not a policy, so that no rule for anonymous callers is left open:
///
/// ```compile_fail,E0277
/// # use tower_spiffe::server::ValidateJwtSvidLayer;
/// # fn example(validator: tower_spiffe::Validator) {
/// let layer = ValidateJwtSvidLayer::required(validator, |caller, parts| true);
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a policy",
    label = "expected an `Allow`, a `GrpcPolicy`, a `SwapPolicy` or another `Policy`",
    note = "`Allow::id` and similar functions return a `Result`, and a `GrpcPolicyBuilder` becomes a \
            policy by `.build()`: add `?`",
    note = "a closure becomes a policy by `Allow::when(|caller, parts| …)`, which needs no types",
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
pub(crate) fn decide_verified(
    policy: &dyn Policy,
    caller: &VerifiedSvid,
    parts: &Parts,
) -> Decision {
    match policy.decide(Some(caller), parts) {
        Decision::Allow => Decision::Allow,
        _ if policy.decide(None, parts) == Decision::Allow => Decision::Allow,
        denied => denied,
    }
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
///
/// # Combinations
///
/// [`and`](Self::and), [`or`](Self::or) and [`not`](Self::not) combine [`Decision`]s. "Ask" is
/// [`Decision::AuthenticationRequired`], which a rule returns for anonymous callers only.
///
/// | `a` | `b` | `a.and(b)` | `a.or(b)` | `a.not()` |
/// | --- | --- | --- | --- | --- |
/// | Allow | Allow | Allow | Allow | Deny |
/// | Allow | Deny | Deny | Allow | Deny |
/// | Allow | Ask | Ask | Allow | Deny |
/// | Deny | Allow | Deny | Allow | Allow; for an anonymous caller Ask |
/// | Deny | Deny | Deny | Deny | Allow; for an anonymous caller Ask |
/// | Deny | Ask | Deny | Ask | Allow; for an anonymous caller Ask |
/// | Ask | Allow | Ask | Allow | Ask |
/// | Ask | Deny | Deny | Ask | Ask |
/// | Ask | Ask | Ask | Ask | Ask |
///
/// [`not`](Self::not) allows verified callers only. Otherwise the opposite of a rule that denies
/// anonymous callers would open a route to everyone, including the callers that it excludes. If
/// both rules deny, the first reason is kept.
#[derive(Clone)]
pub struct Allow(Rule);

type Closure = dyn Fn(&VerifiedSvid, &Parts) -> bool + Send + Sync;

#[derive(Clone)]
enum Rule {
    Anyone,
    Ids(SpiffeIdMatcher),
    Closure(Arc<Closure>),
    Claim(Arc<(Box<str>, Claim)>),
    Policy(Arc<dyn Policy>),
    Either(Arc<(Allow, Allow)>),
    Both(Arc<(Allow, Allow)>),
    Not(Arc<Allow>),
    Because(Arc<Allow>, &'static str),
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

    /// Allows the verified callers whose token has this top-level claim. Claims mean what the
    /// caller's trust domain says that they mean: combine this rule with one of the trust domain.
    ///
    /// The payload is parsed once per token, when a rule first asks for a claim. For nested claims
    /// use [`when`](Self::when) and [`VerifiedSvid::claims`].
    ///
    /// ```
    /// use tower_spiffe::Allow;
    /// use tower_spiffe::server::Claim;
    ///
    /// let admins = Allow::trust_domain("example.org")?
    ///     .and(Allow::claim("groups", Claim::contains("admins")))
    ///     .and(Allow::claim("stage", Claim::one_of(["test", "live"])?));
    /// # drop(admins);
    /// # Ok::<(), tower_spiffe::server::PolicyError>(())
    /// ```
    pub fn claim(name: impl Into<Box<str>>, claim: Claim) -> Self {
        Self(Rule::Claim(Arc::new((name.into(), claim))))
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
    /// token if one of the two rules asks for it. See the [table](Self#combinations).
    #[must_use]
    pub fn or(self, other: Allow) -> Self {
        Self(Rule::Either(Arc::new((self, other))))
    }

    /// Allows what both rules allow. Otherwise the request is denied if one of the two rules denies
    /// it, and an anonymous caller is asked for a token if not. See the [table](Self#combinations).
    #[must_use]
    pub fn and(self, other: Allow) -> Self {
        Self(Rule::Both(Arc::new((self, other))))
    }

    /// Allows the verified callers that this rule denies, and denies those that it allows.
    /// Anonymous callers are never allowed: they are asked for a token, or denied if this rule
    /// allows them. See the [table](Self#combinations).
    ///
    /// ```
    /// use tower_spiffe::Allow;
    ///
    /// let all_but_batch = Allow::trust_domain("example.org")?
    ///     .and(Allow::path_prefix("spiffe://example.org/batch")?.not());
    /// # drop(all_but_batch);
    /// # Ok::<(), tower_spiffe::server::PolicyError>(())
    /// ```
    #[must_use]
    #[allow(
        clippy::should_implement_trait,
        reason = "`!allow` hides what happens to anonymous callers"
    )]
    pub fn not(self) -> Self {
        Self(Rule::Not(Arc::new(self)))
    }

    /// Gives denials by this rule a reason for the log line, unless they have one. The peer never
    /// receives it.
    ///
    /// ```
    /// use tower_spiffe::Allow;
    ///
    /// let ops = Allow::id("spiffe://example.org/ops")?.because("only operators delete reports");
    /// # drop(ops);
    /// # Ok::<(), tower_spiffe::server::PolicyError>(())
    /// ```
    #[must_use]
    pub fn because(self, reason: &'static str) -> Self {
        Self(Rule::Because(Arc::new(self), reason))
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
        match &self.0 {
            Rule::Anyone => Decision::Allow,
            Rule::Ids(matcher) => verified(caller, |caller| matcher.matches(caller.spiffe_id())),
            Rule::Closure(allows) => verified(caller, |caller| allows(caller, parts)),
            Rule::Claim(rule) => verified(caller, |caller| {
                caller.claim(&rule.0).is_some_and(|raw| rule.1.matches(raw))
            }),
            Rule::Policy(policy) => policy.decide(caller, parts),
            Rule::Either(both) => match both.0.decide(caller, parts) {
                Decision::Allow => Decision::Allow,
                first => first.or(both.1.decide(caller, parts)),
            },
            Rule::Both(both) => match both.0.decide(caller, parts) {
                first if first.is_deny() => first,
                first => first.and(both.1.decide(caller, parts)),
            },
            Rule::Not(rule) => match (rule.decide(caller, parts), caller) {
                (Decision::Allow, _) => Decision::Deny,
                (Decision::AuthenticationRequired, _) | (_, None) => {
                    Decision::AuthenticationRequired
                }
                _ => Decision::Allow,
            },
            Rule::Because(rule, reason) => match rule.decide(caller, parts) {
                Decision::Deny => Decision::DenyBecause(reason),
                other => other,
            },
        }
    }

    // One public rule is enough: it exempts from the layer's mode, and `decide` still combines.
    fn is_public(&self, parts: &Parts) -> bool {
        match &self.0 {
            Rule::Anyone | Rule::Ids(_) | Rule::Closure(_) | Rule::Claim(_) => false,
            Rule::Policy(policy) => policy.is_public(parts),
            Rule::Either(both) | Rule::Both(both) => {
                both.0.is_public(parts) || both.1.is_public(parts)
            }
            Rule::Not(rule) | Rule::Because(rule, _) => rule.is_public(parts),
        }
    }

    fn protocol(&self) -> Option<Protocol> {
        match &self.0 {
            Rule::Anyone | Rule::Ids(_) | Rule::Closure(_) | Rule::Claim(_) => None,
            Rule::Policy(policy) => policy.protocol(),
            Rule::Either(both) | Rule::Both(both) => {
                both.0.protocol().or_else(|| both.1.protocol())
            }
            Rule::Not(rule) | Rule::Because(rule, _) => rule.protocol(),
        }
    }
}

impl fmt::Debug for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Rule::Anyone => f.write_str("Allow(anyone)"),
            Rule::Ids(matcher) => f.debug_tuple("Allow").field(matcher).finish(),
            Rule::Closure(_) => f.write_str("Allow(<closure>)"),
            Rule::Claim(rule) => write!(f, "Allow(claim {:?} {:?})", rule.0, rule.1),
            Rule::Policy(_) => f.write_str("Allow(<policy>)"),
            Rule::Either(both) => write!(f, "{:?}.or({:?})", both.0, both.1),
            Rule::Both(both) => write!(f, "{:?}.and({:?})", both.0, both.1),
            Rule::Not(rule) => write!(f, "{rule:?}.not()"),
            Rule::Because(rule, reason) => write!(f, "{rule:?}.because({reason:?})"),
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
