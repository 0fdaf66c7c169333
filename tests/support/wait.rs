//! Waits with a deadline.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits for this, for at most 20 s.
pub async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within 20 s"))
}

/// Polls until this is true, for at most 20 s.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    eventually_async(what, async || condition()).await;
}

/// Polls until this is true, for at most 20 s.
pub async fn eventually_async(what: &str, condition: impl AsyncFn() -> bool) {
    soon(what, async {
        while !condition().await {
            tokio::time::sleep(millis(2)).await;
        }
    })
    .await;
}

/// Sets this when it is dropped, so that threads which wait for it end if the test panics.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs all tasks that can run without the time advancing.
pub async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}
