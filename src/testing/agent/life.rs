//! Being there, being away, and ways to it that need no socket.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::task::JoinHandle;

use super::place::Place;
use super::{FakeAgent, Inner, lock};
use crate::testing::error::Error;

/// How much may be under way in one direction of a connection in memory.
const IN_MEMORY: usize = 64 * 1024;

/// How long calls in progress may take when the agent stops.
const GRACE: Duration = Duration::from_secs(1);

/// Whether the agent is there, and where.
pub(super) struct Presence {
    pub(super) place: Place,
    /// The task at the door; `None` while the agent is away.
    door: Option<JoinHandle<()>>,
}

impl Presence {
    pub(super) fn new(place: Place) -> Self {
        Self { place, door: None }
    }
}

/// The future of a [`connector`](FakeAgent::connector).
type Dialled = Pin<Box<dyn Future<Output = io::Result<DuplexStream>> + Send>>;

impl FakeAgent {
    /// Stops the agent. The socket is removed, each connection gets a GOAWAY, bundle streams end
    /// with `UNAVAILABLE`, and calls in progress get their answers. Connections that are still open
    /// after one second are cut. The agent keeps its state and its counts.
    ///
    /// For an agent that disappears without a GOAWAY, see
    /// [`cut_connections`](Self::cut_connections) and [`half_open`](Self::half_open).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = tower_spiffe::testing::FakeAgent::start("example.org").await?;
    /// let endpoint = agent.endpoint();
    /// agent.stop().await;
    /// assert!(!endpoint.unix_path().unwrap().exists());
    ///
    /// agent.start_again().await?;
    /// assert_eq!(agent.endpoint(), endpoint);
    /// assert!(agent.source().await.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn stop(&self) {
        let door = {
            let mut presence = self.presence();
            presence.place.close();
            presence.door.take()
        };
        if let Some(door) = door {
            door.abort();
            let _ = door.await;
        }
        self.inner.agent.change(|state| state.stopping = true);
        self.inner.connections.end(GRACE).await;
    }

    /// Starts the agent again at the same place. Nothing happens where it is there already.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # use tower_spiffe::JwtSource;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    ///
    /// agent.stop().await;
    /// let source = JwtSource::builder().connector(agent.connector()).build_lazy()?;
    /// assert!(source.fetch_jwt_svid(["db"]).await.is_err()); // the connection is refused
    /// agent.start_again().await?;
    /// source.ready().await?;
    /// assert!(source.fetch_jwt_svid(["db"]).await.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The place cannot be opened any more.
    pub async fn start_again(&self) -> Result<(), Error> {
        // Bound without waiting, so under the lock: no two doors are opened at once.
        let mut presence = self.presence();
        if presence.door.is_some() {
            return Ok(());
        }
        let door = presence.place.open()?;
        self.inner.agent.change(|state| state.stopping = false);
        let welcome = door.welcome(self.inner.agent.clone(), self.inner.connections.clone());
        presence.door = Some(self.inner.runtime.spawn(welcome));
        Ok(())
    }

    /// Stops it and starts it again: streams end, clients come back.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_spiffe::testing::FakeAgent;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.restart().await?;
    /// assert!(source.bundle_set().is_ok()); // all the while
    /// tokio::time::sleep(Duration::from_secs(60)).await; // of paused time
    /// assert!(source.state().is_connected());
    /// assert!(source.state().reconnects() > 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The place cannot be opened any more.
    pub async fn restart(&self) -> Result<(), Error> {
        self.stop().await;
        self.start_again().await
    }

    /// Serves the agent over this connection, whatever it is, until either side ends it.
    ///
    /// ```
    /// # use std::sync::Mutex;
    /// # use tower_spiffe::testing::FakeAgent;
    /// # use tower_spiffe::JwtSource;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let (ours, theirs) = tokio::io::duplex(64 * 1024);
    /// agent.serve_stream(theirs);
    ///
    /// let ours = Mutex::new(Some(ours)); // to be connected to once
    /// let dial = move || {
    ///     let ours = ours.lock().unwrap().take();
    ///     async { ours.ok_or(std::io::ErrorKind::ConnectionRefused.into()) }
    /// };
    /// let source = JwtSource::builder().connector(dial).build().await?;
    /// assert!(source.get_jwt_svid(["db"]).await.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn serve_stream<I>(&self, io: I)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.inner.connections.serve(&self.inner.agent, io);
    }

    /// Dials the agent without a socket, as often as it is called: for
    /// [`JwtSourceBuilder::connector`](crate::source::JwtSourceBuilder::connector), in paused time.
    /// While the agent is [stopped](Self::stop), or when it is no more, the connection is refused.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_spiffe::JwtSource;
    /// use tower_spiffe::testing::FakeAgent;
    ///
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = JwtSource::builder().connector(agent.connector()).build().await?;
    /// assert_eq!(source.bundle_set()?.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn connector(&self) -> impl Fn() -> Dialled + Clone + Send + Sync + 'static + use<> {
        let inner = Arc::downgrade(&self.inner);
        move || {
            let dialled = match inner.upgrade() {
                Some(inner) => inner.dial(),
                None => Err(io::ErrorKind::ConnectionRefused.into()),
            };
            Box::pin(async { dialled })
        }
    }
}

impl Inner {
    fn dial(&self) -> io::Result<DuplexStream> {
        if lock(&self.presence).door.is_none() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(IN_MEMORY);
        self.connections.serve(&self.agent, theirs);
        Ok(ours)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(schedule) = lock(&self.schedule).take() {
            schedule.abort();
        }
        // The connections and timers end with their sets; the door holds the connections.
        if let Some(door) = lock(&self.presence).door.take() {
            door.abort();
        }
    }
}
