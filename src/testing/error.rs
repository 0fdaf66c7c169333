//! Errors of the embedded agent.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::identity::SpiffeIdError;

/// Why the embedded agent cannot start, or cannot apply a setting.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// A trust domain or SPIFFE ID is malformed.
    SpiffeId(SpiffeIdError),
    /// The SPIFFE ID belongs to another trust domain than the agent. An agent issues only its own.
    ForeignTrustDomain,
    /// The directory for the socket cannot be created in `parent`, which is `TMPDIR` or `/tmp`.
    Directory {
        /// Where the directory would be created.
        parent: PathBuf,
        /// The cause.
        error: Arc<io::Error>,
    },
    /// The socket or the port cannot be opened.
    Listen {
        /// The endpoint, in the form of `SPIFFE_ENDPOINT_SOCKET`.
        endpoint: String,
        /// The cause.
        error: Arc<io::Error>,
    },
    /// There is no tokio runtime here.
    NoRuntime,
    /// This machine has no Unix sockets: use [`start_tcp`](super::FakeAgent::start_tcp).
    NoUnixSockets,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpiffeId(error) => error.fmt(f),
            Self::ForeignTrustDomain => f.write_str(
                "the SPIFFE ID belongs to another trust domain; use one of the agent's trust domain",
            ),
            Self::Directory { parent, error } => write!(
                f,
                "cannot create a directory for the agent's socket in {parent:?}: {error}; create \
                 it, or set TMPDIR to a directory that this user can write to"
            ),
            Self::Listen { endpoint, error } => {
                write!(f, "the agent cannot listen at {endpoint}: {error}")
            }
            Self::NoRuntime => f.write_str("there is no tokio runtime here; start the agent in async code"),
            Self::NoUnixSockets => f.write_str("this machine has no Unix sockets; use `start_tcp`"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::SpiffeId(error) => Some(error),
            Self::Directory { error, .. } | Self::Listen { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<SpiffeIdError> for Error {
    fn from(error: SpiffeIdError) -> Self {
        Self::SpiffeId(error)
    }
}
