//! The state of a policy file, for operators.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::FilePolicyError;

/// The state of a [`FilePolicy`](super::FilePolicy) at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePolicyState {
    pub(super) path: PathBuf,
    pub(super) revision: u64,
    pub(super) rules: usize,
    pub(super) dry_run: bool,
    pub(super) following: bool,
    pub(super) overdue: bool,
    pub(super) last_look: Duration,
    pub(super) last_change: Duration,
    pub(super) last_error: Option<FilePolicyError>,
}

impl FilePolicyState {
    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the revision of the policy: 1 after the start, and one more for each change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Returns the number of rules in use.
    pub fn rules(&self) -> usize {
        self.rules
    }

    /// Returns whether it is in a [dry run](super::FilePolicyBuilder::dry_run).
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Returns whether the file is still checked for changes: until the runtime that it was opened on
    /// ends.
    pub fn is_following(&self) -> bool {
        self.following
    }

    /// Returns whether the last check of the file is too long ago: more than twice the
    /// [`poll_interval`](super::FilePolicyBuilder::poll_interval) plus 2 s, so 12 s by default.
    pub fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// Returns the time since the file was last checked, on the monotonic or the wall clock, the
    /// longer of the two.
    pub fn last_look(&self) -> Duration {
        self.last_look
    }

    /// Returns the time since the policy last changed, or was opened.
    pub fn last_change(&self) -> Duration {
        self.last_change
    }

    /// Returns the error of the last check, if the file could not be read. The last good policy
    /// stays in use.
    pub fn last_error(&self) -> Option<&FilePolicyError> {
        self.last_error.as_ref()
    }

    /// Returns whether the file is followed, no check is overdue, and the last check found no
    /// error.
    pub fn is_healthy(&self) -> bool {
        self.following && !self.overdue && self.last_error.is_none()
    }
}
