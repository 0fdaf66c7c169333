//! The state of a policy file, for operators.

use std::path::PathBuf;
use std::time::Duration;

use super::error::FilePolicyError;

/// The state of a [`FilePolicy`](super::FilePolicy) at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilePolicyState {
    /// The path of the file.
    pub path: PathBuf,
    /// The revision of the policy: 1 after the start, and one more for each change.
    pub revision: u64,
    /// The number of rules in use.
    pub rules: usize,
    /// Whether it is in a [dry run](super::FilePolicyBuilder::dry_run).
    pub dry_run: bool,
    /// Whether the file is still checked for changes: until the runtime that it was opened on ends.
    pub following: bool,
    /// Whether the last check of the file is too long ago: more than twice the
    /// [`poll_interval`](super::FilePolicyBuilder::poll_interval) plus 2 s, so 12 s by default.
    pub overdue: bool,
    /// The time since the file was last checked: the longer of the times on the monotonic clock and
    /// on the wall clock.
    pub last_look: Duration,
    /// The time since the policy last changed, or was opened.
    pub last_change: Duration,
    /// The error of the last check, if the file could not be read. The last good policy stays in
    /// use.
    pub last_error: Option<FilePolicyError>,
}

impl FilePolicyState {
    /// Returns whether the file is followed, no check is overdue, and the last check found no
    /// error.
    pub fn is_healthy(&self) -> bool {
        self.following && !self.overdue && self.last_error.is_none()
    }
}
