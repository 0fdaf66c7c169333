//! The error response of an authorization server.

use std::time::Duration;

/// The error response of an authorization server (RFC 6749 section 5.2), or any other response
/// without an access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OAuthError {
    pub(crate) status: u16,
    pub(crate) error: Option<Box<str>>,
    pub(crate) description: Option<Box<str>>,
    pub(crate) retry_after: Option<Duration>,
}

impl OAuthError {
    /// Returns the HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Returns the server's error code, such as `invalid_client`: escaped, without tokens, at most
    /// 64 bytes. `None` if the response is not in the form of RFC 6749.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Returns the server's `error_description`: escaped, without tokens, about 300 bytes at most.
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// Returns the server's `Retry-After`. The cache waits that long, within its longest delay:
    /// 60 s by default.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}
