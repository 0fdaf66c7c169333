//! Why a source of access tokens cannot be built.

use std::fmt;
use std::sync::Arc;

/// An error in the options of a source of access tokens. Its text says how to fix it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessTokensError {
    reason: AccessTokensErrorReason,
    text: Arc<str>,
}

/// The class of an [`AccessTokensError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AccessTokensErrorReason {
    /// The issuer of the authorization server is missing or cannot be an audience.
    Issuer,
    /// The token endpoint is missing or is not a URL with `https`, or `http` if that is allowed.
    TokenEndpoint,
    /// There is no HTTP client.
    HttpClient,
    /// The client ID, a scope or a parameter is invalid.
    Parameter,
    /// A lifetime is zero.
    Lifetime,
}

impl AccessTokensError {
    pub(super) fn new(reason: AccessTokensErrorReason, text: &str) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }

    /// Returns the class.
    pub fn reason(&self) -> AccessTokensErrorReason {
        self.reason
    }
}

impl fmt::Display for AccessTokensError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for AccessTokensError {}
