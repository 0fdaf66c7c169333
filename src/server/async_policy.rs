//! Policies that wait: for OPA, Cedar, OpenFGA or a database.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;

use super::policy::{Decision, Policy};
use super::rejection::cut;
use crate::verify::VerifiedSvid;

/// The future of [`AsyncPolicy::decide`].
pub type DecisionFuture =
    Pin<Box<dyn Future<Output = Result<AsyncDecision, PolicyUnavailable>> + Send>>;

/// Decides who may call, after a wait. [`AskPolicy`] puts it into a layer.
///
/// ```
/// use http::request::Parts;
/// use tower_spiffe::VerifiedSvid;
/// use tower_spiffe::server::{AsyncPolicy, Decision, DecisionFuture, PolicyUnavailable};
///
/// struct Database;
///
/// impl AsyncPolicy for Database {
///     fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> DecisionFuture {
///         let caller = caller.map(|caller| caller.spiffe_id().clone());
///         let path = parts.uri.path().to_owned();
///         Box::pin(async move {
///             let Some(caller) = caller else {
///                 return Ok(Decision::AuthenticationRequired.into());
///             };
///             match query(caller.as_str(), &path).await {
///                 Ok(true) => Ok(Decision::Allow.into()),
///                 Ok(false) => Ok(Decision::Deny.into()),
///                 Err(error) => Err(PolicyUnavailable::new(error.to_string())),
///             }
///         })
///     }
/// }
/// # async fn query(_: &str, _: &str) -> Result<bool, std::io::Error> { Ok(true) }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an asynchronous policy",
    label = "expected a type that implements `AsyncPolicy`",
    note = "a policy that does not wait is the second argument of `ValidateJwtSvidLayer::required`"
)]
pub trait AsyncPolicy: Send + Sync + 'static {
    /// Decides whether `caller` may make this request. `None` is an anonymous caller that the
    /// synchronous policy allows. `parts` are the parts of the request. Its credential is marked
    /// sensitive.
    ///
    /// The future can be dropped at any await point: when the caller disconnects, or at the
    /// timeout.
    ///
    /// No caller gains by hiding its identity: if a verified caller is denied and the synchronous
    /// policy allows anonymous callers, this is called again with `None`.
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> DecisionFuture;

    /// Returns the key under which the decision is cached: everything in the request that the
    /// decision depends on, such as method and path. The SPIFFE ID of the caller is always a part of
    /// the key; its claims are not. The decision is not cached if this is `None` (the default) or
    /// longer than 4 KiB.
    fn cache_key(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Option<String> {
        let _ = (caller, parts);
        None
    }
}

impl<P: AsyncPolicy + ?Sized> AsyncPolicy for Arc<P> {
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> DecisionFuture {
        (**self).decide(caller, parts)
    }

    fn cache_key(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Option<String> {
        (**self).cache_key(caller, parts)
    }
}

/// A [`Decision`] with a reason for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsyncDecision {
    pub(crate) decision: Decision,
    pub(crate) reason: Option<Cow<'static, str>>,
}

impl AsyncDecision {
    /// Adds a reason for the log line, cut at 256 bytes. The peer never receives it.
    #[must_use]
    pub fn because(self, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            // Cut here, because the decision may be cached.
            reason: Some(cut(reason.into())),
            ..self
        }
    }
}

impl From<Decision> for AsyncDecision {
    fn from(decision: Decision) -> Self {
        Self {
            decision,
            reason: decision.reason().map(Cow::Borrowed),
        }
    }
}

/// The error of an asynchronous policy that cannot decide. Its text is for logs, cut at 256 bytes:
/// it must not contain a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyUnavailable {
    pub(crate) detail: Cow<'static, str>,
}

impl PolicyUnavailable {
    /// Creates the error.
    pub fn new(detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            detail: detail.into(),
        }
    }
}

impl fmt::Display for PolicyUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the policy cannot decide: {}", self.detail)
    }
}

impl std::error::Error for PolicyUnavailable {}

/// An asynchronous policy and its limits, for [`ValidateJwtSvidLayer::ask`].
///
/// If the policy does not decide (an error, no decision in time, too many requests in flight), the
/// request is rejected: 503, in gRPC `UNAVAILABLE`, reason
/// [`PolicyUnavailable`](super::RejectionReason::PolicyUnavailable).
///
/// [`ValidateJwtSvidLayer::ask`]: super::ValidateJwtSvidLayer::ask
#[derive(Clone)]
pub struct AskPolicy {
    pub(crate) policy: Arc<dyn AsyncPolicy>,
    pub(crate) timeout: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) cache: Option<(usize, Duration)>,
    pub(crate) fallback: Option<Arc<dyn Policy>>,
}

impl AskPolicy {
    /// Asks this policy, with a timeout of 1 second, at most 256 requests in flight, and no cache.
    pub fn new(policy: impl AsyncPolicy) -> Self {
        Self {
            policy: Arc::new(policy),
            timeout: Duration::from_secs(1),
            max_in_flight: 256,
            cache: None,
            fallback: None,
        }
    }

    /// Sets how long a request waits for its decision. The default is 1 second. This needs a tokio
    /// runtime with timers: without one, a decision that is not ready immediately counts as failed.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sets how many requests wait for a decision at the same time. Further ones are rejected and
    /// do not queue. The default is 256.
    #[must_use]
    pub fn max_in_flight(self, requests: usize) -> Self {
        Self {
            max_in_flight: requests,
            ..self
        }
    }

    /// Caches about this many decisions for this long, if the policy supplies a
    /// [`cache_key`](AsyncPolicy::cache_key). No entry outlives the token (`exp`) that it was made
    /// for. Errors are not cached. By default nothing is cached.
    ///
    /// A change in the policy, such as a revoked permission, takes effect when the cached entry has
    /// expired.
    #[must_use]
    pub fn cache(self, decisions: usize, ttl: Duration) -> Self {
        let cache = (decisions > 0 && !ttl.is_zero()).then_some((decisions, ttl));
        Self { cache, ..self }
    }

    /// Lets this policy decide if the asynchronous one does not. By default such requests are
    /// rejected. A denial by the asynchronous policy is final.
    ///
    /// `Allow::any_trust_domain()` here fails open: a caller that can overload the policy can bypass
    /// it.
    #[must_use]
    pub fn fallback(self, policy: impl Policy) -> Self {
        Self {
            fallback: Some(Arc::new(policy)),
            ..self
        }
    }
}

impl fmt::Debug for AskPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AskPolicy")
            .field("timeout", &self.timeout)
            .field("max_in_flight", &self.max_in_flight)
            .field("cache", &self.cache)
            .field("fallback", &self.fallback.is_some())
            .finish_non_exhaustive()
    }
}
