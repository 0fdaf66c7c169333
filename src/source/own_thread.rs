//! Blocking work on a separate thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// Runs `work` on a new thread. Returns its result, or `None` if it panicked.
///
/// The runtime's blocking pool is not used: the application may fill it, and a revocation would wait.
/// If no thread can be started, `work` runs on the calling thread.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = oneshot::channel();
    // Shared, because a thread that cannot be started does not return its closure.
    let work = Arc::new(Mutex::new(Some(work)));
    let of_thread = work.clone();
    let started = std::thread::Builder::new()
        .name("spiffe-source".to_owned())
        .spawn(move || {
            if let Some(outcome) = do_once(&of_thread) {
                let _ = done.send(outcome);
            }
        });
    if started.is_err() {
        return do_once(&work);
    }
    wait(result).await
}

fn do_once<T>(work: &Mutex<Option<impl FnOnce() -> T>>) -> Option<T> {
    let work = work.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    catch_unwind(AssertUnwindSafe(work)).ok()
}

#[cfg(not(feature = "testing"))]
async fn wait<T>(result: oneshot::Receiver<T>) -> Option<T> {
    result.await.ok()
}

/// tokio's paused time advances as soon as every task waits, because it does not know of this thread.
/// So the task polls at first. It parks its thread between the polls: on a busy machine a spinning
/// task would keep the work from being scheduled.
#[cfg(feature = "testing")]
async fn wait<T>(mut result: oneshot::Receiver<T>) -> Option<T> {
    use crate::clock::{Clock as _, SystemClock};
    const AT_MOST: std::time::Duration = std::time::Duration::from_secs(2);
    const PAUSE: std::time::Duration = std::time::Duration::from_micros(50);
    let began = SystemClock.monotonic();
    while SystemClock.monotonic().saturating_sub(began) < AT_MOST {
        match result.try_recv() {
            Ok(outcome) => return Some(outcome),
            Err(oneshot::error::TryRecvError::Closed) => return None,
            Err(oneshot::error::TryRecvError::Empty) => {
                std::thread::park_timeout(PAUSE);
                tokio::task::yield_now().await;
            }
        }
    }
    result.await.ok()
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// The worker and the only blocking thread are busy, and paused time does not advance.
    #[test]
    fn e20_work_does_not_block_the_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (open_pool, pool) = mpsc::channel::<()>();
            let taken = tokio::task::spawn_blocking(move || pool.recv());
            let (open, gate) = mpsc::channel::<u8>();
            let began = tokio::time::Instant::now();
            let work = tokio::spawn(run(move || gate.recv()));
            let opener = tokio::spawn(async move {
                tokio::task::yield_now().await;
                open.send(7)
            });
            assert_eq!(work.await.unwrap(), Some(Ok(7)));
            opener.await.unwrap().unwrap();
            assert_eq!(began.elapsed(), std::time::Duration::ZERO);
            open_pool.send(()).unwrap();
            taken.await.unwrap().unwrap();
        });
    }

    #[tokio::test]
    async fn e20_panic_returns_none() {
        let quiet = || -> u8 { std::panic::resume_unwind(Box::new("on purpose")) };
        assert_eq!(run(quiet).await, None);
    }
}
