//! A gate that stops callers, for counts of resources and at the end.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

const HELD: u8 = 0;
const OPEN: u8 = 1;
const OVER: u8 = 2;

/// Wakes waiting callers in their order, unlike tokio's `watch`.
pub(crate) struct Gate {
    way: AtomicU8,
    turned: Notify,
    inside: AtomicUsize,
}

/// A caller that is working.
pub(crate) struct Inside<'a>(&'a AtomicUsize);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Gate {
    /// Creates a closed gate.
    pub(crate) fn new() -> Self {
        Self {
            way: AtomicU8::new(HELD),
            turned: Notify::new(),
            inside: AtomicUsize::new(0),
        }
    }

    /// Waits until the gate is open; returns `None` at the end of the run.
    pub(crate) async fn enter(&self) -> Option<Inside<'_>> {
        loop {
            let turned = self.turned.notified();
            // Counted before the check, so that no caller passes a closed gate.
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

    /// Sleeps; returns early at the end of the run.
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
