//! The rules about callers, and their combinations.

use std::fmt;
use std::sync::Arc;

use http::request::Parts;

use super::policy::{Decision, Policy};
use super::policy_error::PolicyError;
use super::protocol::Protocol;
// Imported by its public path, so that it must be exported with every set of features.
use super::Claim;
use crate::identity::{SpiffeId, SpiffeIdError, SpiffeIdMatcher, TrustDomain};
use crate::metrics::MetricsRecorder;
use crate::verify::VerifiedSvid;

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
#[doc(alias = "authorize")]
#[doc(alias = "authorization")]
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
    /// Allows exactly this SPIFFE ID.
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

    /// Allows exactly these SPIFFE IDs.
    ///
    /// # Errors
    /// The list is empty, or one of the texts is not a SPIFFE ID.
    pub fn one_of<I>(ids: impl IntoIterator<Item = I>) -> Result<Self, PolicyError>
    where
        I: TryInto<SpiffeId> + AsRef<str>,
        SpiffeIdError: From<I::Error>,
    {
        let ids: Vec<SpiffeId> = ids.into_iter().map(spiffe_id).collect::<Result<_, _>>()?;
        Self::matching(SpiffeIdMatcher::one_of(ids))
    }

    /// Allows every ID of this trust domain, given as its name (`example.org`) or its SPIFFE ID.
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

    /// Allows this ID and every ID under it, by whole path segments: `spiffe://x/web` allows
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

    /// Allows the callers that this matcher matches.
    ///
    /// # Errors
    /// The matcher cannot match any caller.
    pub fn matching(matcher: SpiffeIdMatcher) -> Result<Self, PolicyError> {
        if matcher.matches_nothing() {
            return Err(PolicyError::Empty);
        }
        Ok(Self(Rule::Ids(matcher)))
    }

    /// Allows every workload with a valid token, of any known trust domain. With federation this
    /// includes every workload of every federated trust domain.
    pub fn any_trust_domain() -> Self {
        Self(Rule::Ids(SpiffeIdMatcher::any()))
    }

    /// Allows everyone: anonymous callers, and verified callers of any trust domain. A request with
    /// an invalid token is still rejected.
    ///
    /// It is for [`optional`](super::ValidateJwtSvidLayer::optional) layers around routes or handlers
    /// that check the identity themselves. A [`required`](super::ValidateJwtSvidLayer::required)
    /// layer rejects anonymous callers before it asks the policy.
    pub fn anyone() -> Self {
        Self(Rule::Anyone)
    }

    /// Allows the verified callers for which this closure returns `true`. The parts are the parts
    /// of the request. Its credential is marked sensitive.
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

    /// Allows the verified callers whose token has this top-level claim. Each trust domain
    /// defines the meaning of its claims: combine this rule with one for the trust domain.
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

    /// Allows the requests that another policy allows. Use it to combine that policy with others,
    /// with [`or`](Self::or) and [`and`](Self::and).
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

    /// Allows the requests that this rule or the other one allows. Otherwise an anonymous caller is
    /// asked for a token if one of the two rules asks for it. See the [table](Self#combinations).
    #[must_use]
    pub fn or(self, other: Allow) -> Self {
        Self(Rule::Either(Arc::new((self, other))))
    }

    /// Allows the requests that both rules allow. If one of them denies the request, it is denied.
    /// Otherwise the anonymous caller is asked for a token. See the [table](Self#combinations).
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

impl Allow {
    /// Returns the policies that this rule combines.
    fn inside(&self) -> impl Iterator<Item = &dyn Policy> {
        let (first, second): (Option<&dyn Policy>, Option<&dyn Policy>) = match &self.0 {
            Rule::Anyone | Rule::Ids(_) | Rule::Closure(_) | Rule::Claim(_) => (None, None),
            Rule::Policy(policy) => (Some(&**policy), None),
            Rule::Either(both) | Rule::Both(both) => (Some(&both.0), Some(&both.1)),
            Rule::Not(rule) | Rule::Because(rule, _) => (Some(&**rule), None),
        };
        first.into_iter().chain(second)
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
    // A policy has many IDs, so the error quotes the invalid one.
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

    // One public rule is enough: it only exempts the request from the layer's mode, and `decide`
    // still combines the rules.
    fn is_public(&self, parts: &Parts) -> bool {
        self.inside().any(|policy| policy.is_public(parts))
    }

    // Combines like `decide`; see the table of combinations.
    fn allows_anonymous(&self, parts: &Parts) -> bool {
        let mut inside = self.inside();
        match &self.0 {
            Rule::Anyone => true,
            Rule::Ids(_) | Rule::Closure(_) | Rule::Claim(_) | Rule::Not(_) => false,
            Rule::Both(_) => inside.all(|policy| policy.allows_anonymous(parts)),
            Rule::Policy(_) | Rule::Either(_) | Rule::Because(..) => {
                inside.any(|policy| policy.allows_anonymous(parts))
            }
        }
    }

    fn protocol(&self) -> Option<Protocol> {
        self.inside().find_map(|policy| policy.protocol())
    }

    fn inherit_metrics(&self, recorder: &Arc<dyn MetricsRecorder>) {
        self.inside()
            .for_each(|policy| policy.inherit_metrics(recorder));
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
