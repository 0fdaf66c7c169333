//! Where the agent listens.

use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};

#[cfg(unix)]
use super::authority::AnyAuthority;
use super::connection::Connections;
use super::state::Agent;
use crate::testing::error::Error;
use crate::workload_api::Endpoint;

/// Where the agent listens, also after a restart.
pub(super) enum Place {
    #[cfg(unix)]
    Unix(PrivateDir),
    Tcp(SocketAddr),
    /// Only reachable through the agent itself.
    Memory,
}

/// An open listener.
pub(super) enum Listener {
    #[cfg(unix)]
    Unix(UnixListener),
    Tcp(TcpListener),
    Memory,
}

impl Place {
    #[cfg(unix)]
    pub(super) fn unix() -> Result<Self, Error> {
        Ok(Self::Unix(PrivateDir::make()?))
    }

    #[cfg(not(unix))]
    pub(super) fn unix() -> Result<Self, Error> {
        Err(Error::NoUnixSockets)
    }

    /// A free TCP port of this machine. It is known once it was opened.
    pub(super) fn tcp() -> Self {
        Self::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Listens, for the first time or again at the same place.
    pub(super) fn open(&mut self) -> Result<Listener, Error> {
        let opened = self.listen();
        opened.map_err(|error| Error::Listen {
            endpoint: self.endpoint().map(|at| at.to_string()).unwrap_or_default(),
            error: Arc::new(error),
        })
    }

    fn listen(&mut self) -> io::Result<Listener> {
        Ok(match self {
            #[cfg(unix)]
            Self::Unix(dir) => Listener::Unix(UnixListener::bind(dir.socket())?),
            Self::Tcp(address) => {
                let socket = TcpSocket::new_v4()?;
                // The port can be opened again at once, although old connections may linger.
                socket.set_reuseaddr(true)?;
                socket.bind(*address)?;
                let listener = socket.listen(1024)?;
                *address = listener.local_addr()?;
                Listener::Tcp(listener)
            }
            Self::Memory => Listener::Memory,
        })
    }

    /// Removes the socket file of a closed listener, as SPIRE's agent does.
    pub(super) fn close(&self) {
        #[cfg(unix)]
        if let Self::Unix(dir) = self {
            let _ = std::fs::remove_file(dir.socket());
        }
    }

    /// The endpoint to connect to.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        match self {
            #[cfg(unix)]
            Self::Unix(dir) => Some(Endpoint::of_path(dir.socket())),
            Self::Tcp(address) => Some(Endpoint::of_address(*address)),
            Self::Memory => None,
        }
    }
}

impl Listener {
    /// Accepts connections until it is dropped.
    pub(super) async fn accept_all(self, agent: Arc<Agent>, connections: Arc<Connections>) {
        // A process without free file descriptors may have some again later.
        const A_MOMENT: Duration = Duration::from_millis(10);
        loop {
            let served = match &self {
                #[cfg(unix)]
                Self::Unix(listener) => {
                    let accepted = listener.accept().await;
                    accepted.map(|(io, _): (UnixStream, _)| {
                        connections.serve(&agent, AnyAuthority::new(io));
                    })
                }
                Self::Tcp(listener) => match listener.accept().await {
                    Ok((io, _)) => serve_tcp(io, &agent, &connections),
                    Err(error) => Err(error),
                },
                Self::Memory => std::future::pending().await,
            };
            if served.is_err() {
                tokio::time::sleep(A_MOMENT).await;
            }
        }
    }
}

fn serve_tcp(io: TcpStream, agent: &Arc<Agent>, connections: &Connections) -> io::Result<()> {
    io.set_nodelay(true)?;
    connections.serve(agent, io);
    Ok(())
}

/// A directory that only this user can read. It is removed on drop.
#[cfg(unix)]
pub(super) struct PrivateDir(PathBuf);

#[cfg(unix)]
impl PrivateDir {
    fn make() -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt as _;
        // The path of a Unix socket is limited to 108 bytes, on some systems to 104.
        const LONGEST_BASE: usize = 60;
        let mut base = std::env::temp_dir();
        // An empty `TMPDIR` counts as not set.
        if base.as_os_str().is_empty() || base.as_os_str().len() > LONGEST_BASE {
            base = PathBuf::from("/tmp");
        }
        loop {
            let name: String = std::iter::repeat_with(fastrand::alphanumeric)
                .take(12)
                .collect();
            let dir = base.join(format!("tower-spiffe-{name}"));
            match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => return Ok(Self(dir)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(Error::Directory {
                        parent: base,
                        error: Arc::new(error),
                    });
                }
            }
        }
    }

    fn socket(&self) -> PathBuf {
        self.path().join("agent.sock")
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(unix)]
impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
