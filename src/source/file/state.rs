//! What an operator wants to know of the files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::identity::TrustDomain;

/// The state of a [`FileBundles`](super::FileBundles) at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBundlesState {
    pub(super) revision: u64,
    pub(super) following: bool,
    pub(super) overdue: bool,
    pub(super) files: Vec<FileState>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileState {
    pub(super) path: PathBuf,
    pub(super) trust_domains: Vec<TrustDomain>,
    pub(super) last_look: Duration,
    pub(super) last_change: Duration,
    pub(super) last_error: Option<Box<str>>,
}

impl FileBundlesState {
    /// Counts the changes in what validation answers.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether somebody looks for changes still: the runtime that the source was opened on.
    pub fn is_following(&self) -> bool {
        self.following
    }

    /// Returns whether a file was last looked at too long ago: twice the
    /// [`poll_interval`](super::FileBundlesBuilder::poll_interval) and 2 s, so 12 s by default. The
    /// age is taken on the monotonic clock and on the wall clock, whichever shows more.
    ///
    /// The usual causes are a runtime that nobody drives and a disk that does not answer.
    pub fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// The files, as they were named.
    pub fn files(&self) -> &[FileState] {
        &self.files
    }

    /// Whether all is as it should be: the files are followed, no look at them is
    /// [overdue](Self::is_overdue), and each could be read when last looked at.
    pub fn is_healthy(&self) -> bool {
        self.following && !self.overdue && self.files.iter().all(|file| file.last_error.is_none())
    }
}

impl FileState {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose bundles come from it.
    pub fn trust_domains(&self) -> &[TrustDomain] {
        &self.trust_domains
    }

    /// Returns the time since it was last looked at, on the monotonic or the wall clock, whichever
    /// shows more.
    pub fn last_look(&self) -> Duration {
        self.last_look
    }

    /// How long ago its bundles last changed.
    pub fn last_change(&self) -> Duration {
        self.last_change
    }

    /// What was wrong with it when it was last looked at; its last good bundles stay.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}
