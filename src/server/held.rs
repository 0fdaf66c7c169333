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
        // Boxed, so that the future of requests that do not wait stays small.
        Held { held: Box<Held<S, R, ReqBody>> },
        Done { #[pin] future: ResponseFuture<F, ReqBody, ResBody> },
    }
}

/// A request that waits, and the service that it will go to.
struct Held<S, R, ReqBody> {
    // `None` after the verdict; then the service only has to become ready.
    wait: Option<Wait>,
    waits: Waits,
    // For `audit`, which reports it after the service became ready.
    rejection: Option<Rejection>,
    service: S,
    shared: Arc<Shared<R>>,
    // Empty after the request was forwarded.
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
        // Otherwise requests that may be rejected would hold permits that other requests need.
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

    /// Creates the future of a request whose verdict is known.
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
            let checked = match wait {
                Wait::Key(wait) => {
                    let checked = ready!(wait.poll_verdict(gate, parts, cx));
                    self.waits.ask(gate, parts, checked)
                }
                Wait::Decision(question) => Err(ready!(question.poll_verdict(gate, parts, cx))),
            };
            // Frees its place before the wait for the inner service.
            self.wait = None;
            match checked {
                Ok(next) => self.wait = Some(next),
                Err(checked) if checked.verdict.is_err() && gate.mode != Mode::Audit => {
                    verdict = Some(checked);
                }
                // The last check does not ask the policy again.
                Err(checked) if self.waits.asks() => self.rejection = checked.verdict.err(),
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
        let checked = verdict.unwrap_or_else(|| {
            let checked = shared.gate.check(&mut parts, Sight::Again);
            match self.rejection.take() {
                Some(rejection) if checked.verdict.is_ok() => checked.denied(rejection),
                _ => checked,
            }
        });
        Poll::Ready(Ok(shared.act(&mut self.service, parts, body, checked)))
    }
}
