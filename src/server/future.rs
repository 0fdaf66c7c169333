//! The future of the response: that of the inner service, or a rejection.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::Response;
use http::request::Parts;
use http_body::Body;
use pin_project_lite::pin_project;
use tracing::Span;

use super::drain::{self, Drain, DrainLimits};
use super::late::{AnyDrain, Late};

pin_project! {
    /// The future of [`ValidateJwtSvid`](super::ValidateJwtSvid) and
    /// [`AllowCallers`](super::AllowCallers).
    pub struct ResponseFuture<F, ReqBody, ResBody> {
        #[pin]
        kind: Kind<F, ReqBody, ResBody>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<F, ReqBody, ResBody> {
        Inner { #[pin] future: F, span: Span, late: Option<Arc<dyn Late<ResBody>>> },
        Rejected { response: Option<Response<ResBody>>, drain: Option<Pin<Box<Drain<ReqBody>>>> },
        // A rejection made by a handler, its body kept for it.
        Late { response: Option<Response<ResBody>>, drain: AnyDrain },
    }
}

impl<F, ReqBody, ResBody> ResponseFuture<F, ReqBody, ResBody> {
    pub(crate) fn inner(future: F, span: Span, late: Option<Arc<dyn Late<ResBody>>>) -> Self {
        Self {
            kind: Kind::Inner { future, span, late },
        }
    }

    /// Returns this response after the body was read, within the limits. It holds no permit of the
    /// inner service while it reads.
    pub(crate) fn rejected<S: Clone>(
        mut response: Response<ResBody>,
        limits: &DrainLimits,
        parts: &Parts,
        body: ReqBody,
        inner: &mut S,
    ) -> Self
    where
        ReqBody: Body,
    {
        let drain = limits.begin(parts, body, response.headers_mut());
        if drain.is_some() {
            release(inner);
        }
        let response = Some(response);
        Self {
            kind: Kind::Rejected { response, drain },
        }
    }
}

/// Releases what a ready service may hold, such as a permit of `ConcurrencyLimit`.
pub(crate) fn release<S: Clone>(service: &mut S) {
    let fresh = service.clone();
    *service = fresh;
}

impl<F, ReqBody, ResBody, E> Future for ResponseFuture<F, ReqBody, ResBody>
where
    F: Future<Output = Result<Response<ResBody>, E>>,
    ReqBody: Body,
{
    type Output = Result<Response<ResBody>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut kind = self.project().kind;
        loop {
            let late = match kind.as_mut().project() {
                KindProj::Inner { future, span, late } => {
                    let response = ready!(span.in_scope(|| future.poll(cx)))?;
                    match late.take() {
                        None => return Poll::Ready(Ok(response)),
                        Some(late) => match late.answer(response) {
                            (response, None) => return Poll::Ready(Ok(response)),
                            (response, Some(drain)) => Kind::Late {
                                response: Some(response),
                                drain,
                            },
                        },
                    }
                }
                KindProj::Rejected { response, drain } => {
                    let is_ended = match drain {
                        Some(drain) => ready!(drain.as_mut().poll(cx)),
                        None => true,
                    };
                    *drain = None;
                    return answer(response, is_ended);
                }
                KindProj::Late { response, drain } => {
                    if response.is_none() {
                        return Poll::Pending;
                    }
                    let is_ended = ready!(drain.as_mut().poll(cx));
                    return answer(response, is_ended);
                }
            };
            kind.set(late);
        }
    }
}

impl<F, ReqBody, ResBody> fmt::Debug for ResponseFuture<F, ReqBody, ResBody> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

fn answer<B, E>(
    response: &mut Option<Response<B>>,
    is_ended: bool,
) -> Poll<Result<Response<B>, E>> {
    match response.take() {
        Some(mut response) => {
            if !is_ended {
                drain::close(response.headers_mut());
            }
            Poll::Ready(Ok(response))
        }
        // Polled after completion, where a future may return anything.
        None => Poll::Pending,
    }
}
