use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::header::HeaderName;
use pin_project_lite::pin_project;
use tower::util::Oneshot;
use tower_service::Service;

use super::config::insert;
use super::request::{IncomingResponse, OutgoingRequest, refuses};
use super::{BoxError, no_room};
use crate::svid_cache::{Issue, Issued, TokenError, Waiter};

type WaitForToken = Pin<Box<dyn Future<Output = Result<Issued, TokenError>> + Send>>;

pin_project! {
    /// The response to come of [`AddJwtSvid`](super::AddJwtSvid).
    pub struct ResponseFuture<S, R>
    where
        S: Service<R>,
    {
        #[pin]
        state: State<S, R>,
        // What went out, to be told of where it is refused.
        issued: Option<Issued>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, R>
    where
        S: Service<R>,
    {
        /// The token was there.
        Sent { #[pin] response: S::Future },
        /// Somebody fetches it.
        Waiting { token: WaitForToken, next: Option<(S, R)>, name: HeaderName },
        /// It came, and goes out as soon as the service is ready.
        Late { #[pin] response: Oneshot<S, R> },
        Failed { error: Option<TokenError> },
    }
}

impl<S: Service<R>, R> ResponseFuture<S, R> {
    pub(super) fn sent(response: S::Future, issued: Option<Issued>) -> Self {
        Self {
            state: State::Sent { response },
            issued,
        }
    }

    pub(super) fn waiting(waiter: Waiter, inner: S, request: R, name: HeaderName) -> Self {
        let token = Box::pin(Issue::Wait(waiter).settle());
        Self {
            state: State::Waiting {
                token,
                next: Some((inner, request)),
                name,
            },
            issued: None,
        }
    }

    pub(super) fn failed(error: TokenError) -> Self {
        Self {
            state: State::Failed { error: Some(error) },
            issued: None,
        }
    }
}

impl<S, R> Future for ResponseFuture<S, R>
where
    S: Service<R>,
    S::Error: Into<BoxError>,
    S::Response: IncomingResponse,
    R: OutgoingRequest,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let response = match this.state.as_mut().project() {
                StateProj::Sent { response } => ready!(response.poll(cx)),
                StateProj::Late { response } => ready!(response.poll(cx)),
                StateProj::Waiting { token, next, name } => {
                    let issued = ready!(token.as_mut().poll(cx))?;
                    let Some((inner, mut request)) = next.take() else {
                        return Poll::Pending;
                    };
                    if !insert(request.headers_to_change(), name, issued.header()) {
                        return Poll::Ready(Err(no_room().into()));
                    }
                    *this.issued = Some(issued);
                    this.state.set(State::Late {
                        response: Oneshot::new(inner, request),
                    });
                    continue;
                }
                StateProj::Failed { error } => match error.take() {
                    Some(error) => return Poll::Ready(Err(error.into())),
                    None => return Poll::Pending,
                },
            };
            let response = response.map_err(Into::into)?;
            if let Some(issued) = this.issued.take()
                && refuses(&response)
            {
                issued.refused();
            }
            return Poll::Ready(Ok(response));
        }
    }
}

impl<S: Service<R>, R> std::fmt::Debug for ResponseFuture<S, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
