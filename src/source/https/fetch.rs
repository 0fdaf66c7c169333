//! One document over https: connections, redirects, revalidation, limits.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, HOST, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, LAST_MODIFIED, LOCATION, USER_AGENT,
};
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::body;
use super::super::own_thread;
use super::super::retry_after::retry_after;
use super::state::PollError;
use super::tls;
use super::url::Url;
use crate::cause::Cause;
use crate::clock::UnixTime;

pub(super) const MAX_BODY: usize = 1 << 20;
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(5);
pub(super) const FETCH_WITHIN: Duration = Duration::from_secs(10);
pub(super) const MAX_REDIRECTS: usize = 5;

/// How long one address of a host may take before the next one is tried too (RFC 8305 section 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;
type Answer = Pin<
    Box<dyn Future<Output = Result<Response<UnsyncBoxBody<Bytes, BoxError>>, BoxError>> + Send>,
>;

/// How requests are sent.
#[derive(Clone)]
pub(super) enum Client {
    /// A new connection for each request, to a server that this configuration trusts.
    Own(Arc<ClientConfig>),
    Given(GivenClient),
    /// Streams in memory in place of connections, for fuzzing.
    #[cfg(feature = "testing")]
    Memory(MemoryStreams),
}

/// Opens a stream in memory for a request to this URL.
#[cfg(feature = "testing")]
pub(crate) type MemoryStreams = Arc<dyn Fn(&str) -> tokio::io::DuplexStream + Send + Sync>;

/// The hosts that redirects and a `jwks_uri` may lead to: names in lower case, and ports. `None` allows
/// all.
#[derive(Clone)]
pub(super) struct Hosts(pub(super) Option<Arc<[(String, u16)]>>);

impl Hosts {
    pub(super) fn allow(&self, url: &Url) -> bool {
        let allowed = self.0.as_ref();
        allowed.is_none_or(|origins| origins.contains(&url.origin()))
    }
}

/// A client of the user.
#[derive(Clone)]
pub(super) struct GivenClient(Arc<dyn Fn(Request<()>) -> Answer + Send + Sync>);

impl GivenClient {
    pub(super) fn new<F, Fut, B, E>(send: F) -> Self
    where
        F: Fn(Request<()>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
        E: Into<BoxError>,
    {
        Self(Arc::new(move |request| {
            let answer = send(request);
            Box::pin(async move {
                let response = answer.await.map_err(Into::into)?;
                Ok(response.map(|body| {
                    let bytes = |mut data: B::Data| data.copy_to_bytes(data.remaining());
                    let body = body.map_frame(move |frame| frame.map_data(bytes));
                    body.map_err(Into::into).boxed_unsync()
                }))
            })
        }))
    }
}

/// Why a document could not be fetched.
#[derive(Debug)]
pub(super) struct FetchError {
    pub(super) poll: PollError,
    pub(super) retry_after: Option<Duration>,
}

impl FetchError {
    pub(super) fn new(failed: impl Into<Box<str>>) -> Self {
        PollError::new("bundle-fetch", failed).into()
    }

    pub(super) fn too_large() -> Self {
        let text = format!("the response has more than the {MAX_BODY} bytes allowed");
        PollError::new("bundle-too-large", text).into()
    }

    pub(super) fn of(failed: &str, cause: impl Into<Cause>) -> Self {
        PollError::new("bundle-fetch", failed).because(cause).into()
    }
}

impl From<PollError> for FetchError {
    fn from(poll: PollError) -> Self {
        Self {
            poll,
            retry_after: None,
        }
    }
}

/// The cache validators of the last document (`ETag`, `Last-Modified`), and its URL.
#[derive(Debug, Clone)]
pub(super) struct Validators {
    url: Url,
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
}

/// A successful response.
#[derive(Debug)]
pub(super) enum Fetched {
    NotModified,
    Document(Vec<u8>, Validators),
}

impl Client {
    /// Fetches the document at this URL. `known` belongs to the document that was fetched last.
    pub(super) async fn fetch(
        &self,
        url: &Url,
        known: Option<&Validators>,
        now: UnixTime,
        hosts: &Hosts,
    ) -> Result<Fetched, FetchError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let known = known.filter(|known| known.url == url);
            let (head, body) = self.send(&url, known).await?;
            match head.status {
                StatusCode::OK => {
                    let body = body?;
                    let validators = Validators {
                        url,
                        etag: head.headers.get(ETAG).cloned(),
                        last_modified: head.headers.get(LAST_MODIFIED).cloned(),
                    };
                    return Ok(Fetched::Document(body, validators));
                }
                StatusCode::NOT_MODIFIED if known.is_some_and(Validators::is_conditional) => {
                    return Ok(Fetched::NotModified);
                }
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    let location = head.headers.get(LOCATION).and_then(|to| to.to_str().ok());
                    let location = location
                        .ok_or_else(|| FetchError::new("the server redirects without a URL"))?;
                    url = url.join(location).map_err(|why| {
                        FetchError::new(format!("the server redirects to an invalid URL: {why}"))
                    })?;
                    if !hosts.allow(&url) {
                        let text = "the server redirects to a host that is not allowed; if it is \
                                    the right one, add it by `.allowed_hosts(...)`";
                        return Err(FetchError::new(text));
                    }
                }
                status => {
                    return Err(FetchError {
                        retry_after: retry_after(&head.headers, now),
                        ..FetchError::new(format!("the server returned HTTP status {status}"))
                    });
                }
            }
        }
        let text = format!("the server redirects more than {MAX_REDIRECTS} times");
        Err(FetchError::new(text))
    }

    async fn send(&self, url: &Url, known: Option<&Validators>) -> Result<Answered, FetchError> {
        let request = request(url, known);
        match self {
            Self::Own(tls) => match timeout(CONNECT_WITHIN, connect(tls, url)).await {
                Ok(stream) => exchange(stream?, url, request).await,
                Err(_) => {
                    let text = format!("no connection within {CONNECT_WITHIN:?}");
                    Err(FetchError::new(text))
                }
            },
            #[cfg(feature = "testing")]
            Self::Memory(open) => exchange(open(&url.to_string()), url, request).await,
            Self::Given(GivenClient(send)) => {
                let response = send(request).await;
                let response =
                    response.map_err(|error| FetchError::of("the given client failed", error))?;
                let (head, body) = response.into_parts();
                let body = read_if_ok(&head, body).await;
                Ok((head, body))
            }
        }
    }
}

impl Validators {
    fn is_conditional(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }
}

/// The head of a response, and its body, which is read for status 200 only.
type Answered = (http::response::Parts, Result<Vec<u8>, FetchError>);

fn request(url: &Url, known: Option<&Validators>) -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = url.uri().clone();
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    const AGENT: &str = concat!("tower-spiffe/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    if let Some(known) = known {
        if let Some(etag) = &known.etag {
            headers.insert(IF_NONE_MATCH, etag.clone());
        }
        if let Some(date) = &known.last_modified {
            headers.insert(IF_MODIFIED_SINCE, date.clone());
        }
    }
    request
}

/// Sends the request over this stream and reads the response.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &Url,
    request: Request<()>,
) -> Result<Answered, FetchError> {
    let failed = |error: hyper::Error| FetchError::of("the HTTP exchange failed", error);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    // Dropped with this function, which reads the whole response.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut request = request.map(|()| String::new());
    let host = HeaderValue::from_str(url.authority());
    let host = host.map_err(|error| FetchError::of("the host is invalid", error))?;
    request.headers_mut().insert(HOST, host);
    *request.uri_mut() = url.request_target();
    let response = sender.send_request(request).await.map_err(failed)?;
    let (head, body) = response.into_parts();
    let body = read_if_ok(&head, body).await;
    Ok((head, body))
}

async fn connect(
    config: &Arc<ClientConfig>,
    url: &Url,
) -> Result<TlsStream<TcpStream>, FetchError> {
    let name = ServerName::try_from(url.host().to_owned())
        .map_err(|error| FetchError::of("the host is neither a DNS name nor an address", error))?;
    let target = (url.host().to_owned(), url.port());
    // Not in the runtime's blocking pool, which the application may fill.
    let resolved = own_thread::run(move || target.to_socket_addrs()).await;
    let addresses: Vec<SocketAddr> = resolved
        .unwrap_or_else(|| Err(io::Error::other("it panicked")))
        .map_err(|error| FetchError::of("the host name cannot be resolved", error))?
        .collect();
    let tcp = first_of(addresses, TcpStream::connect)
        .await
        .map_err(|error| FetchError::of("the connection failed", error))?;
    TlsConnector::from(config.clone())
        .connect(name, tcp)
        .await
        .map_err(|error| match tls::rejection(&error) {
            Some(why) => FetchError::of("the TLS handshake failed", why),
            None => FetchError::of("the TLS handshake failed", error),
        })
}

/// The first connection that succeeds. An address that does not respond, of a broken IPv6 network for
/// example, delays the next one only briefly.
async fn first_of<T, F>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T>
where
    T: Send + 'static,
    F: Future<Output = io::Result<T>> + Send + 'static,
{
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let mut addresses = addresses.into_iter();
    let mut attempts = JoinSet::new();
    loop {
        if let Some(address) = addresses.next() {
            attempts.spawn(connect(address));
        }
        match timeout(NEXT_ADDRESS, attempts.join_next()).await {
            Ok(Some(Ok(Ok(connection)))) => return Ok(connection),
            Ok(Some(Ok(Err(error)))) => failed = error,
            Ok(Some(Err(panicked))) => failed = io::Error::other(panicked),
            Ok(None) => return Err(failed),
            Err(_) => {}
        }
    }
}

async fn read_if_ok<B>(head: &http::response::Parts, body: B) -> Result<Vec<u8>, FetchError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    if head.status != StatusCode::OK {
        return Ok(Vec::new());
    }
    // Never decompressed: a small response could become a large one.
    let encoding = head.headers.get(CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let text = "the response is compressed, although the request did not allow it";
        return Err(FetchError::new(text));
    }
    match body::read(body, MAX_BODY).await {
        Ok(Some(read)) => Ok(read),
        Ok(None) => Err(FetchError::too_large()),
        Err(error) => Err(FetchError::of("the response ended too early", error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn h13_dead_address_delays_the_next_briefly() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let connect = |address: SocketAddr| async move {
            match address.port() {
                1 => std::future::pending().await,
                2 => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                port => Ok(port),
            }
        };
        let began = tokio::time::Instant::now();
        let found = first_of([1, 2, 3, 4].map(address).to_vec(), connect).await;
        assert_eq!((found.unwrap(), began.elapsed()), (3, NEXT_ADDRESS));
        let error = first_of(vec![address(2)], connect).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let none = first_of(Vec::new(), connect).await.unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
        let dead = timeout(CONNECT_WITHIN, first_of(vec![address(1)], connect)).await;
        assert!(dead.is_err(), "it waits without a busy loop");
    }
}
