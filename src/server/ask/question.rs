//! One question, and the wait for its decision.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::request::Parts;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use super::decisions::Key;
use super::{Asked, Asking, Outcome};
use crate::runtime;
use crate::server::async_policy::{AsyncDecision, DecisionFuture};
use crate::server::gate::{Checked, Gate};
use crate::server::policy::Decision;
use crate::server::reason::PolicyFailure;
use crate::verify::VerifiedSvid;

/// The question about one request. Dropping it cancels the policy's future and frees the place of
/// the request.
pub(crate) struct Question {
    asking: Arc<Asking>,
    // `None` after the outcome.
    checked: Option<Checked>,
    caller: Option<VerifiedSvid>,
    future: DecisionFuture,
    key: Option<Key>,
    // The decision about the verified caller, while the policy is asked about an anonymous one.
    denied: Option<AsyncDecision>,
    // Created when the policy first waits.
    time_up: Option<Pin<Box<Sleep>>>,
    _in_flight: OwnedSemaphorePermit,
}

impl Question {
    /// Asks the policy. Returns the verdict if it is known immediately.
    pub(crate) fn begin(
        gate: &Gate,
        asking: &Arc<Asking>,
        parts: &Parts,
        checked: Checked,
    ) -> Result<Self, Checked> {
        let caller = match &checked.verdict {
            Ok(_) if Asking::is_public(gate, parts) => return Err(checked),
            Ok(state) => state.verified().cloned(),
            Err(_) => return Err(checked),
        };
        let mut denied = None;
        let outcome = loop {
            let about = caller.as_ref().filter(|_| denied.is_none());
            match asking.known(about, parts) {
                Asked::Known(decision) if Asking::asks_again(gate, about, parts, &decision) => {
                    denied = Some(decision);
                }
                Asked::Known(decision) => break Ok(preferred(denied.take(), decision)),
                Asked::Unknown(key) => match asking.in_flight.clone().try_acquire_owned() {
                    Ok(permit) => {
                        return Ok(Self {
                            future: asking.ask.policy.decide(about, parts),
                            asking: asking.clone(),
                            checked: Some(checked),
                            caller,
                            key,
                            denied,
                            time_up: None,
                            _in_flight: permit,
                        });
                    }
                    Err(_) => break Err((PolicyFailure::TooManyInFlight, None)),
                },
            }
        };
        Err(asking.verdict(gate, checked, outcome, denied, caller.as_ref(), parts))
    }

    fn poll_outcome(&mut self, gate: &Gate, parts: &Parts, cx: &mut Context<'_>) -> Poll<Outcome> {
        let asking = &self.asking;
        loop {
            let decision = match self.future.as_mut().poll(cx) {
                Poll::Ready(Ok(decision)) => decision,
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err((PolicyFailure::Failed, Some(error.detail))));
                }
                Poll::Pending => break,
            };
            // The caller was denied: the policy is asked about an anonymous one.
            let about = self.caller.as_ref().filter(|_| self.denied.is_none());
            asking.remember(self.key.take(), about, &decision);
            if !Asking::asks_again(gate, about, parts, &decision) {
                return Poll::Ready(Ok(preferred(self.denied.take(), decision)));
            }
            match asking.known(None, parts) {
                Asked::Known(anonymous) => {
                    return Poll::Ready(Ok(preferred(Some(decision), anonymous)));
                }
                Asked::Unknown(key) => {
                    self.denied = Some(decision);
                    self.future = asking.ask.policy.decide(None, parts);
                    self.key = key;
                }
            }
        }
        let time_up = match &mut self.time_up {
            Some(time_up) => time_up,
            // Without timers the wait would never end.
            None if runtime::with_timers().is_err() => {
                let detail = "the tokio runtime has no timers";
                return Poll::Ready(Err((PolicyFailure::Failed, Some(detail.into()))));
            }
            None => self
                .time_up
                .insert(Box::pin(tokio::time::sleep(asking.ask.timeout))),
        };
        ready!(time_up.as_mut().poll(cx));
        Poll::Ready(Err((PolicyFailure::TimedOut, None)))
    }

    /// Returns the verdict once the policy has decided.
    pub(crate) fn poll_verdict(
        &mut self,
        gate: &Gate,
        parts: &Parts,
        cx: &mut Context<'_>,
    ) -> Poll<Checked> {
        let outcome = ready!(self.poll_outcome(gate, parts, cx));
        let (denied, caller) = (self.denied.take(), self.caller.as_ref());
        match self.checked.take() {
            Some(checked) => {
                let asking = &self.asking;
                Poll::Ready(asking.verdict(gate, checked, outcome, denied, caller, parts))
            }
            // Polled after completion, where a future may return anything.
            None => Poll::Pending,
        }
    }
}

/// Returns the decision about the denied caller, unless an anonymous one is allowed.
pub(super) fn preferred(denied: Option<AsyncDecision>, last: AsyncDecision) -> AsyncDecision {
    match denied {
        Some(denied) if last.decision != Decision::Allow => denied,
        _ => last,
    }
}
