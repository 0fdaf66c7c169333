//! What keeps the fixture from standing up.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::spiffe_id::SpiffeIdError;

/// Why the embedded Workload API cannot do what the test asks of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// A trust domain or SPIFFE ID is malformed.
    SpiffeId(SpiffeIdError),
    /// The SPIFFE ID is of another trust domain than the agent's: no agent gives such a one out.
    ForeignTrustDomain,
    /// The socket cannot be opened.
    Io(Arc<io::Error>),
    /// The directory for temporary files cannot hold the agent's socket.
    #[non_exhaustive]
    TempDir {
        /// The directory: `TMPDIR`, or `/tmp`.
        path: PathBuf,
        /// What the system reports.
        source: Arc<io::Error>,
    },
    /// There is no tokio runtime here to serve in.
    NoRuntime,
    /// This machine has no Unix sockets: use [`start_tcp`](super::WorkloadApi::start_tcp).
    NoUnixSockets,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpiffeId(error) => error.fmt(f),
            Self::ForeignTrustDomain => f.write_str(
                "the SPIFFE ID is not of the agent's trust domain; an agent gives out only its own",
            ),
            Self::Io(error) => write!(f, "the agent's socket cannot be opened: {error}"),
            Self::TempDir { path, source } => write!(
                f,
                "the agent's socket cannot be created in {path:?}: {source}; set TMPDIR to a \
                 directory that exists and is writable"
            ),
            Self::NoRuntime => f.write_str("there is no tokio runtime here to serve in"),
            Self::NoUnixSockets => f.write_str("this machine has no Unix sockets; use `start_tcp`"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::SpiffeId(error) => Some(error),
            Self::Io(error) | Self::TempDir { source: error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<SpiffeIdError> for Error {
    fn from(error: SpiffeIdError) -> Self {
        Self::SpiffeId(error)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}
