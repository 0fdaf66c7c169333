use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::header::HeaderName;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::config::insert;
use super::deadline::Deadline;
use super::request::{IncomingResponse, OutgoingRequest, rejects_token};
use super::{BoxError, no_room};
use crate::token::SvidRequest;
use crate::token::{Issue, Issued, SvidCache, TokenError, Waiter};

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
        issued: Option<(Issued, Option<u64>)>,
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
    pub(super) fn passed(response: S::Future) -> Self {
        Self {
            state: State::Sent { response },
            issued: None,
        }
    }

    pub(super) fn sent(response: S::Future, issued: Issued, place: Option<u64>) -> Self {
        Self {
            state: State::Sent { response },
            issued: Some((issued, place)),
        }
    }

    pub(super) fn waiting(waiter: Waiter, held: Held<S, R>) -> Self {
        Self {
            state: State::Waiting {
                token: wait(waiter, &held),
                held: Some(Box::new(held)),
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

fn wait<S, R>(waiter: Waiter, held: &Held<S, R>) -> WaitForToken {
    let waiter = match held.deadline {
        Some(deadline) => waiter.within(deadline.left(&held.cache)),
        None => waiter,
    };
    Box::pin(Issue::Wait(waiter).settle())
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
                    match held.send(issued)? {
                        Sent::Off(response, issued, place) => {
                            *this.issued = Some((issued, place));
                            State::Sent { response }
                        }
                        Sent::Waits(waiter, held) => State::Waiting {
                            token: wait(waiter, &held),
                            held: Some(held),
                        },
                    }
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

enum Sent<S: Service<R>, R> {
    Off(S::Future, Issued, Option<u64>),
    Waits(Waiter, Box<Held<S, R>>),
}

impl<S, R> Held<S, R>
where
    S: Service<R> + Clone,
    R: OutgoingRequest,
{
    /// Sends the request through the ready service. If it became ready long after the token
    /// arrived, an expired token is replaced.
    fn send(mut self: Box<Self>, issued: Issued) -> Result<Sent<S, R>, TokenError> {
        let issued = if issued.is_usable() {
            issued
        } else {
            match self.cache.issue(&self.asked)? {
                Issue::Ready(issued) => issued,
                Issue::Wait(waiter) => {
                    // A ready service must not be held while waiting for a token.
                    let fresh = self.inner.clone();
                    drop(mem::replace(&mut self.inner, fresh));
                    return Ok(Sent::Waits(waiter, self));
                }
            }
        };
        let headers = self.request.headers_to_change();
        if let Some(deadline) = self.deadline {
            deadline.set_left(headers, &self.cache)?;
        }
        if !insert(headers, &self.header, issued.header()) {
            return Err(no_room());
        }
        let Self {
            mut inner, request, ..
        } = *self;
        let place = request.place();
        Ok(Sent::Off(inner.call(request), issued, place))
    }
}

impl<S: Service<R>, R> std::fmt::Debug for ResponseFuture<S, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
