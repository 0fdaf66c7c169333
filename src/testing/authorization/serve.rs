//! The token endpoint on a TCP port.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tower_service::Service;

use super::State;
use super::endpoint::FakeTokenEndpoint;
use crate::testing::error::Error;

const MAX_BODY: usize = 1 << 20;

/// Opens a free port; returns the origin too.
pub(super) async fn listen() -> Result<(TcpListener, String), Error> {
    let at = "127.0.0.1:0";
    let failed = |error| Error::Listen {
        endpoint: format!("tcp://{at}"),
        error: Arc::new(error),
    };
    let listener = TcpListener::bind(at).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, format!("http://{address}")))
}

/// Serves until the task is ended; its connections end with it.
pub(super) async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((io, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let service = TowerToHyperService::new(Front(FakeTokenEndpoint::new(state.clone())));
        connections.spawn(async move {
            // An error needs no handling: the client sees the end of the connection.
            let builder = auto::Builder::new(TokioExecutor::new()).http1_only();
            let _ = builder.serve_connection(TokioIo::new(io), service).await;
        });
    }
}

/// Reads the bodies of requests.
#[derive(Clone)]
struct Front(FakeTokenEndpoint);

type Answer = Pin<Box<dyn Future<Output = io::Result<Response<Full<Bytes>>>> + Send>>;

impl<B> Service<Request<B>> for Front
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Full<Bytes>>;
    type Error = io::Error;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Answer {
        let mut endpoint = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await;
            let body = body.map_err(io::Error::other)?.to_bytes();
            endpoint.call(Request::from_parts(head, body)).await
        })
    }
}
