//! The state of the files, for operators.

use std::path::PathBuf;
use std::time::Duration;

use crate::identity::TrustDomain;

/// The state of a [`FileBundles`](super::FileBundles) at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileBundlesState {
    /// How often the bundles changed; zero before a file was read.
    pub revision: u64,
    /// Whether the files are still checked for changes: until the runtime that the source was
    /// created on ends.
    pub following: bool,
    /// Whether the last check of a file is too long ago: more than twice the
    /// [`poll_interval`](super::FileBundlesBuilder::poll_interval) plus 2 s, so 12 s by default.
    /// The age is the longer of the ages on the monotonic clock and on the wall clock.
    ///
    /// The usual causes are a runtime that is not driven and a disk that does not respond.
    pub overdue: bool,
    /// The files, in the order of the builder.
    pub files: Vec<FileState>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileState {
    /// The path.
    pub path: PathBuf,
    /// Whether it was read at least once.
    pub read: bool,
    /// The trust domains, sorted by name, including those whose entry cannot be read. Empty before
    /// the file was read.
    pub trust_domains: Vec<FileTrustDomainState>,
    /// The time since the file was last checked: the longer of the times on the monotonic clock and
    /// on the wall clock.
    pub last_look: Duration,
    /// The time since its bundles last changed; before it was read, since the source was created.
    pub last_change: Duration,
    /// The error of the last check. A file that cannot be read keeps its last good bundles.
    pub last_error: Option<Box<str>>,
}

/// A trust domain in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileTrustDomainState {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The number of keys that tokens are verified with.
    pub keys: usize,
    /// The number of elements of its JWK Set that are not used as keys; at most 256.
    pub ignored_keys: usize,
    /// Why its entry could not be read, or why no key of it is usable. Keys for other SVIDs (`use`
    /// is `x509-svid` or `wit-svid`) and an empty set are not errors.
    pub last_error: Option<Box<str>>,
}

impl FileBundlesState {
    /// Returns whether every file was read at least once and the files are still followed. A file
    /// that cannot be read later keeps its last bundles, and stays ready.
    pub fn is_ready(&self) -> bool {
        self.following && self.files.iter().all(|file| file.read)
    }

    /// Returns whether the source is healthy: the files are followed, no check is
    /// [overdue](Self::overdue), each file could be read at the last check, and no trust domain
    /// has only unusable keys.
    pub fn is_healthy(&self) -> bool {
        self.is_ready() && !self.overdue && self.files.iter().all(|file| file.last_error.is_none())
    }
}
