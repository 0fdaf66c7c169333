//! The wait, and what follows it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use super::room::{Room, Seat};
use crate::runtime;
use crate::server::Rejection;
use crate::server::future::ResponseFuture;
use crate::server::gate::{Judged, Mode};
use crate::server::layer::Shared;
use crate::server::rejection::OnReject;
use crate::verify::Sight;

/// So many changes of the bundles are looked at in a row. A source that tells of one after another, or
/// of none that there is, must not keep the thread: on it the time runs that ends the wait.
const MOST_CHANGES: usize = 16;

type Changed = Pin<Box<dyn Future<Output = ()> + Send>>;

pin_project! {
    /// The future of [`WaitForKey`](super::WaitForKey).
    pub struct WaitFuture<S, R, ReqBody, ResBody>
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
        // Boxed: what does not wait should not make room for it.
        Held { held: Box<Held<S, R, ReqBody>> },
        Done { #[pin] future: ResponseFuture<F, ReqBody, ResBody> },
    }
}

/// A request that cannot go on yet, and the service that it will go to.
struct Held<S, R, ReqBody> {
    // Until the verdict; then the service only has to become ready.
    waiting: Option<Waiting<R>>,
    service: S,
    shared: Arc<Shared<R>>,
    // Empty once it is on its way.
    request: Option<(Parts, ReqBody)>,
}

/// A verdict that is not final before the bundles changed, or the time is up.
pub(crate) struct Waiting<R> {
    shared: Arc<Shared<R>>,
    seat: Seat,
    changed: Changed,
    time_up: Pin<Box<Sleep>>,
    rejection: Rejection,
}

impl<R> Waiting<R> {
    /// Begins to wait, where waiting may help; else gives the verdict.
    pub(crate) fn begin(
        shared: &Arc<Shared<R>>,
        room: &Arc<Room>,
        parts: &mut Parts,
        judged: Judged,
    ) -> Result<Self, Judged> {
        let Some(rejection) = judged.unknown_key() else {
            return Err(judged);
        };
        // Without timers nothing would end the wait.
        let seat = runtime::with_timers()
            .ok()
            .and(rejection.trust_domain())
            .and_then(|trust_domain| room.enter(trust_domain));
        let Some(mut seat) = seat else {
            shared.gate.telemetry.key_wait("turned-away");
            return Err(judged);
        };
        let (changed, rejection) = match judge_again(shared, parts) {
            Ok(unknown) => unknown,
            Err(judged) => {
                seat.satisfied();
                return Err(judged);
            }
        };
        let time_up = Box::pin(tokio::time::sleep(room.config().max_wait));
        let shared = shared.clone();
        Ok(Self {
            shared,
            seat,
            changed,
            time_up,
            rejection,
        })
    }

    fn poll_verdict(&mut self, parts: &mut Parts, cx: &mut Context<'_>) -> Poll<Judged> {
        for _ in 0..MOST_CHANGES {
            let is_over = self.time_up.as_mut().poll(cx).is_ready();
            // Also when the time is up: whoever is asked late may find that the key has come.
            if self.changed.as_mut().poll(cx).is_ready() {
                match judge_again(&self.shared, parts) {
                    Ok((changed, rejection)) => {
                        self.changed = changed;
                        self.rejection = rejection;
                    }
                    Err(judged) => {
                        self.seat.satisfied();
                        self.shared.gate.telemetry.key_wait("judged");
                        return Poll::Ready(judged);
                    }
                }
                if !is_over {
                    continue;
                }
            }
            if !is_over {
                return Poll::Pending;
            }
            self.seat.in_vain();
            self.shared.gate.telemetry.key_wait("in-vain");
            return Poll::Ready(Judged::refused(self.rejection.clone()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Judges anew. Where that still says *unknown key*, gives what resolves at a change of the bundles
/// that this verdict has not seen; else the verdict.
fn judge_again<R>(shared: &Shared<R>, parts: &mut Parts) -> Result<(Changed, Rejection), Judged> {
    let source = shared.gate.validator.source();
    // Read before the verdict: no change can fall between the two unseen.
    let seen = source.revision();
    let judged = shared.gate.judge(parts, Sight::Again);
    let changed = judged
        .unknown_key()
        .and_then(|_| source.changed_since(seen.ok()?));
    match (judged, changed) {
        (
            Judged {
                verdict: Err(rejection),
                ..
            },
            Some(changed),
        ) => Ok((changed, rejection)),
        (judged, _) => Err(judged),
    }
}

impl<S, R, ReqBody, ResBody> WaitFuture<S, R, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
{
    pub(crate) fn done(future: ResponseFuture<S::Future, ReqBody, ResBody>) -> Self {
        Self {
            state: State::Done { future },
        }
    }

    pub(crate) fn waiting(waiting: Waiting<R>, service: S, parts: Parts, body: ReqBody) -> Self {
        let request = Some((parts, body));
        let held = Held {
            shared: waiting.shared.clone(),
            waiting: Some(waiting),
            service,
            request,
        };
        Self {
            state: State::Held {
                held: Box::new(held),
            },
        }
    }
}

impl<S, R, ReqBody, ResBody> Future for WaitFuture<S, R, ReqBody, ResBody>
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
    /// The answer on its way: a refusal, or that of the service.
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
        let mut verdict = None;
        if let (Some(waiting), Some((parts, _))) = (&mut self.waiting, &mut self.request) {
            let judged = ready!(waiting.poll_verdict(parts, cx));
            if judged.verdict.is_err() && self.shared.gate.mode != Mode::Audit {
                verdict = Some(judged);
            }
            // Frees the seat before the wait for the inner service.
            self.waiting = None;
        }
        if verdict.is_none() {
            ready!(self.service.poll_ready(cx))?;
        }
        match self.request.take() {
            Some((mut parts, body)) => {
                // Both waits can be long: the token may have expired, and its key may be gone.
                let judge = || self.shared.gate.judge(&mut parts, Sight::Again);
                let judged = verdict.unwrap_or_else(judge);
                let future = self.shared.act(&mut self.service, parts, body, judged);
                Poll::Ready(Ok(future))
            }
            // Polled after it was done, which a future may answer as it likes.
            None => Poll::Pending,
        }
    }
}
