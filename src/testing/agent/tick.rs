//! A tick that is heard in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Tells whoever waits that something has changed.
///
/// Those who wait are woken in the order in which they came. tokio's `watch` wakes them in an order
/// of chance, and then no seed makes a test of many calls repeatable.
#[derive(Default)]
pub(super) struct Tick {
    shared: Arc<Count>,
}

#[derive(Default)]
struct Count {
    count: AtomicU64,
    told: Notify,
}

impl Tick {
    pub(super) fn tick(&self) {
        self.shared.count.fetch_add(1, Ordering::AcqRel);
        self.shared.told.notify_waiters();
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
    /// What has changed so far is known.
    pub(super) fn mark_seen(&mut self) {
        self.seen = self.shared.count.load(Ordering::Acquire);
    }

    /// Returns when something has changed that is not known yet.
    pub(super) async fn changed(&mut self) {
        loop {
            // Before the look, so that no tick falls between the look and the wait.
            let told = self.shared.told.notified();
            let now = self.shared.count.load(Ordering::Acquire);
            if now != self.seen {
                self.seen = now;
                return;
            }
            told.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn who_waits_is_woken_in_turn() {
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
    async fn a_tick_before_the_wait_is_heard() {
        let tick = Tick::default();
        let mut ticks = tick.ticks();
        tick.tick();
        ticks.changed().await;
        let waited = tokio::time::timeout(std::time::Duration::from_millis(1), ticks.changed());
        assert!(waited.await.is_err());
    }
}
