//! Errors of building a polled source.

use std::error::Error;
use std::fmt;

use crate::cause::Cause;

/// Why an [`HttpsBundles`](super::HttpsBundles) cannot be built.
///
/// `{error}` says what failed; the cause is its [`source`](Error::source), after a timeout the
/// [`PollError`](super::PollError) of the last poll. `{error:#}` has both in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpsBundlesError {
    reason: HttpsBundlesErrorReason,
    text: Box<str>,
    cause: Option<Cause>,
}

/// The class of an [`HttpsBundlesError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HttpsBundlesErrorReason {
    /// The URL, the issuer or another setting is invalid.
    Settings,
    /// There is no tokio runtime with timers, or with I/O for connections.
    NoRuntime,
    /// The first bundle did not arrive in time.
    Timeout,
    /// The source was shut down, with its runtime, before the first bundle arrived.
    Closed,
}

impl HttpsBundlesError {
    pub(super) fn new(reason: HttpsBundlesErrorReason, text: impl Into<Box<str>>) -> Self {
        let text = text.into();
        let cause = None;
        Self {
            reason,
            text,
            cause,
        }
    }

    pub(super) fn because(self, cause: impl Into<Cause>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..self
        }
    }

    pub(super) fn settings(text: impl Into<Box<str>>) -> Self {
        Self::new(HttpsBundlesErrorReason::Settings, text)
    }

    /// Returns the class.
    pub fn reason(&self) -> HttpsBundlesErrorReason {
        self.reason
    }
}

impl fmt::Display for HttpsBundlesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.cause {
            Some(cause) if f.alternate() => write!(f, ": {cause:#}"),
            _ => Ok(()),
        }
    }
}

impl Error for HttpsBundlesError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(Cause::as_error)
    }
}
