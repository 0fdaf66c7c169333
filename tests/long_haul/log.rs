//! What happened, in order: the tail of it for whoever reads a failure, a hash of all of it for
//! whoever repeats one.
//!
//! Lines of the same millisecond are hashed as if in any order: tokio wakes those who wait for one
//! change in an order of chance. (What follows from it must be the same all the same.)

use std::collections::VecDeque;
use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

const TAIL: usize = 200;
const MOST_BROKEN: usize = 10;

pub(crate) struct Log {
    began: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    hash: u64,
    lines: u64,
    line: String,
    tail: VecDeque<String>,
    broken: Vec<String>,
    // All of it, for a comparison of two runs by eye.
    file: Option<std::fs::File>,
}

/// How much was logged, and what it hashes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) lines: u64,
    pub(crate) hash: u64,
}

impl Log {
    /// Appends to the file that `TOWER_SPIFFE_LOG` names, where it names one.
    pub(crate) fn new() -> Self {
        let file = std::env::var_os("TOWER_SPIFFE_LOG").map(|path| {
            std::fs::File::options()
                .create(true)
                .append(true)
                .open(path)
                .expect("TOWER_SPIFFE_LOG names a file that can be written")
        });
        Self {
            began: Instant::now(),
            inner: Mutex::new(Inner {
                hash: 0,
                lines: 0,
                line: String::new(),
                tail: VecDeque::with_capacity(TAIL),
                broken: Vec::new(),
                file,
            }),
        }
    }

    pub(crate) fn say(&self, who: impl Display, what: impl Display) {
        let at = self.began.elapsed().as_millis();
        let mut inner = self.inner();
        let Inner {
            hash,
            lines,
            line,
            tail,
            file,
            ..
        } = &mut *inner;
        // The oldest line's room is the newest one's.
        if tail.len() >= TAIL {
            *line = tail.pop_front().unwrap_or_default();
        }
        line.clear();
        let _ = write!(line, "{at:>8} ms  {who}: {what}");
        // A line says when, so a sum does.
        *hash = hash.wrapping_add(fnv1a(line));
        *lines += 1;
        if let Some(file) = file {
            let _ = writeln!(file, "{line}");
        }
        tail.push_back(std::mem::take(line));
    }

    /// An invariant does not hold. The test ends at its next step.
    pub(crate) fn broken(&self, what: impl Display) {
        let text = what.to_string();
        self.say("BROKEN", &text);
        let mut inner = self.inner();
        if inner.broken.len() < MOST_BROKEN {
            inner.broken.push(text);
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        !self.inner().broken.is_empty()
    }

    pub(crate) fn digest(&self) -> Digest {
        let inner = self.inner();
        Digest {
            lines: inner.lines,
            hash: inner.hash,
        }
    }

    /// What is broken, after the last lines of the log.
    pub(crate) fn report(&self) -> String {
        let inner = self.inner();
        let mut text = String::new();
        for line in &inner.tail {
            let _ = writeln!(text, "{line}");
        }
        for broken in &inner.broken {
            let _ = writeln!(text, "broken: {broken}");
        }
        text
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing here is hostile, and this is the same on every machine.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
