//! Errors of bundle files.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::cause::Cause;

/// Why a [`FileBundles`](super::FileBundles) cannot be created, or a document cannot be read.
///
/// `{error}` says what failed; the cause is its [`source`](Error::source): an [`io::Error`](std::io::Error),
/// a [`JwksError`](crate::bundle::JwksError), or after a timeout the `FileBundlesError` of the last read.
/// `{error:#}` has both in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBundlesError {
    reason: FileBundlesErrorReason,
    path: Option<PathBuf>,
    text: Box<str>,
    cause: Option<Cause>,
}

/// The class of a [`FileBundlesError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileBundlesErrorReason {
    /// No file was named.
    NoFile,
    /// There is no tokio runtime with timers.
    NoRuntime,
    /// The file cannot be read.
    Io,
    /// The file is not a bundle or a map of bundles.
    Malformed,
    /// Two files are for one trust domain; bundles are never merged.
    TwoForOneTrustDomain,
    /// A file could not be read within the initial sync timeout.
    InitialSync,
    /// The runtime that the source was created on has ended.
    Closed,
}

impl FileBundlesError {
    pub(super) fn new(
        reason: FileBundlesErrorReason,
        path: Option<&Path>,
        text: impl Into<Box<str>>,
    ) -> Self {
        Self {
            reason,
            path: path.map(PathBuf::from),
            text: text.into(),
            cause: None,
        }
    }

    pub(super) fn malformed(text: impl Into<Box<str>>) -> Self {
        Self::new(FileBundlesErrorReason::Malformed, None, text)
    }

    pub(super) fn at(self, path: &Path) -> Self {
        Self {
            path: Some(path.into()),
            ..self
        }
    }

    pub(super) fn because(self, cause: impl Into<Cause>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..self
        }
    }

    /// Returns the class.
    pub fn reason(&self) -> FileBundlesErrorReason {
        self.reason
    }

    /// Returns the path, if the error is about one file.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The text with that of the cause, without the path.
    pub(super) fn full_text(&self) -> String {
        match &self.cause {
            Some(cause) => format!("{}: {cause:#}", self.text),
            None => self.text.to_string(),
        }
    }
}

impl fmt::Display for FileBundlesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "bundle file {}: ", path.display())?;
        }
        f.write_str(&self.text)?;
        match &self.cause {
            Some(cause) if f.alternate() => write!(f, ": {cause:#}"),
            _ => Ok(()),
        }
    }
}

impl Error for FileBundlesError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(Cause::as_error)
    }
}
