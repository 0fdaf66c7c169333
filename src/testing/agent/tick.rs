//! Notifications that wake waiting tasks in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Notifies waiting tasks that something has changed.
///
/// Tasks are woken in the order in which they began to wait. tokio's `watch` wakes them in random order,
/// so a test with many calls would not be repeatable, even with a seed.
#[derive(Default)]
pub(super) struct Tick {
    shared: Arc<Count>,
}

#[derive(Default)]
struct Count {
    count: AtomicU64,
    notify: Notify,
}

impl Tick {
    pub(super) fn tick(&self) {
        self.shared.count.fetch_add(1, Ordering::AcqRel);
        self.shared.notify.notify_waiters();
    }

    pub(super) fn ticks(&self) -> Ticks {
        let mut ticks = Ticks {
            shared: self.shared.clone(),
            seen: 0,
        };
        ticks.mark_seen();
        ticks
    }
}

/// One listener.
pub(super) struct Ticks {
    shared: Arc<Count>,
    seen: u64,
}

impl Ticks {
    /// Marks all changes so far as seen.
    pub(super) fn mark_seen(&mut self) {
        self.seen = self.shared.count.load(Ordering::Acquire);
    }

    /// Waits for a change that was not seen yet.
    pub(super) async fn changed(&mut self) {
        loop {
            // Created before the count is read, so that no tick is missed in between.
            let notified = self.shared.notify.notified();
            let now = self.shared.count.load(Ordering::Acquire);
            if now != self.seen {
                self.seen = now;
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn waiting_tasks_are_woken_in_order() {
        let tick = Tick::default();
        let woken: Arc<Mutex<Vec<u8>>> = Arc::default();
        let waiting: Vec<_> = (0..32)
            .map(|number| {
                let (mut ticks, woken) = (tick.ticks(), woken.clone());
                tokio::spawn(async move {
                    ticks.changed().await;
                    woken.lock().unwrap().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        tick.tick();
        for waiter in waiting {
            waiter.await.unwrap();
        }
        assert!(woken.lock().unwrap().is_sorted());
    }

    #[tokio::test]
    async fn tick_before_the_wait_is_seen() {
        let tick = Tick::default();
        let mut ticks = tick.ticks();
        tick.tick();
        ticks.changed().await;
        let waited = tokio::time::timeout(std::time::Duration::from_millis(1), ticks.changed());
        assert!(waited.await.is_err());
    }
}
