//! What keeps the fixture from standing up.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::identity::SpiffeIdError;

/// Why the embedded Workload API cannot do what the test asks of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// A trust domain or SPIFFE ID is malformed.
    SpiffeId(SpiffeIdError),
    /// The SPIFFE ID is of another trust domain than the agent's: no agent gives such a one out.
    ForeignTrustDomain,
    /// The directory for the socket cannot be created in `parent`, which is `TMPDIR` or `/tmp`.
    Directory {
        /// Where the directory would be created.
        parent: PathBuf,
        /// Why it cannot be.
        error: Arc<io::Error>,
    },
    /// The socket or the port cannot be opened.
    Listen {
        /// The endpoint, as `SPIFFE_ENDPOINT_SOCKET` would name it.
        endpoint: String,
        /// Why it cannot be opened.
        error: Arc<io::Error>,
    },
    /// There is no tokio runtime here to serve in.
    NoRuntime,
    /// This machine has no Unix sockets: use [`start_tcp`](super::FakeAgent::start_tcp).
    NoUnixSockets,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpiffeId(error) => error.fmt(f),
            Self::ForeignTrustDomain => f.write_str(
                "the SPIFFE ID is not of the agent's trust domain; an agent gives out only its own",
            ),
            Self::Directory { parent, error } => write!(
                f,
                "cannot create a directory for the agent's socket in {parent:?}: {error}; create \
                 it, or set TMPDIR to a directory that this user can write to"
            ),
            Self::Listen { endpoint, error } => {
                write!(f, "the agent cannot listen at {endpoint}: {error}")
            }
            Self::NoRuntime => f.write_str("there is no tokio runtime here to serve in"),
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
