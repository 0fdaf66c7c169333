//! The background task, which reads the files again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::super::own_thread;
use super::follow::{Followed, Which};

/// Timers stop while a machine is suspended, so the clocks are read in between.
const NAP: Duration = Duration::from_secs(1);

/// The longest wait between two attempts to read a file that was not read yet.
const SEARCH: Duration = Duration::from_millis(250);

/// Reads the files until the last handle of the source is dropped. With `read_first`, begins
/// immediately.
pub(super) fn spawn(followed: &Arc<Followed>, runtime: &Handle, read_first: bool) {
    let mut was_ready = followed.is_ready();
    followed.metrics.record_ready(was_ready);
    let every = followed.every;
    let mut jumps = followed.clock.jumps();
    let followed = Ended(Arc::downgrade(followed));
    runtime.spawn(async move {
        // Until the next check of all files.
        let mut left = if read_first { Duration::ZERO } else { every };
        loop {
            if !left.is_zero() {
                let longest = if was_ready { NAP } else { SEARCH };
                let began = Instant::now();
                let jumped = tokio::time::timeout(left.min(longest), jumps.changed()).await;
                let jumped = jumped.is_ok_and(|changed| changed.is_ok());
                let Some(followed) = followed.0.upgrade() else {
                    return;
                };
                // Also notices a jump.
                let age = followed.age_of_looks();
                left = if jumped || age >= every {
                    Duration::ZERO
                } else {
                    left.saturating_sub(began.elapsed())
                };
            }
            let which = match left.is_zero() {
                true => Which::All,
                false if was_ready => continue,
                false => Which::Unread,
            };
            let Some(followed) = followed.0.upgrade() else {
                return;
            };
            if which == Which::All {
                jumps.mark_unchanged();
                left = every;
            }
            // A disk may not respond.
            let looking = followed.clone();
            if own_thread::run(move || looking.look(which)).await.is_none() {
                tracing::error!("reading the bundle files panicked; their last good bundles stay");
            }
            if !was_ready && followed.is_ready() {
                was_ready = true;
                followed.metrics.record_ready(true);
            }
        }
    });
}

/// Closes the source when its task ends for any reason.
struct Ended(Weak<Followed>);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(followed) = self.0.upgrade() {
            followed.ended();
        }
    }
}
