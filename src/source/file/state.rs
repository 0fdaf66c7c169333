//! The state of the files, for operators.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::identity::TrustDomain;

/// The state of a [`FileBundles`](super::FileBundles) at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBundlesState {
    pub(super) revision: u64,
    pub(super) following: bool,
    pub(super) ready: bool,
    pub(super) overdue: bool,
    pub(super) files: Vec<FileState>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileState {
    pub(super) path: PathBuf,
    pub(super) is_read: bool,
    pub(super) trust_domains: Vec<FileTrustDomainState>,
    pub(super) last_look: Duration,
    pub(super) last_change: Duration,
    pub(super) last_error: Option<Box<str>>,
}

/// A trust domain in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTrustDomainState {
    pub(super) trust_domain: TrustDomain,
    pub(super) keys: usize,
    pub(super) ignored_keys: usize,
    pub(super) last_error: Option<Box<str>>,
}

impl FileBundlesState {
    /// Returns how often the bundles changed; zero before a file was read.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Returns whether the files are still checked for changes: until the runtime that the source was
    /// created on ends.
    pub fn is_following(&self) -> bool {
        self.following
    }

    /// Returns whether the last check of a file is too long ago: more than twice the
    /// [`poll_interval`](super::FileBundlesBuilder::poll_interval) plus 2 s, so 12 s by default.
    /// The age is the longer of the ages on the monotonic clock and on the wall clock.
    ///
    /// The usual causes are a runtime that is not driven and a disk that does not respond.
    pub fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// Returns the files, in the order of the builder.
    pub fn files(&self) -> &[FileState] {
        &self.files
    }

    /// Returns whether every file was read at least once and the files are still followed. A file
    /// that cannot be read later keeps its last bundles, and stays ready.
    pub fn is_ready(&self) -> bool {
        self.following && self.ready
    }

    /// Returns whether the source is healthy: the files are followed, no check is
    /// [overdue](Self::is_overdue), each file could be read at the last check, and no trust domain
    /// has only unusable keys.
    pub fn is_healthy(&self) -> bool {
        self.is_ready() && !self.overdue && self.files.iter().all(|file| file.last_error.is_none())
    }
}

impl FileState {
    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether it was read at least once.
    pub fn is_read(&self) -> bool {
        self.is_read
    }

    /// Returns its trust domains, sorted by name, including those whose entry cannot be read. Empty
    /// before it was read.
    pub fn trust_domains(&self) -> &[FileTrustDomainState] {
        &self.trust_domains
    }

    /// Returns the time since it was last checked: the longer of the times on the monotonic clock
    /// and on the wall clock.
    pub fn last_look(&self) -> Duration {
        self.last_look
    }

    /// Returns the time since its bundles last changed; before it was read, since the source was
    /// created.
    pub fn last_change(&self) -> Duration {
        self.last_change
    }

    /// Returns the error of the last check. A file that cannot be read keeps its last good bundles.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}

impl FileTrustDomainState {
    /// Returns the trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Returns the number of keys that tokens are verified with.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// Returns the number of elements of its JWK Set that are not used as keys; at most 256.
    pub fn ignored_keys(&self) -> usize {
        self.ignored_keys
    }

    /// Returns why its entry could not be read, or why no key of it is usable. Keys
    /// for other SVIDs (`use` is `x509-svid` or `wit-svid`) and an empty set are not errors.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}
