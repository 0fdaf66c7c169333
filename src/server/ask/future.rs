//! The wait for a decision, and what follows it.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tower_service::Service;

use super::decisions::Key;
use super::{Asked, Asking, Outcome};
use crate::runtime;
use crate::server::Rejection;
use crate::server::async_policy::{AsyncDecision, DecisionFuture};
use crate::server::future::ResponseFuture;
use crate::server::gate::{Judged, Mode};
use crate::server::policy::Decision;
use crate::server::rejection::{OnReject, PolicyFailure};
use crate::verify::{Sight, VerifiedSvid};

pin_project! {
    /// The future of [`AskPolicyService`](super::AskPolicyService).
    pub struct AskPolicyFuture<S, R, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        state: State<S, R, ReqBody, S::Future, ResBody>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, R, ReqBody, F, ResBody> {
        // Boxed: requests that do not wait should not make room for it.
        Held { held: Box<Held<S, R, ReqBody>> },
        Done { #[pin] future: ResponseFuture<F, ReqBody, ResBody> },
    }
}

/// A request without a decision yet, and the service that it will go to.
struct Held<S, R, ReqBody> {
    asking: Arc<Asking<R>>,
    // Until the decision; then the service only has to become ready.
    question: Option<Question>,
    // In audit mode it is reported after the service became ready.
    rejection: Option<Rejection>,
    service: S,
    // Empty once it is on its way.
    request: Option<(Parts, ReqBody)>,
}

/// The question about one request. Dropping it cancels the policy's future and frees the place of
/// the request.
pub(super) struct Question {
    judged: Judged,
    caller: Option<VerifiedSvid>,
    future: DecisionFuture,
    key: Option<Key>,
    // The decision about the verified caller, while an anonymous one is asked about.
    denied: Option<AsyncDecision>,
    // Made once the policy waits.
    time_up: Option<Pin<Box<Sleep>>>,
    _in_flight: OwnedSemaphorePermit,
}

impl Question {
    /// Begins to ask. Returns the verdict if it is known at once.
    pub(super) fn begin<R>(
        asking: &Asking<R>,
        parts: &Parts,
        judged: Judged,
    ) -> Result<Self, Judged> {
        let caller = match &judged.verdict {
            Ok(_) if asking.is_public(parts) => return Err(judged),
            Ok(state) => state.verified().cloned(),
            Err(_) => return Err(judged),
        };
        let mut denied = None;
        let mut asked = asking.ask(caller.as_ref(), parts);
        if let Asked::Known(decision) = &asked
            && asking.asks_again(caller.as_ref(), parts, decision)
        {
            denied = Some(decision.clone());
            asked = asking.ask(None, parts);
        }
        let outcome = match asked {
            Asked::Known(decision) => Outcome::Decided(preferred(denied, decision)),
            Asked::Pending(future, key) => match asking.in_flight.clone().try_acquire_owned() {
                Ok(permit) => {
                    return Ok(Self {
                        judged,
                        caller,
                        future,
                        key,
                        denied,
                        time_up: None,
                        _in_flight: permit,
                    });
                }
                Err(_) => Outcome::Failed(PolicyFailure::TooManyInFlight, None),
            },
        };
        Err(match asking.rejection(outcome, caller.as_ref(), parts) {
            Some(rejection) => judged.denied(rejection),
            None => judged,
        })
    }

    fn poll_outcome<R>(
        &mut self,
        asking: &Asking<R>,
        parts: &Parts,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome> {
        loop {
            let decision = match self.future.as_mut().poll(cx) {
                Poll::Ready(Ok(decision)) => decision,
                Poll::Ready(Err(error)) => {
                    return failed(PolicyFailure::Failed, Some(error.detail));
                }
                Poll::Pending => break,
            };
            // Who was asked about: first the caller, then an anonymous one.
            let asked_about = match self.denied {
                Some(_) => None,
                None => self.caller.as_ref(),
            };
            asking.remember(self.key.take(), asked_about, &decision);
            if !asking.asks_again(asked_about, parts, &decision) {
                let decision = preferred(self.denied.take(), decision);
                return Poll::Ready(Outcome::Decided(decision));
            }
            match asking.ask(None, parts) {
                Asked::Known(anonymous) => {
                    let decision = preferred(Some(decision), anonymous);
                    return Poll::Ready(Outcome::Decided(decision));
                }
                Asked::Pending(future, key) => {
                    self.denied = Some(decision);
                    self.future = future;
                    self.key = key;
                }
            }
        }
        let time_up = match &mut self.time_up {
            Some(time_up) => time_up,
            // Without timers nothing would end the wait.
            None if runtime::with_timers().is_err() => {
                let detail = "the tokio runtime has no timers";
                return failed(PolicyFailure::Failed, Some(detail.into()));
            }
            None => self
                .time_up
                .insert(Box::pin(tokio::time::sleep(asking.ask.timeout))),
        };
        ready!(time_up.as_mut().poll(cx));
        failed(PolicyFailure::TimedOut, None)
    }
}

fn failed(why: PolicyFailure, detail: Option<Cow<'static, str>>) -> Poll<Outcome> {
    Poll::Ready(Outcome::Failed(why, detail))
}

/// The decision about a denied caller stands, unless an anonymous one is allowed.
fn preferred(denied: Option<AsyncDecision>, last: AsyncDecision) -> AsyncDecision {
    match denied {
        Some(denied) if last.decision != Decision::Allow => denied,
        _ => last,
    }
}

impl<S, R, ReqBody, ResBody> AskPolicyFuture<S, R, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
{
    pub(super) fn done(future: ResponseFuture<S::Future, ReqBody, ResBody>) -> Self {
        Self {
            state: State::Done { future },
        }
    }

    pub(super) fn waiting(
        asking: Arc<Asking<R>>,
        question: Question,
        service: S,
        parts: Parts,
        body: ReqBody,
    ) -> Self {
        let held = Box::new(Held {
            asking,
            question: Some(question),
            rejection: None,
            service,
            request: Some((parts, body)),
        });
        Self {
            state: State::Held { held },
        }
    }
}

impl<S, R, ReqBody, ResBody> Future for AskPolicyFuture<S, R, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: OnReject<ResBody>,
    ReqBody: Body + 'static,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let future = match state.as_mut().project() {
                StateProj::Done { future } => return future.poll(cx),
                StateProj::Held { held } => ready!(held.poll_future(cx))?,
            };
            state.set(State::Done { future });
        }
    }
}

impl<S, R, ReqBody> Held<S, R, ReqBody> {
    /// Returns the response on its way: a rejection, or that of the inner service.
    #[allow(
        clippy::type_complexity,
        reason = "an alias would have to repeat the bounds"
    )]
    fn poll_future<ResBody>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseFuture<S::Future, ReqBody, ResBody>, S::Error>>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
        R: OnReject<ResBody>,
        ReqBody: Body + 'static,
    {
        let shared = &self.asking.shared;
        let gate = &shared.gate;
        if let (Some(question), Some((parts, _))) = (&mut self.question, &self.request) {
            let outcome = ready!(question.poll_outcome(&self.asking, parts, cx));
            let caller = question.caller.as_ref();
            self.rejection = self.asking.rejection(outcome, caller, parts);
            // Frees the place before the wait for the inner service.
            let question = self.question.take();
            if gate.mode != Mode::Audit
                && let (Some(question), Some(rejection)) = (question, self.rejection.take())
                && let Some((parts, body)) = self.request.take()
            {
                let judged = question.judged.denied(rejection);
                let future = shared.act(&mut self.service, parts, body, judged);
                return Poll::Ready(Ok(future));
            }
        }
        ready!(self.service.poll_ready(cx))?;
        match self.request.take() {
            Some((mut parts, body)) => {
                // Both waits can be long: the token may have expired, its key may be revoked, and
                // the synchronous policy may have been replaced.
                let judged = gate.judge(&mut parts, Sight::Again);
                let judged = match self.rejection.take() {
                    Some(rejection) if judged.verdict.is_ok() => judged.denied(rejection),
                    _ => judged,
                };
                let future = shared.act(&mut self.service, parts, body, judged);
                Poll::Ready(Ok(future))
            }
            // Polled after completion, where a future may return anything.
            None => Poll::Pending,
        }
    }
}
