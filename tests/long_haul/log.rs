//! The log of a run: its last lines for failures, and a hash of all lines to compare runs.
//!
//! Lines of the same millisecond are hashed in any order, because tokio wakes tasks that wait for the
//! same change in random order. Everything else must be the same.

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
    // All lines, to compare two runs by hand.
    file: Option<std::fs::File>,
}

/// The number of lines, and their hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) lines: u64,
    pub(crate) hash: u64,
}

impl Log {
    /// Appends to the file in `TOWER_SPIFFE_LOG`, if set.
    pub(crate) fn new() -> Self {
        let file = std::env::var_os("TOWER_SPIFFE_LOG").map(|path| {
            std::fs::File::options()
                .create(true)
                .append(true)
                .open(path)
                .expect("TOWER_SPIFFE_LOG is a writable file")
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
        // Reuse the memory of the oldest line.
        if tail.len() >= TAIL {
            *line = tail.pop_front().unwrap_or_default();
        }
        line.clear();
        let _ = write!(line, "{at:>8} ms  {who}: {what}");
        // Each line has its time, so a sum of hashes keeps the order.
        *hash = hash.wrapping_add(fnv1a(line));
        *lines += 1;
        if let Some(file) = file {
            let _ = writeln!(file, "{line}");
        }
        tail.push_back(std::mem::take(line));
    }

    /// Reports a broken invariant. The test fails at its next step.
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

    /// Returns the broken invariants, after the last lines of the log.
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

/// A simple hash that is the same on every machine.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
