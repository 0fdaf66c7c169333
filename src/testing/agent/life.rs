//! Starting and stopping the agent, and connections without a socket.

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

/// The buffer of one direction of a connection in memory, in bytes.
const IN_MEMORY: usize = 64 * 1024;

/// How long calls in progress may take when the agent stops.
const GRACE: Duration = Duration::from_secs(1);

/// Whether the agent is running, and where.
pub(super) struct Presence {
    pub(super) place: Place,
    /// The task that accepts connections; `None` while the agent is stopped.
    listener: Option<JoinHandle<()>>,
}

impl Presence {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            listener: None,
        }
    }
}

/// The future of a [`connector`](FakeAgent::connector).
type Dialled = Pin<Box<dyn Future<Output = io::Result<DuplexStream>> + Send>>;

impl FakeAgent {
    /// Stops the agent. The socket is removed, each connection gets a GOAWAY, bundle streams end
    /// with `UNAVAILABLE`, and calls in progress get their responses. Connections that are still open
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
        let listener = {
            let mut presence = self.presence();
            presence.place.close();
            presence.listener.take()
        };
        if let Some(listener) = listener {
            listener.abort();
            let _ = listener.await;
        }
        self.inner.agent.change(|state| state.stopping = true);
        self.inner.connections.end(GRACE).await;
    }

    /// Starts the agent again at the same place. Does nothing if it is running.
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
    /// assert!(source.fetch_jwt_svid(["db"]).await.is_err()); // the connection is rejected
    /// agent.start_again().await?;
    /// source.ready().await?;
    /// assert!(source.fetch_jwt_svid(["db"]).await.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The place can no longer be opened.
    pub async fn start_again(&self) -> Result<(), Error> {
        // Bound without waiting, so the lock is held: otherwise two listeners could be opened.
        let mut presence = self.presence();
        if presence.listener.is_some() {
            return Ok(());
        }
        let listener = presence.place.open()?;
        self.inner.agent.change(|state| state.stopping = false);
        let accepting =
            listener.accept_all(self.inner.agent.clone(), self.inner.connections.clone());
        presence.listener = Some(self.inner.runtime.spawn(accepting));
        Ok(())
    }

    /// Stops the agent and starts it again: streams end, and clients reconnect.
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
    /// assert!(source.bundle_set().is_ok()); // also during the restart
    /// tokio::time::sleep(Duration::from_secs(60)).await; // of paused time
    /// assert!(source.state().connected);
    /// assert!(source.state().reconnects > 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The place can no longer be opened.
    pub async fn restart(&self) -> Result<(), Error> {
        self.stop().await;
        self.start_again().await
    }

    /// Serves the agent over this connection until either side ends it.
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
    /// let ours = Mutex::new(Some(ours)); // for one connection
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

    /// Returns a function that connects to the agent without a socket, for
    /// [`JwtSourceBuilder::connector`](crate::source::JwtSourceBuilder::connector) in paused time. While
    /// the agent is [stopped](Self::stop), or after it was dropped, connections fail.
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
        if lock(&self.presence).listener.is_none() {
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
        // Connections and timers end with their sets. The accepting task holds the connections.
        if let Some(listener) = lock(&self.presence).listener.take() {
            listener.abort();
        }
    }
}
