//! Opens connections: to an endpoint, or by a given connector.

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::endpoint::Endpoint;
use crate::clock::Clock;
use crate::presentable::{debug_fields, presentable};
use crate::runtime::{self, Missing};

/// A byte stream.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

type BoxTransport = Box<dyn Transport>;
type Dialled = Pin<Box<dyn Future<Output = io::Result<BoxTransport>> + Send>>;

/// Opens connections to one place.
#[derive(Clone)]
pub(crate) struct Connector {
    place: Arc<str>,
    // A given connector may have its own transport.
    needs_io: bool,
    dial: Arc<dyn Fn() -> Dialled + Send + Sync>,
}

impl Connector {
    pub(crate) fn to_endpoint(endpoint: &Endpoint) -> Self {
        let place = Arc::from(endpoint.to_string());
        if let Some(address) = endpoint.tcp_address() {
            return Self::new(place, true, move || async move {
                let stream = tokio::net::TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            });
        }
        #[cfg(unix)]
        {
            let path: Arc<std::path::Path> = endpoint.unix_path().unwrap_or("".as_ref()).into();
            Self::new(place, true, move || {
                let path = path.clone();
                async move {
                    let connected = tokio::net::UnixStream::connect(&path).await;
                    connected.map_err(|error| not_a_socket(&path).unwrap_or(error))
                }
            })
        }
        #[cfg(not(unix))]
        Self::new(place, true, || async {
            Err::<tokio::net::TcpStream, _>(io::Error::from(io::ErrorKind::Unsupported))
        })
    }

    pub(crate) fn new<F, Fut, T>(place: Arc<str>, needs_io: bool, dial: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<T>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let dial = move || -> Dialled {
            let dialled = dial();
            Box::pin(async move { Ok(Box::new(dialled.await?) as BoxTransport) })
        };
        Self {
            place,
            needs_io,
            dial: Arc::new(dial),
        }
    }

    /// The runtime of this call, if it has what connecting needs.
    pub(crate) fn runtime(&self) -> Result<Handle, Missing> {
        match self.needs_io {
            true => runtime::with_io(),
            false => runtime::with_timers(),
        }
    }

    pub(crate) fn place(&self) -> &Arc<str> {
        &self.place
    }

    /// Opens one connection within this time.
    pub(crate) async fn connect(
        &self,
        within: Duration,
        pulse: Arc<Pulse>,
    ) -> Result<Watched, ConnectError> {
        let failed = |kind, text: &dyn fmt::Display| ConnectError {
            place: self.place.clone(),
            kind,
            // A given connector may return any text.
            text: presentable(&text.to_string()).into(),
        };
        // A panic here would end the worker of the channel, which never gets another.
        let dialled = AssertUnwindSafe(async { (self.dial)().await }).catch_unwind();
        let dialled = async {
            let panicked = |_| Err(io::Error::other("the connector panicked"));
            dialled.await.unwrap_or_else(panicked)
        };
        match tokio::time::timeout(within, dialled).await {
            Ok(Ok(inner)) => Ok(Watched::new(inner, pulse)),
            Ok(Err(error)) => Err(failed(error.kind(), &error)),
            Err(_) => Err(failed(
                io::ErrorKind::TimedOut,
                &format_args!("no connection within {within:?}"),
            )),
        }
    }
}

debug_fields!(Connector, |it| { place: it.place });

/// The error for a path that exists and is not a socket. The system reports it like a socket on which
/// no process listens, so an operator would look for an agent that is down.
#[cfg(unix)]
fn not_a_socket(path: &std::path::Path) -> Option<io::Error> {
    use std::os::unix::fs::FileTypeExt as _;
    let found = std::fs::metadata(path).ok()?.file_type();
    let text = if found.is_socket() {
        return None;
    } else if found.is_dir() {
        "this is a directory; name the socket in it"
    } else {
        "this file is not a socket; name the socket"
    };
    Some(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// A connection could not be made.
#[derive(Debug, Clone)]
pub(crate) struct ConnectError {
    place: Arc<str>,
    pub(super) kind: io::ErrorKind,
    text: Arc<str>,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot connect to {}: ", self.place)?;
        match self.kind {
            io::ErrorKind::NotFound => f.write_str(
                "the socket does not exist; check that the SPIFFE agent is running and that its socket is \
                 mounted here (an agent creates it after its first sync with the server)",
            ),
            io::ErrorKind::ConnectionRefused => {
                f.write_str("no process listens there; check that the SPIFFE agent is running")
            }
            io::ErrorKind::PermissionDenied => {
                f.write_str("this process may not open it; check the socket's permissions")
            }
            io::ErrorKind::TimedOut => {
                write!(f, "{}; check that the SPIFFE agent is healthy and reachable from here", self.text)
            }
            _ => write!(f, "{}; check that this is the SPIFFE agent's endpoint", self.text),
        }
    }
}

impl std::error::Error for ConnectError {}

/// What the received bytes show about a connection. Responses to HTTP/2 keepalives are visible here, but
/// not in gRPC.
pub(crate) struct Pulse {
    clock: Arc<dyn Clock>,
    // Nanoseconds of the monotonic clock; zero before the first byte.
    heard: AtomicU64,
    not_http2: AtomicBool,
    // How many connections are open, and whether all of them must end.
    open: watch::Sender<usize>,
    closing: watch::Sender<bool>,
}

impl Pulse {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            heard: AtomicU64::new(0),
            not_http2: AtomicBool::new(false),
            open: watch::Sender::new(0),
            closing: watch::Sender::new(false),
        }
    }

    /// Ends every connection, including those that are being opened.
    pub(crate) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Waits until no connection is open.
    pub(crate) async fn until_quiet(&self) {
        // The sender lives as long as `self`.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    fn hear(&self) {
        let now = u64::try_from(self.clock.monotonic().as_nanos()).unwrap_or(u64::MAX);
        self.heard.store(now.max(1), Ordering::Relaxed);
    }

    /// When the last byte arrived, on the monotonic clock.
    pub(crate) fn heard(&self) -> Option<Duration> {
        match self.heard.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// Whether the peer of the last connection that received bytes does not speak HTTP/2. A connection
    /// without a response yet does not change this.
    pub(crate) fn not_http2(&self) -> bool {
        self.not_http2.load(Ordering::Relaxed)
    }
}

/// A connection that reports received bytes to its [`Pulse`].
pub(crate) struct Watched {
    inner: BoxTransport,
    pulse: Arc<Pulse>,
    head: Head,
    closing: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Watched {
    fn new(inner: BoxTransport, pulse: Arc<Pulse>) -> Self {
        pulse.open.send_modify(|open| *open += 1);
        let mut closing = pulse.closing.subscribe();
        let closing = Box::pin(async move {
            let _ = closing.wait_for(|closing| *closing).await;
        });
        Self {
            inner,
            pulse,
            head: Head::default(),
            closing,
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.pulse
            .open
            .send_modify(|open| *open = open.saturating_sub(1));
    }
}

/// The header of the first frame. An HTTP/2 server begins with SETTINGS on stream 0 (RFC 9113 section
/// 3.4); a peer that begins otherwise is not a gRPC server.
#[derive(Default)]
struct Head {
    seen: usize,
    wrong: bool,
}

impl Head {
    const LEN: usize = 9;

    fn read(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().take(Self::LEN.saturating_sub(self.seen)) {
            // Length (3, small), type SETTINGS, flags, stream 0 (4).
            self.wrong |= match self.seen {
                0 | 5..=8 => *byte != 0,
                3 => *byte != 4,
                _ => false,
            };
            self.seen += 1;
        }
    }

    /// Whether it is complete and valid.
    fn is_right(&self) -> bool {
        self.seen == Self::LEN && !self.wrong
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.closing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let new = buf.filled().get(before..).unwrap_or_default();
        if !new.is_empty() {
            self.head.read(new);
            if self.head.wrong {
                self.pulse.not_http2.store(true, Ordering::Relaxed);
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the peer does not speak HTTP/2",
                )));
            }
            if self.head.is_right() {
                self.pulse.not_http2.store(false, Ordering::Relaxed);
            }
            self.pulse.hear();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
