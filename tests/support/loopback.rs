//! Servers and clients over real sockets: TCP and Unix, HTTP/1.1 and HTTP/2.

#[cfg(unix)]
use std::path::PathBuf;
#[cfg(unix)]
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};

#[cfg(unix)]
use crate::temp::TempDir;

/// The listeners of one server: TCP, and a Unix socket if the platform has them.
pub struct Doors {
    pub tcp: TcpListener,
    #[cfg(unix)]
    pub unix: UnixListener,
    pub at: At,
}

/// The addresses of the listeners.
#[derive(Clone)]
pub struct At {
    pub tcp: std::net::SocketAddr,
    #[cfg(unix)]
    pub unix: PathBuf,
    // Removes the socket with the last clone.
    #[cfg(unix)]
    _dir: Arc<TempDir>,
}

impl Doors {
    pub async fn open() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        #[cfg(unix)]
        let dir = Arc::new(TempDir::new());
        #[cfg(unix)]
        let path = dir.join("server.sock");
        Self {
            at: At {
                tcp: tcp.local_addr().unwrap(),
                #[cfg(unix)]
                unix: path.clone(),
                #[cfg(unix)]
                _dir: dir,
            },
            tcp,
            #[cfg(unix)]
            unix: UnixListener::bind(path).unwrap(),
        }
    }
}

impl At {
    /// Sends the request over each listener, in both versions of HTTP; returns all responses.
    pub async fn ask(&self, request: Request<Bytes>) -> Vec<Response<Bytes>> {
        let mut answers = Vec::new();
        for http2 in [false, true] {
            let tcp = TcpStream::connect(self.tcp).await.unwrap();
            answers.push(send(tcp, http2, request.clone()).await);
            #[cfg(unix)]
            {
                let unix = UnixStream::connect(&self.unix).await.unwrap();
                answers.push(send(unix, http2, request.clone()).await);
            }
        }
        answers
    }

    /// Returns the status of the responses, which must be equal.
    pub async fn status(&self, request: Request<Bytes>) -> u16 {
        let answers = self.ask(request).await;
        let first = answers[0].status();
        assert!(
            answers.iter().all(|answer| answer.status() == first),
            "{answers:?}"
        );
        first.as_u16()
    }

    /// Returns status and text of the responses, which must be equal.
    pub async fn text(&self, request: Request<Bytes>) -> (u16, String) {
        let answers = self.ask(request).await;
        let first = (answers[0].status().as_u16(), answers[0].body().clone());
        assert!(
            answers
                .iter()
                .all(|answer| (answer.status().as_u16(), answer.body()) == (first.0, &first.1)),
            "{answers:?}"
        );
        (first.0, String::from_utf8(first.1.to_vec()).unwrap())
    }
}

/// One request over one connection.
pub async fn send<I>(io: I, http2: bool, request: Request<Bytes>) -> Response<Bytes>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let response = stream(io, http2, request).await;
    let (parts, body) = response.into_parts();
    Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

/// One request over one connection; returns the response before its body is complete.
pub async fn stream<I>(
    io: I,
    http2: bool,
    request: Request<Bytes>,
) -> Response<hyper::body::Incoming>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(io);
    let (mut parts, body) = request.into_parts();
    let body = Full::new(body);
    if http2 {
        let uri = format!("http://reports.test{}", parts.uri);
        parts.uri = uri.parse().unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .unwrap();
        tokio::spawn(connection);
        sender
            .send_request(Request::from_parts(parts, body))
            .await
            .unwrap()
    } else {
        parts
            .headers
            .insert("host", "reports.test".parse().unwrap());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        sender
            .send_request(Request::from_parts(parts, body))
            .await
            .unwrap()
    }
}

pub fn get(path: &str, authorization: Option<&http::HeaderValue>) -> Request<Bytes> {
    let mut request = Request::builder().uri(path).body(Bytes::new()).unwrap();
    if let Some(value) = authorization {
        request.headers_mut().insert("authorization", value.clone());
    }
    request
}
