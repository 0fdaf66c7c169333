use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::header::HeaderName;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::BoxError;
use super::config::insert;
use super::deadline::Deadline;
use super::request::{IncomingResponse, OutgoingRequest, rejects_token};
use crate::token::SvidRequest;
use crate::token::{Issue, Issued, SvidCache, TokenError, Waiter};

/// A sent token and its destination.
type SentToken = (Issued, Option<u64>);
type Next<S, R> = (State<S, R>, Option<SentToken>);
type WaitForToken = Pin<Box<dyn Future<Output = Result<Issued, TokenError>> + Send>>;

pin_project! {
    /// The future of [`AddJwtSvid`](super::AddJwtSvid).
    pub struct ResponseFuture<S, R>
    where
        S: Service<R>,
    {
        #[pin]
        state: State<S, R>,
        // The sent token and its destination, to report a rejection.
        issued: Option<SentToken>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, R>
    where
        S: Service<R>,
    {
        /// The request was sent.
        Sent { #[pin] response: S::Future },
        /// Its token is being fetched.
        Waiting { token: WaitForToken, held: Option<Box<Held<S, R>>> },
        /// The token is there, and the request is sent when the service is ready.
        Late { issued: Option<Issued>, held: Option<Box<Held<S, R>>> },
        Failed { error: Option<TokenError> },
    }
}

/// A waiting request, and everything needed to send it.
pub(super) struct Held<S, R> {
    pub(super) inner: S,
    pub(super) request: R,
    pub(super) header: HeaderName,
    pub(super) cache: SvidCache,
    /// The request of the token.
    pub(super) asked: SvidRequest,
    pub(super) deadline: Option<Deadline>,
}

impl<S: Service<R>, R> ResponseFuture<S, R> {
    pub(super) fn sent(response: S::Future, issued: Option<SentToken>) -> Self {
        let state = State::Sent { response };
        Self { state, issued }
    }

    pub(super) fn waiting(waiter: Waiter, held: Held<S, R>) -> Self {
        let state = State::waiting(waiter, Box::new(held));
        Self {
            state,
            issued: None,
        }
    }

    pub(super) fn failed(error: TokenError) -> Self {
        let state = State::Failed { error: Some(error) };
        Self {
            state,
            issued: None,
        }
    }
}

impl<S: Service<R>, R> State<S, R> {
    fn waiting(waiter: Waiter, held: Box<Held<S, R>>) -> Self {
        Self::Waiting {
            token: Box::pin(Deadline::limit(held.deadline, waiter, &held.cache).settle()),
            held: Some(held),
        }
    }
}

impl<S, R> Future for ResponseFuture<S, R>
where
    S: Service<R> + Clone,
    S::Error: Into<BoxError>,
    S::Response: IncomingResponse,
    R: OutgoingRequest,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Sent { response } => {
                    let response = ready!(response.poll(cx)).map_err(Into::into)?;
                    if let Some((issued, place)) = this.issued.take()
                        && rejects_token(&response, place)
                    {
                        issued.rejected();
                    }
                    return Poll::Ready(Ok(response));
                }
                StateProj::Waiting { token, held } => {
                    let issued = Some(ready!(token.as_mut().poll(cx))?);
                    State::Late {
                        issued,
                        held: held.take(),
                    }
                }
                StateProj::Late { issued, held } => {
                    let Some(waiting) = held else {
                        return Poll::Pending;
                    };
                    ready!(waiting.inner.poll_ready(cx)).map_err(Into::into)?;
                    let (Some(issued), Some(held)) = (issued.take(), held.take()) else {
                        return Poll::Pending;
                    };
                    let (next, sent) = held.send(issued)?;
                    *this.issued = sent;
                    next
                }
                StateProj::Failed { error } => match error.take() {
                    Some(error) => return Poll::Ready(Err(error.into())),
                    None => return Poll::Pending,
                },
            };
            this.state.set(next);
        }
    }
}

impl<S, R> Held<S, R>
where
    S: Service<R> + Clone,
    R: OutgoingRequest,
{
    /// Sends the request through the ready service. If it became ready long after the token
    /// arrived, an expired token is replaced.
    fn send(mut self: Box<Self>, issued: Issued) -> Result<Next<S, R>, TokenError> {
        let issued = if issued.is_usable() {
            issued
        } else {
            match self.cache.issue(&self.asked)? {
                Issue::Ready(issued) => issued,
                Issue::Wait(waiter) => {
                    // A ready service must not be held while waiting for a token.
                    let fresh = self.inner.clone();
                    drop(mem::replace(&mut self.inner, fresh));
                    return Ok((State::waiting(waiter, self), None));
                }
            }
        };
        let headers = self.request.headers_to_change();
        if let Some(deadline) = self.deadline {
            deadline.set_left(headers, &self.cache)?;
        }
        insert(headers, &self.header, &issued)?;
        let Self {
            mut inner, request, ..
        } = *self;
        let place = request.place();
        let response = inner.call(request);
        Ok((State::Sent { response }, Some((issued, place))))
    }
}

impl<S: Service<R>, R> std::fmt::Debug for ResponseFuture<S, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
