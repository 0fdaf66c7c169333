//! The revision of a source's bundles, and the tasks that wait for another one.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::watch;

use crate::bundle::BundlesUnavailable;

/// Rises with each change, after the change is visible.
#[derive(Default)]
pub(crate) struct Revision {
    // Zero before the first bundles.
    current: AtomicU64,
    ended: AtomicBool,
    watchers: watch::Sender<u64>,
}

/// Sent to the watchers when the source has ended.
const ENDED: u64 = u64::MAX;

impl Revision {
    pub(crate) fn get(&self) -> Result<u64, BundlesUnavailable> {
        match self.last() {
            _ if self.has_ended() => Err(BundlesUnavailable::Closed),
            0 => Err(BundlesUnavailable::NotReady),
            revision => Ok(revision),
        }
    }

    /// The number of changes, also if the source has ended.
    pub(crate) fn last(&self) -> u64 {
        self.current.load(Ordering::Acquire)
    }

    /// Raises it. [`notify`](Self::notify) the watchers when everything has changed.
    pub(crate) fn raise(&self) -> u64 {
        self.current.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(crate) fn notify(&self, revision: u64) {
        self.watchers.send_replace(revision);
    }

    /// The source has ended: its bundles would become stale.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.notify(ENDED);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Waits until it is not `seen`, or the source has ended or is dropped.
    pub(crate) fn changed_since(&self, seen: u64) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut watcher = self.watchers.subscribe();
        Box::pin(async move {
            let _ = watcher.wait_for(|revision| *revision != seen).await;
        })
    }

    /// Waits until `done` or the end of the source; `done` is called after each change.
    pub(crate) async fn until(&self, done: impl Fn() -> bool) {
        let mut watcher = self.watchers.subscribe();
        let _ = watcher.wait_for(|_| self.has_ended() || done()).await;
    }
}
