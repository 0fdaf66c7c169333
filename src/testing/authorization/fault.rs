//! The faults of the authorization server.

use std::time::Duration;

/// How a [`FakeAuthorizationServer`](super::FakeAuthorizationServer) fails.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TokenEndpointFault {
    /// Connections end without a response.
    Down,
    /// Requests get no response.
    Hang,
    /// Responses are delayed by this time.
    Slow(Duration),
    /// An error response of RFC 6749 section 5.2.
    Error {
        /// The HTTP status.
        status: u16,
        /// The `error`.
        error: String,
        /// The `error_description`.
        description: Option<String>,
    },
    /// Exactly this response.
    Raw {
        /// The HTTP status.
        status: u16,
        /// The content type.
        content_type: String,
        /// The body.
        body: Vec<u8>,
    },
    /// A redirect to this URL.
    Redirect {
        /// The HTTP status.
        status: u16,
        /// The URL.
        location: String,
    },
    /// Status 429, with this `Retry-After` in seconds.
    TooManyRequests(u64),
    /// Access tokens have this `token_type`.
    TokenType(String),
    /// The response has this JSON as its `expires_in`, or no `expires_in`. The lifetime of the token
    /// does not change.
    ExpiresIn(Option<String>),
    /// Each response has the access token that was issued last.
    SameToken,
    /// An `invalid_client` error whose description is the body of the request.
    Echo,
}

impl TokenEndpointFault {
    /// Creates an error response without a description.
    pub fn error(status: u16, error: &str) -> Self {
        Self::Error {
            status,
            error: error.to_owned(),
            description: None,
        }
    }

    /// Creates a response with this body, as HTML.
    pub fn html(status: u16, body: &str) -> Self {
        Self::Raw {
            status,
            content_type: "text/html".to_owned(),
            body: body.into(),
        }
    }

    /// Creates a response with this body, as JSON.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::Raw {
            status,
            content_type: "application/json".to_owned(),
            body: body.into(),
        }
    }
}
