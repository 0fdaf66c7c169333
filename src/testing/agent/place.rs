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

/// A place that can be listened at again after the agent has left it.
pub(super) enum Place {
    #[cfg(unix)]
    Unix(PrivateDir),
    Tcp(SocketAddr),
    /// Nobody can dial it but through the agent itself.
    Memory,
}

/// The open door of a place.
pub(super) enum Door {
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

    /// A free port of this machine; the place is known once its door was opened.
    pub(super) fn tcp() -> Self {
        Self::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Opens the door: the first time, or again at the same place.
    pub(super) fn open(&mut self) -> Result<Door, Error> {
        let opened = self.listen();
        opened.map_err(|error| Error::Listen {
            endpoint: self.endpoint().map(|at| at.to_string()).unwrap_or_default(),
            error: Arc::new(error),
        })
    }

    fn listen(&mut self) -> io::Result<Door> {
        Ok(match self {
            #[cfg(unix)]
            Self::Unix(dir) => Door::Unix(UnixListener::bind(dir.socket())?),
            Self::Tcp(address) => {
                let socket = TcpSocket::new_v4()?;
                // The port is ours again at once, though old connections linger on it.
                socket.set_reuseaddr(true)?;
                socket.bind(*address)?;
                let listener = socket.listen(1024)?;
                *address = listener.local_addr()?;
                Door::Tcp(listener)
            }
            Self::Memory => Door::Memory,
        })
    }

    /// Takes away what a closed door leaves: as SPIRE's agent, whose socket is gone until it is
    /// back.
    pub(super) fn close(&self) {
        #[cfg(unix)]
        if let Self::Unix(dir) = self {
            let _ = std::fs::remove_file(dir.socket());
        }
    }

    /// The endpoint to dial.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        match self {
            #[cfg(unix)]
            Self::Unix(dir) => Some(Endpoint::of_path(dir.socket())),
            Self::Tcp(address) => Some(Endpoint::of_address(*address)),
            Self::Memory => None,
        }
    }
}

impl Door {
    /// Lets everybody in, until it is dropped.
    pub(super) async fn welcome(self, agent: Arc<Agent>, connections: Arc<Connections>) {
        // A process that is out of file descriptors has some again later.
        const A_MOMENT: Duration = Duration::from_millis(10);
        loop {
            let served = match &self {
                #[cfg(unix)]
                Self::Unix(door) => {
                    let come = door.accept().await;
                    come.map(|(io, _): (UnixStream, _)| {
                        connections.serve(&agent, AnyAuthority::new(io));
                    })
                }
                Self::Tcp(door) => match door.accept().await {
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

/// A directory that only this user can look into, gone when this is dropped.
#[cfg(unix)]
pub(super) struct PrivateDir(PathBuf);

#[cfg(unix)]
impl PrivateDir {
    fn make() -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt as _;
        // The path of a Unix socket has to fit into 108 bytes, on some systems into 104.
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
