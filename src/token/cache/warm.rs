//! Tokens that are kept fresh even if no request needs them.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;

use super::context::Context;
use super::error::{TokenError, TokenErrorReason};
use super::pin::PinnedSvid;

/// The shortest time between two checks.
const AT_MOST_EVERY: Duration = Duration::from_millis(50);
/// The longest time between two checks: the wall clock may step, and the machine may be suspended.
const AT_LEAST_EVERY: Duration = Duration::from_secs(10);

/// Keeps tokens fresh until it is dropped: see
/// [`SvidCache::keep_warm`](super::SvidCache::keep_warm).
#[derive(Debug)]
#[must_use = "the tokens are kept warm only as long as this lives"]
pub struct KeepWarm {
    task: AbortHandle,
}

impl Drop for KeepWarm {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn keep(cx: &Arc<Context>, pins: Vec<PinnedSvid>) -> Result<KeepWarm, TokenError> {
    let runtime = cx.runtime().map_err(|missing| {
        TokenError::new(
            TokenErrorReason::NoRuntime,
            format!("keeping tokens warm needs a task with timers: {missing}"),
        )
    })?;
    let cx = cx.clone();
    let task = runtime.spawn(async move {
        loop {
            // Created before the check, so that no wake-up is missed.
            let nudged = cx.nudge.notified();
            if cx.is_closed() {
                return;
            }
            let next = look(&cx, &pins).clamp(AT_MOST_EVERY, AT_LEAST_EVERY);
            let _ = tokio::time::timeout(next, nudged).await;
            tokio::time::sleep(AT_MOST_EVERY).await;
        }
    });
    Ok(KeepWarm {
        task: task.abort_handle(),
    })
}

/// Starts the refreshes that are due. Returns the time until the next check.
fn look(cx: &Context, pins: &[PinnedSvid]) -> Duration {
    let now = cx.moment();
    let mut next = AT_LEAST_EVERY;
    for pin in pins {
        let entry = pin.entry();
        entry.refresh_due(now);
        next = next.min(entry.attention_in(now));
    }
    next
}
