//! The connections of the agent. They are counted, their frames are watched, and they can fail.

use std::future::Future as _;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use super::fault::Fault;
use super::frames::{FrameHead, FrameReader};
use super::front::Front;
use super::pings::PingAccount;
use super::state::Agent;

/// All connections of one agent.
pub(super) struct Connections {
    runtime: Handle,
    /// Counts the requests to end the open connections.
    goodbyes: watch::Sender<u64>,
    tasks: Mutex<JoinSet<()>>,
    lives: Mutex<Vec<Weak<Life>>>,
}

/// Whether a connection is dead or must end.
struct Life {
    dead: AtomicBool,
}

impl Connections {
    pub(super) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            goodbyes: watch::Sender::new(0),
            tasks: Mutex::new(JoinSet::new()),
            lives: Mutex::new(Vec::new()),
        }
    }

    /// Serves the agent on this connection until either side ends it.
    pub(super) fn serve<I>(&self, agent: &Arc<Agent>, io: I)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let life = Arc::new(Life {
            dead: AtomicBool::new(false),
        });
        let (half_open, not_http2) = {
            let faults = &agent.state().faults;
            (faults.any(&Fault::HalfOpen), faults.any(&Fault::NotHttp2))
        };
        life.dead.store(half_open, Ordering::Relaxed);
        let mut lives = lock(&self.lives);
        lives.retain(|life| life.strong_count() > 0);
        lives.push(Arc::downgrade(&life));
        drop(lives);

        let counted = Counted::new(agent.clone());
        let mut goodbye = self.goodbyes.subscribe();
        let agent = agent.clone();
        let connection = async move {
            let _counted = counted;
            if not_http2 {
                return something_else(io).await;
            }
            let watched = TokioIo::new(WatchedIo::new(io, agent.clone(), life));
            let service = TowerToHyperService::new(Front::new(agent));
            let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
            let mut connection = pin!(builder.serve_connection(watched, service));
            // An error needs no handling: the client sees the end of the connection.
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = goodbye.changed() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        };
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(connection, &self.runtime);
    }

    /// Makes the open connections dead: they stay open, but no byte is read or written.
    pub(super) fn go_dead(&self) {
        for life in lock(&self.lives).iter().filter_map(Weak::upgrade) {
            life.dead.store(true, Ordering::Relaxed);
        }
    }

    /// Sends GOAWAY on all connections and waits until their calls have ended. Cuts those that are still
    /// open after `grace`.
    pub(super) async fn end(&self, grace: Duration) {
        self.goodbyes.send_modify(|count| *count += 1);
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        let ended = async { while tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(grace, ended).await;
        tasks.shutdown().await;
    }

    /// Cuts all connections, and returns when they are closed.
    pub(super) async fn cut(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.shutdown().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Responds like a web server without HTTP/2. It reads the request first and waits before it closes: a
/// socket that is closed with unread bytes may discard the response.
async fn something_else(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let mut heard = [0; 1024];
    let _ = tokio::time::timeout(PATIENCE, io.read(&mut heard)).await;
    let _ = io
        .write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
        .await;
    let _ = io.shutdown().await;
    let rest = async { while io.read(&mut heard).await.is_ok_and(|read| read > 0) {} };
    let _ = tokio::time::timeout(PATIENCE, rest).await;
}

/// Counts a connection for as long as it is open.
struct Counted(Arc<Agent>);

impl Counted {
    fn new(agent: Arc<Agent>) -> Self {
        agent.counters.connections.up();
        agent.counters.open_connections.up();
        Self(agent)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.counters.open_connections.down();
    }
}

/// A connection whose bytes are watched.
struct WatchedIo<I> {
    io: I,
    agent: Arc<Agent>,
    life: Arc<Life>,
    inbound: FrameReader,
    outbound: FrameReader,
    pings: PingAccount,
    farewell: Option<Farewell>,
    opened: Instant,
}

/// The last frame, how much of it is written, and how long to wait for its reader: one second, as a
/// grpc-go server does.
struct Farewell {
    frame: Vec<u8>,
    sent: usize,
    until: Pin<Box<Sleep>>,
}

impl Farewell {
    const PATIENCE: Duration = Duration::from_secs(1);

    fn new(frame: Vec<u8>) -> Self {
        Self {
            frame,
            sent: 0,
            until: Box::pin(tokio::time::sleep(Self::PATIENCE)),
        }
    }
}

impl<I> WatchedIo<I> {
    fn new(io: I, agent: Arc<Agent>, life: Arc<Life>) -> Self {
        Self {
            io,
            agent,
            life,
            inbound: FrameReader::of_client(),
            outbound: FrameReader::of_server(),
            pings: PingAccount::default(),
            farewell: None,
            opened: Instant::now(),
        }
    }

    fn is_dead(&self) -> bool {
        self.life.dead.load(Ordering::Relaxed)
    }

    /// Watches received bytes. Returns whether the client pings too often.
    fn came_in(&mut self, bytes: &[u8]) -> bool {
        // The clock that HTTP/2 clients use for pings. The agent's own clock may not advance.
        let now = self.opened.elapsed();
        let mut too_many = false;
        let (agent, pings) = (&self.agent, &mut self.pings);
        self.inbound.feed(bytes, |frame| {
            if frame.kind == FrameHead::PING && frame.flags & FrameHead::ACK == 0 {
                agent.counters.pings.up();
            }
            too_many |= pings.received(frame, now);
        });
        too_many && agent.enforce_pings
    }

    fn went_out(&mut self, bytes: &[u8]) {
        let pings = &mut self.pings;
        self.outbound.feed(bytes, |frame| pings.sent(frame));
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> WatchedIo<I> {
    /// Sends the last frame, waits until the client has closed or the time is over, then ends the
    /// server's side.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(farewell) = &mut self.farewell else {
            return Poll::Ready(Ok(()));
        };
        while let Some(rest) = farewell
            .frame
            .get(farewell.sent..)
            .filter(|rest| !rest.is_empty())
        {
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest)) {
                Ok(sent) if sent > 0 => farewell.sent += sent,
                // The client is no longer connected.
                _ => return Poll::Ready(Ok(())),
            }
        }
        loop {
            let mut unread = [0; 1024];
            let mut unread = ReadBuf::new(&mut unread);
            match Pin::new(&mut self.io).poll_read(cx, &mut unread) {
                Poll::Ready(Ok(())) if !unread.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return farewell.until.as_mut().poll(cx).map(Ok),
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for WatchedIo<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_dead() {
            // No byte will arrive any more, so no task needs to be woken.
            return Poll::Pending;
        }
        if this.farewell.is_some() {
            return this.poll_farewell(cx);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let too_many = this.came_in(buf.filled().get(before..).unwrap_or_default());
        if too_many {
            this.agent.counters.too_many_pings.up();
            // No frame can be sent within another frame: then the connection just ends.
            let frame = if this.outbound.at_boundary() {
                this.pings.goaway()
            } else {
                Vec::new()
            };
            this.farewell = Some(Farewell::new(frame));
            buf.set_filled(before);
            return this.poll_farewell(cx);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedIo<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_dead() || this.farewell.is_some() {
            // Discarded, as if it were being sent.
            return Poll::Ready(Ok(buf.len()));
        }
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.went_out(buf.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_dead() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_dead() {
            return Poll::Pending;
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
