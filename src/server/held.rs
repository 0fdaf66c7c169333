//! Requests that wait before they go to the inner service: for a key, or for the decision of a policy.
//!
//! While a request waits, it holds no permit of the inner service. This wait and the one for the
//! inner service can both be long, so the request is checked again right before the call: the token
//! may have expired, its key may be revoked, and the synchronous policy may have been replaced.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::async_layer::{Wait, Waits};
use super::future::{ResponseFuture, release};
use super::gate::Mode;
use super::layer::Shared;
use super::on_reject::OnReject;
use super::rejection::Rejection;
use crate::verify::Sight;

pin_project! {
    /// The future of [`AsyncValidateJwtSvid`](super::AsyncValidateJwtSvid).
    pub struct AsyncResponseFuture<S, R, ReqBody, ResBody>
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

/// A request that waits, and the service that it will go to.
struct Held<S, R, ReqBody> {
    // Until the verdict; then the service only has to become ready.
    wait: Option<Wait>,
    waits: Waits,
    // For `audit`, which reports it after the service became ready.
    rejection: Option<Rejection>,
    service: S,
    shared: Arc<Shared<R>>,
    // Empty once it is on its way.
    request: Option<(Parts, ReqBody)>,
}

impl<S, R, ReqBody, ResBody> AsyncResponseFuture<S, R, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>> + Clone,
{
    /// Lets the request wait.
    pub(crate) fn held(
        inner: &mut S,
        shared: &Arc<Shared<R>>,
        waits: &Waits,
        request: (Parts, ReqBody),
        wait: Wait,
    ) -> Self {
        // Otherwise requests that may be rejected hold what others need.
        release(inner);
        let held = Box::new(Held {
            wait: Some(wait),
            waits: waits.clone(),
            rejection: None,
            service: inner.clone(),
            shared: shared.clone(),
            request: Some(request),
        });
        Self {
            state: State::Held { held },
        }
    }

    /// Its verdict is known.
    pub(crate) fn done(future: ResponseFuture<S::Future, ReqBody, ResBody>) -> Self {
        Self {
            state: State::Done { future },
        }
    }
}

impl<S, R, ReqBody, ResBody> Future for AsyncResponseFuture<S, R, ReqBody, ResBody>
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

impl<S: Service<Request<ReqBody>>, R, ReqBody, ResBody> fmt::Debug
    for AsyncResponseFuture<S, R, ReqBody, ResBody>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncResponseFuture")
            .finish_non_exhaustive()
    }
}

impl<S, R, ReqBody> Held<S, R, ReqBody> {
    /// Returns the future of the response: a rejection, or that of the inner service.
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
        let shared = &self.shared;
        let gate = &shared.gate;
        let mut verdict = None;
        while let (Some(wait), Some((parts, _))) = (&mut self.wait, &mut self.request) {
            let judged = match wait {
                Wait::Key(wait) => {
                    let judged = ready!(wait.poll_verdict(gate, parts, cx));
                    self.waits.ask(gate, parts, judged)
                }
                Wait::Decision(question) => Err(ready!(question.poll_verdict(gate, parts, cx))),
            };
            // Frees its place before the wait for the inner service.
            self.wait = None;
            match judged {
                Ok(next) => self.wait = Some(next),
                Err(judged) if judged.verdict.is_err() && gate.mode != Mode::Audit => {
                    verdict = Some(judged);
                }
                // The last check does not ask the policy again.
                Err(judged) if self.waits.asks() => self.rejection = judged.verdict.err(),
                Err(_) => {}
            }
        }
        if verdict.is_none() {
            ready!(self.service.poll_ready(cx))?;
        }
        let Some((mut parts, body)) = self.request.take() else {
            // Polled after completion, where a future may return anything.
            return Poll::Pending;
        };
        let judged = verdict.unwrap_or_else(|| {
            let judged = shared.gate.judge(&mut parts, Sight::Again);
            match self.rejection.take() {
                Some(rejection) if judged.verdict.is_ok() => judged.denied(rejection),
                _ => judged,
            }
        });
        Poll::Ready(Ok(shared.act(&mut self.service, parts, body, judged)))
    }
}
