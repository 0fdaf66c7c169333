//! Asks an asynchronous policy, after the token and the synchronous policy were checked.

mod decisions;
mod question;

use std::borrow::Cow;
use std::sync::Arc;

use http::request::Parts;
use tokio::sync::Semaphore;

use self::decisions::{Decisions, Key};
pub(crate) use self::question::Question;
use self::question::preferred;
use super::async_policy::{AskPolicy, AsyncDecision};
use super::gate::{Checked, Gate};
use super::policy::{self, Decision};
use super::reason::{PolicyFailure, RejectionReason};
use super::rejection::Rejection;
use crate::clock::Clock;
use crate::verify::VerifiedSvid;

/// Decisions with longer cache keys are not cached. Callers choose the length of the path, so they
/// could fill the memory.
const MAX_KEY: usize = 4096;

/// State that all services of a layer share.
pub(crate) struct Asking {
    pub(crate) ask: AskPolicy,
    in_flight: Arc<Semaphore>,
    cache: Option<Decisions>,
}

/// The decision, or why it is missing, with the text of the error.
type Outcome = Result<AsyncDecision, (PolicyFailure, Option<Cow<'static, str>>)>;

enum Asked {
    Known(AsyncDecision),
    /// The key is for the cache.
    Unknown(Option<Key>),
}

impl Asking {
    pub(crate) fn new(ask: AskPolicy, clock: Arc<dyn Clock>) -> Self {
        let slots = ask.max_in_flight.min(Semaphore::MAX_PERMITS);
        let cache = ask.cache;
        Self {
            in_flight: Arc::new(Semaphore::new(slots)),
            cache: cache.map(|(capacity, ttl)| Decisions::new(capacity, ttl, clock)),
            ask,
        }
    }

    /// Returns whether the synchronous policy alone decides, because the request is public.
    fn is_public(gate: &Gate, parts: &Parts) -> bool {
        let policy = &gate.access.policy;
        policy.is_public(parts) && policy.allows_anonymous(parts)
    }

    /// Looks up the decision in the cache.
    fn known(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Asked {
        let key = self.cache.as_ref().and_then(|cache| {
            let key = self.ask.policy.cache_key(caller, parts)?;
            let caller = caller.map(|caller| caller.spiffe_id().clone());
            (key.len() <= MAX_KEY).then_some((cache, (caller, key)))
        });
        let known = key.as_ref().and_then(|(cache, key)| cache.get(key));
        match known {
            Some(decision) => Asked::Known(decision),
            None => Asked::Unknown(key.map(|(_, key)| key)),
        }
    }

    fn remember(&self, key: Option<Key>, caller: Option<&VerifiedSvid>, decision: &AsyncDecision) {
        if let (Some(cache), Some(key)) = (&self.cache, key) {
            cache.insert(key, caller, decision);
        }
    }

    /// Returns whether the policy must also be asked about an anonymous caller, so that this
    /// verified caller does not gain by hiding its identity.
    fn asks_again(
        gate: &Gate,
        caller: Option<&VerifiedSvid>,
        parts: &Parts,
        decision: &AsyncDecision,
    ) -> bool {
        caller.is_some() && decision.decision != Decision::Allow && gate.allows_anonymous(parts)
    }

    /// Returns the verdict that follows from this outcome. `denied` is the decision about the
    /// caller, if the outcome is about an anonymous one.
    fn verdict(
        &self,
        gate: &Gate,
        checked: Checked,
        outcome: Outcome,
        denied: Option<AsyncDecision>,
        caller: Option<&VerifiedSvid>,
        parts: &Parts,
    ) -> Checked {
        let access = &gate.access;
        let decision = match (outcome, &self.ask.fallback) {
            (Ok(decision), _) => decision,
            (Err(_), Some(fallback)) => match caller {
                // The policy has decided about this caller.
                _ if denied.is_some() => preferred(denied, fallback.decide(None, parts).into()),
                Some(caller) => policy::decide_verified(&**fallback, caller, parts).into(),
                None => fallback.decide(None, parts).into(),
            },
            (Err((why, detail)), None) => {
                let reason = RejectionReason::PolicyUnavailable(why);
                let wire = access.wire(parts);
                let rejection = Rejection::of_caller(reason, caller, wire, &access.realm);
                return checked.denied(rejection.because_if(detail));
            }
        };
        if decision.decision == Decision::Allow {
            return checked;
        }
        let rejection = access.denied(decision.decision, caller, parts);
        checked.denied(rejection.because_if(decision.reason))
    }
}
