//! Requests that wait before they go to the inner service: for a key, or for the decision of a policy.
//!
//! While a request waits, it holds no permit of the inner service. This wait and the one for the
//! inner service can both be long, so the request is checked again right before the call: the token
//! may have expired, its key may be revoked, and the synchronous policy may have been replaced.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::future::{ResponseFuture, release};
use super::gate::{Judged, Mode};
use super::layer::Shared;
use super::on_reject::OnReject;
use super::rejection::Rejection;
use crate::verify::Sight;

/// What a request waits for. Dropping it frees what it holds.
pub(crate) trait Wait<R> {
    /// Returns the verdict once the wait is over.
    fn poll_verdict(
        &mut self,
        shared: &Shared<R>,
        parts: &mut Parts,
        cx: &mut Context<'_>,
    ) -> Poll<Judged>;

    /// Whether `audit` reports a rejection by this wait if the last check allows the request.
    const IS_FINAL: bool;
}

pin_project! {
    /// The future of a service that can wait before it calls the inner one.
    pub struct HeldFuture<W, S, R, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        state: State<W, S, R, ReqBody, S::Future, ResBody>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<W, S, R, ReqBody, F, ResBody> {
        // Boxed: requests that do not wait should not make room for it.
        Held { held: Box<Held<W, S, R, ReqBody>> },
        Done { #[pin] future: ResponseFuture<F, ReqBody, ResBody> },
    }
}

/// A request that waits, and the service that it will go to.
struct Held<W, S, R, ReqBody> {
    // Until the verdict; then the service only has to become ready.
    wait: Option<W>,
    // For `audit`, which reports it after the service became ready.
    rejection: Option<Rejection>,
    service: S,
    shared: Arc<Shared<R>>,
    // Empty once it is on its way.
    request: Option<(Parts, ReqBody)>,
}

impl<R> Shared<R> {
    /// Lets the request wait, or acts on its verdict if that is known.
    pub(crate) fn hold<W, S, ReqBody, ResBody>(
        self: &Arc<Self>,
        inner: &mut S,
        parts: Parts,
        body: ReqBody,
        wait: Result<W, Judged>,
    ) -> HeldFuture<W, S, R, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
        R: OnReject<ResBody>,
        ReqBody: Body + 'static,
    {
        let state = match wait {
            Ok(wait) => {
                // Otherwise requests that may be rejected hold what others need.
                release(inner);
                State::Held {
                    held: Box::new(Held {
                        wait: Some(wait),
                        rejection: None,
                        service: inner.clone(),
                        shared: self.clone(),
                        request: Some((parts, body)),
                    }),
                }
            }
            Err(judged) => State::Done {
                future: self.act(inner, parts, body, judged),
            },
        };
        HeldFuture { state }
    }
}

impl<W, S, R, ReqBody, ResBody> Future for HeldFuture<W, S, R, ReqBody, ResBody>
where
    W: Wait<R>,
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

impl<W: Wait<R>, S, R, ReqBody> Held<W, S, R, ReqBody> {
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
        let mut verdict = None;
        if let (Some(wait), Some((parts, _))) = (&mut self.wait, &mut self.request) {
            let judged = ready!(wait.poll_verdict(shared, parts, cx));
            // Frees its place before the wait for the inner service.
            self.wait = None;
            if judged.verdict.is_err() && shared.gate.mode != Mode::Audit {
                verdict = Some(judged);
            } else if W::IS_FINAL {
                self.rejection = judged.verdict.err();
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
