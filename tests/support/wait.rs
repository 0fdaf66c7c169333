//! Waits with a deadline.

use std::future::Future;
use std::time::Duration;

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Awaits this for 20 s at most.
pub async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within 20 s"))
}

/// Polls until this is true, for 20 s at most.
pub async fn eventually(what: &str, so: impl Fn() -> bool) {
    eventually_async(what, async || so()).await;
}

/// Polls until this is true, for 20 s at most.
pub async fn eventually_async(what: &str, so: impl AsyncFn() -> bool) {
    soon(what, async {
        while !so().await {
            tokio::time::sleep(millis(2)).await;
        }
    })
    .await;
}

/// Lets all tasks run that can run without time passing.
pub async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}
