//! Why a token file cannot be used.

use std::fmt;
use std::sync::Arc;

/// Why a token file cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFileError {
    reason: TokenFileErrorReason,
    text: Arc<str>,
}

/// The class of a [`TokenFileError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenFileErrorReason {
    /// The path has no file name, or no file was added.
    Path,
    /// The audiences of a file are missing, invalid, marked as single-use, or the same as those of
    /// another file.
    Audience,
    /// The mode has bits that are not permissions.
    Mode,
    /// There is no tokio runtime with timers.
    NoRuntime,
    /// The cache or its source was shut down.
    Closed,
}

impl TokenFileError {
    pub(super) fn new(reason: TokenFileErrorReason, text: impl Into<Arc<str>>) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }

    /// Returns the class.
    pub fn reason(&self) -> TokenFileErrorReason {
        self.reason
    }
}

impl fmt::Display for TokenFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for TokenFileError {}
