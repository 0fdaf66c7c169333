//! Where callers stop: for a count of what is left behind, and at the end.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Held,
    Over,
}

pub(crate) struct Gate {
    way: watch::Sender<Way>,
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
            way: watch::Sender::new(Way::Held),
            inside: AtomicUsize::new(0),
        }
    }

    /// In, as soon as it is open; `None` when all is over.
    pub(crate) async fn enter(&self) -> Option<Inside<'_>> {
        let mut way = self.way.subscribe();
        loop {
            // Counted before the look, so that nobody slips through behind a hold.
            self.inside.fetch_add(1, Ordering::SeqCst);
            let inside = Inside(&self.inside);
            match *way.borrow_and_update() {
                Way::Open => return Some(inside),
                Way::Over => return None,
                Way::Held => drop(inside),
            }
            let _ = way.changed().await;
        }
    }

    /// Sleeps; ends early when all is over.
    pub(crate) async fn rest(&self, time: std::time::Duration) {
        let mut way = self.way.subscribe();
        let over = way.wait_for(|way| *way == Way::Over);
        let _ = tokio::time::timeout(time, over).await;
    }

    pub(crate) fn open(&self) {
        self.way.send_replace(Way::Open);
    }

    pub(crate) fn hold(&self) {
        self.way.send_replace(Way::Held);
    }

    pub(crate) fn close(&self) {
        self.way.send_replace(Way::Over);
    }

    pub(crate) fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }
}
