//! A layer that asks an asynchronous policy, after the token and the synchronous policy.
//!
//! While a request waits for its decision it holds no permit of the inner service. Right before the
//! call its token is checked again.

mod decisions;
mod future;
mod service;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::request::Parts;
use tokio::sync::Semaphore;
use tower_layer::Layer;

use self::decisions::{Decisions, Key};
pub use self::future::AskPolicyFuture;
use self::future::preferred;
pub use self::service::AskPolicyService;
use super::async_policy::{AskPolicy, AsyncDecision};
use super::gate::Judged;
use super::layer::{Shared, ValidateJwtSvidLayer};
use super::on_reject::DefaultOnReject;
use super::policy::{self, Decision};
use super::reason::{PolicyFailure, RejectionReason};
use super::rejection::Rejection;
use crate::verify::VerifiedSvid;

/// A [`ValidateJwtSvidLayer`] that asks an asynchronous policy; made by its
/// [`ask`](ValidateJwtSvidLayer::ask).
pub struct AskPolicyLayer<R = DefaultOnReject> {
    asking: Arc<Asking<R>>,
}

impl<R> ValidateJwtSvidLayer<R> {
    /// Asks this asynchronous policy about every request that the token and the synchronous policy
    /// allow. Call it last: the layer that it returns has no other settings.
    ///
    /// Requests that are public by the synchronous policy
    /// ([`GrpcPolicyBuilder::public`](super::GrpcPolicyBuilder::public),
    /// [`Policy::is_public`](super::Policy::is_public)) are not asked about: probes do not depend on
    /// another service. While a request waits, it holds no permit of the inner service, which must
    /// be `Clone`. After the decision the token and the synchronous policy are checked again.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_spiffe::server::{Allow, AskPolicy, AsyncPolicy, ValidateJwtSvidLayer};
    ///
    /// # fn example(
    /// #     validator: tower_spiffe::Validator,
    /// #     opa: impl AsyncPolicy,
    /// # ) -> Result<(), tower_spiffe::server::PolicyError> {
    /// let ask = AskPolicy::new(opa)
    ///     .timeout(Duration::from_millis(200))
    ///     .max_in_flight(64)
    ///     .cache(10_000, Duration::from_secs(5));
    /// let layer = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org")?)
    ///     .ask(ask);
    /// # drop(layer);
    /// # Ok(()) }
    /// ```
    pub fn ask(self, ask: AskPolicy) -> AskPolicyLayer<R> {
        let in_flight = ask.max_in_flight.min(Semaphore::MAX_PERMITS);
        let clock = self.shared.gate.validator.clock().clone();
        let cache = ask
            .cache
            .map(|(capacity, ttl)| Decisions::new(capacity, ttl, clock));
        AskPolicyLayer {
            asking: Arc::new(Asking {
                shared: self.shared,
                in_flight: Arc::new(Semaphore::new(in_flight)),
                cache,
                ask,
            }),
        }
    }
}

impl<S, R> Layer<S> for AskPolicyLayer<R> {
    type Service = AskPolicyService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        AskPolicyService::new(inner, self.asking.clone())
    }
}

impl<R> Clone for AskPolicyLayer<R> {
    fn clone(&self) -> Self {
        Self {
            asking: self.asking.clone(),
        }
    }
}

impl<R> fmt::Debug for AskPolicyLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AskPolicyLayer")
            .field("gate", &self.asking.shared.gate)
            .field("ask", &self.asking.ask)
            .finish()
    }
}

/// What the layer and all of its services share.
struct Asking<R> {
    shared: Arc<Shared<R>>,
    ask: AskPolicy,
    in_flight: Arc<Semaphore>,
    cache: Option<Decisions>,
}

/// What became of one question.
enum Outcome {
    Decided(AsyncDecision),
    Failed(PolicyFailure, Option<Cow<'static, str>>),
}

enum Asked {
    Known(AsyncDecision),
    /// The key is for the cache.
    Unknown(Option<Key>),
}

impl<R> Asking<R> {
    /// Returns whether the synchronous policy alone decides, because the request is public.
    fn is_public(&self, parts: &Parts) -> bool {
        let policy = &self.shared.gate.policy;
        policy.is_public(parts) && policy.allows_anonymous(parts)
    }

    /// Asks the cache.
    fn known(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Asked {
        let Some(cache) = &self.cache else {
            return Asked::Unknown(None);
        };
        let Some(key) = self.ask.policy.cache_key(caller, parts) else {
            return Asked::Unknown(None);
        };
        let key = Key::new(caller, key);
        match cache.get(&key) {
            Some(decision) => Asked::Known(decision),
            None => Asked::Unknown(Some(key)),
        }
    }

    fn remember(&self, key: Option<Key>, caller: Option<&VerifiedSvid>, decision: &AsyncDecision) {
        if let (Some(cache), Some(key)) = (&self.cache, key) {
            cache.insert(key, caller, decision);
        }
    }

    /// Returns whether an anonymous caller has to be asked about too, so that this verified caller
    /// does not gain by hiding its identity.
    fn asks_again(
        &self,
        caller: Option<&VerifiedSvid>,
        parts: &Parts,
        decision: &AsyncDecision,
    ) -> bool {
        caller.is_some()
            && decision.decision != Decision::Allow
            && self.shared.gate.allows_anonymous(parts)
    }

    /// Returns the verdict that follows from this outcome. `denied` is the decision about the
    /// caller, if the outcome is about an anonymous one.
    fn verdict(
        &self,
        judged: Judged,
        outcome: Outcome,
        denied: Option<AsyncDecision>,
        caller: Option<&VerifiedSvid>,
        parts: &Parts,
    ) -> Judged {
        match self.rejection(outcome, denied, caller, parts) {
            Some(rejection) => judged.denied(rejection),
            None => judged,
        }
    }

    fn rejection(
        &self,
        outcome: Outcome,
        denied: Option<AsyncDecision>,
        caller: Option<&VerifiedSvid>,
        parts: &Parts,
    ) -> Option<Rejection> {
        let gate = &self.shared.gate;
        let decision = match (outcome, &self.ask.fallback) {
            (Outcome::Decided(decision), _) => decision,
            (Outcome::Failed(..), Some(fallback)) => match caller {
                // The policy has decided about this caller.
                _ if denied.is_some() => preferred(denied, fallback.decide(None, parts).into()),
                Some(caller) => policy::decide_verified(&**fallback, caller, parts).into(),
                None => fallback.decide(None, parts).into(),
            },
            (Outcome::Failed(why, detail), None) => {
                let reason = RejectionReason::PolicyUnavailable(why);
                let wire = gate.wire(parts);
                let rejection = Rejection::of_caller(reason, caller, wire, &gate.realm);
                return Some(match detail {
                    Some(detail) => rejection.because(detail),
                    None => rejection,
                });
            }
        };
        if decision.decision == Decision::Allow {
            return None;
        }
        let wire = gate.wire(parts);
        let rejection = Rejection::by_policy(decision.decision, caller, wire, &gate.realm);
        Some(match decision.reason {
            Some(reason) => rejection.because(reason),
            None => rejection,
        })
    }
}
