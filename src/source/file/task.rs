//! The background task, which reads the files again.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::super::on_drop::OnDrop;
use super::super::own_thread;
use super::super::polling::{NAP, NextCheck};
use super::follow::Followed;

/// The longest wait between two attempts to read a file that was not read yet.
const SEARCH: Duration = Duration::from_millis(250);

/// Reads the files until the last handle of the source is dropped. With `read_first`, begins
/// immediately.
pub(super) fn spawn(followed: &Arc<Followed>, runtime: &Handle, read_first: bool) {
    let mut was_ready = followed.is_ready();
    followed.metrics.record_ready(was_ready);
    let every = followed.every;
    let first = if read_first { Duration::ZERO } else { every };
    // The next check of all files.
    let mut next = NextCheck::new(&followed.clock, every, first);
    let followed = Arc::downgrade(followed);
    let ended = followed.clone();
    // For any reason.
    let ended = OnDrop(move || {
        if let Some(followed) = ended.upgrade() {
            followed.revision.end();
            followed.metrics.record_ready(false);
        }
    });
    runtime.spawn(async move {
        let _ended = ended;
        loop {
            next.nap(if was_ready { NAP } else { SEARCH }).await;
            let Some(followed) = followed.upgrade() else {
                return;
            };
            // Also notices a jump.
            let all = next.is_due(followed.age_of_looks());
            if all {
                next.restart();
            } else if was_ready {
                continue;
            }
            // A disk may not respond.
            let looking = followed.clone();
            if own_thread::run(move || looking.look(all)).await.is_none() {
                tracing::error!("reading the bundle files panicked; their last good bundles stay");
            }
            if !was_ready && followed.is_ready() {
                was_ready = true;
                followed.metrics.record_ready(true);
            }
        }
    });
}
