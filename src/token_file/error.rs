//! Why a token file cannot be used.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::cause::Cause;

/// Why a token file cannot be written or read.
///
/// `{error}` says what failed; the cause, if there is one, is its [`source`](Error::source).
/// `{error:#}` has both in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFileError {
    reason: TokenFileErrorReason,
    text: Arc<str>,
    cause: Option<Cause>,
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
            cause: None,
        }
    }

    pub(super) fn because(self, cause: impl Into<Cause>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..self
        }
    }

    /// Returns the class.
    pub fn reason(&self) -> TokenFileErrorReason {
        self.reason
    }
}

impl fmt::Display for TokenFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.cause {
            Some(cause) if f.alternate() => write!(f, ": {cause:#}"),
            _ => Ok(()),
        }
    }
}

impl Error for TokenFileError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(Cause::as_error)
    }
}
