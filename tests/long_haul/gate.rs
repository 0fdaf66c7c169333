//! Where callers stop: for a count of what is left behind, and at the end.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

const HELD: u8 = 0;
const OPEN: u8 = 1;
const OVER: u8 = 2;

/// Wakes those who wait in the order in which they came, as tokio's `watch` does not.
pub(crate) struct Gate {
    way: AtomicU8,
    turned: Notify,
    inside: AtomicUsize,
}

/// Somebody is at it.
pub(crate) struct Inside<'a>(&'a AtomicUsize);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Gate {
    /// Held at first.
    pub(crate) fn new() -> Self {
        Self {
            way: AtomicU8::new(HELD),
            turned: Notify::new(),
            inside: AtomicUsize::new(0),
        }
    }

    /// In, as soon as it is open; `None` when all is over.
    pub(crate) async fn enter(&self) -> Option<Inside<'_>> {
        loop {
            let turned = self.turned.notified();
            // Counted before the look, so that nobody slips through behind a hold.
            self.inside.fetch_add(1, Ordering::SeqCst);
            let inside = Inside(&self.inside);
            match self.way.load(Ordering::SeqCst) {
                OPEN => return Some(inside),
                OVER => return None,
                _ => drop(inside),
            }
            turned.await;
        }
    }

    /// Sleeps; ends early when all is over.
    pub(crate) async fn rest(&self, time: Duration) {
        let over = async {
            loop {
                let turned = self.turned.notified();
                if self.way.load(Ordering::SeqCst) == OVER {
                    break;
                }
                turned.await;
            }
        };
        let _ = tokio::time::timeout(time, over).await;
    }

    pub(crate) fn open(&self) {
        self.turn(OPEN);
    }

    pub(crate) fn hold(&self) {
        self.turn(HELD);
    }

    pub(crate) fn close(&self) {
        self.turn(OVER);
    }

    fn turn(&self, way: u8) {
        self.way.store(way, Ordering::SeqCst);
        self.turned.notify_waiters();
    }

    pub(crate) fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }
}
