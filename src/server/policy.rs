//! Policies: which verified or anonymous callers may make a request.

use std::sync::Arc;

use http::request::Parts;

use super::protocol::Protocol;
use crate::metrics::MetricsRecorder;
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

    /// Combines two decisions: allowed if both allow. See [`Allow`](super::Allow) for the table.
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

    /// Combines two decisions: allowed if one allows. See [`Allow`](super::Allow) for the table.
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

/// Decides who may call: [`Allow`](super::Allow), [`GrpcPolicy`](super::GrpcPolicy),
/// [`SwapPolicy`](super::SwapPolicy), an `Arc` of a policy, or a type of your own.
/// [`Allow::when`](super::Allow::when) makes a policy of a closure.
///
/// No caller gains by hiding its identity: if a policy allows an anonymous caller to make a
/// request, the layers allow every verified caller to make it, even if `decide` denies that caller.
/// A request with an invalid token is rejected before the policy is asked.
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
/// A closure alone is not a policy, because it has no rule for anonymous callers:
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
#[doc(alias = "authorize")]
#[doc(alias = "authorization")]
pub trait Policy: Send + Sync + 'static {
    /// Decides whether `caller` may make this request. `None` is an anonymous caller: the request
    /// has no token. `parts` are the parts of the request. Its credential is marked sensitive.
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision;

    /// Returns whether this request needs no token even if the layer is
    /// [`required`](super::ValidateJwtSvidLayer::required). It allows nothing by itself: `decide`
    /// must return [`Decision::Allow`] for an anonymous caller too. The default is `false`.
    fn is_public(&self, parts: &Parts) -> bool {
        let _ = parts;
        false
    }

    /// Returns whether `decide` allows an anonymous caller to make this request. Called for
    /// requests of verified callers that `decide` does not allow. The default calls `decide`.
    /// Override it if `decide` has side effects, such as a count.
    fn allows_anonymous(&self, parts: &Parts) -> bool {
        self.decide(None, parts) == Decision::Allow
    }

    /// Returns the protocol that a server with this policy speaks, if the policy implies one.
    /// Rejections use it unless the layer's
    /// [`protocol`](super::ValidateJwtSvidLayer::protocol) is set. The default is `None`.
    fn protocol(&self) -> Option<Protocol> {
        None
    }

    /// Receives the recorder of the layer that this policy is given to. Called again if the layer
    /// gets another recorder. For policies that record counts; the default ignores it.
    fn inherit_metrics(&self, recorder: &Arc<dyn MetricsRecorder>) {
        let _ = recorder;
    }
}

impl<P: Policy + ?Sized> Policy for Arc<P> {
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision {
        (**self).decide(caller, parts)
    }

    fn is_public(&self, parts: &Parts) -> bool {
        (**self).is_public(parts)
    }

    fn allows_anonymous(&self, parts: &Parts) -> bool {
        (**self).allows_anonymous(parts)
    }

    fn protocol(&self) -> Option<Protocol> {
        (**self).protocol()
    }

    fn inherit_metrics(&self, recorder: &Arc<dyn MetricsRecorder>) {
        (**self).inherit_metrics(recorder);
    }
}

/// Asks the policy about a verified caller, which may do everything that an anonymous caller may.
pub(crate) fn decide_verified(
    policy: &dyn Policy,
    caller: &VerifiedSvid,
    parts: &Parts,
) -> Decision {
    match policy.decide(Some(caller), parts) {
        Decision::Allow => Decision::Allow,
        _ if policy.allows_anonymous(parts) => Decision::Allow,
        denied => denied,
    }
}
