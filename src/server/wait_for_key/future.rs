//! The wait for a key.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use tokio::time::Sleep;

use super::room::{Room, Seat};
use crate::runtime;
use crate::server::Rejection;
use crate::server::gate::Judged;
use crate::server::held::{HeldFuture, Wait};
use crate::server::layer::Shared;
use crate::verify::Sight;

/// The most changes of the bundles that one poll handles. A source that reports changes without end
/// must not block the thread, which also runs the timer.
const MOST_CHANGES: usize = 16;

type Changed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The future of [`WaitForKey`](super::WaitForKey).
pub type WaitFuture<S, R, ReqBody, ResBody> = HeldFuture<Waiting, S, R, ReqBody, ResBody>;

/// A wait for a change of the bundles, until the time is up.
pub struct Waiting {
    seat: Seat,
    changed: Changed,
    time_up: Pin<Box<Sleep>>,
    rejection: Rejection,
}

impl Waiting {
    /// Begins to wait, if waiting can help. Returns the verdict otherwise.
    pub(super) fn begin<R>(
        shared: &Shared<R>,
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
        Ok(Self {
            seat,
            changed,
            time_up,
            rejection,
        })
    }
}

impl<R> Wait<R> for Waiting {
    // The last check repeats it.
    const IS_FINAL: bool = false;

    fn poll_verdict(
        &mut self,
        shared: &Shared<R>,
        parts: &mut Parts,
        cx: &mut Context<'_>,
    ) -> Poll<Judged> {
        for _ in 0..MOST_CHANGES {
            let is_over = self.time_up.as_mut().poll(cx).is_ready();
            // Also when the time is up: the key may have come before this poll.
            if self.changed.as_mut().poll(cx).is_ready() {
                match judge_again(shared, parts) {
                    Ok((changed, rejection)) => {
                        self.changed = changed;
                        self.rejection = rejection;
                    }
                    Err(judged) => {
                        self.seat.satisfied();
                        shared.gate.telemetry.key_wait("judged");
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
            shared.gate.telemetry.key_wait("in-vain");
            return Poll::Ready(Judged::rejected(self.rejection.clone()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Checks the request again. If the key is still unknown, returns a future of the next change of the
/// bundles; otherwise the verdict.
fn judge_again<R>(shared: &Shared<R>, parts: &mut Parts) -> Result<(Changed, Rejection), Judged> {
    let source = shared.gate.validator.source();
    // Read before the check, so that no change between the two is missed.
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
