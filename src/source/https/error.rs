//! Errors of building a polled source.

use std::fmt;

/// Why an [`HttpsBundles`](super::HttpsBundles) cannot be built.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpsBundlesError {
    reason: HttpsBundlesErrorReason,
    text: Box<str>,
}

/// The class of an [`HttpsBundlesError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HttpsBundlesErrorReason {
    /// The URL, the issuer or another setting is invalid.
    Settings,
    /// There is no tokio runtime.
    NoRuntime,
    /// The first bundle did not arrive in time.
    Timeout,
    /// The source was shut down, with its runtime, before the first bundle arrived.
    Closed,
}

impl HttpsBundlesError {
    pub(super) fn new(reason: HttpsBundlesErrorReason, text: impl Into<Box<str>>) -> Self {
        let text = text.into();
        Self { reason, text }
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
        f.write_str(&self.text)
    }
}

impl std::error::Error for HttpsBundlesError {}
