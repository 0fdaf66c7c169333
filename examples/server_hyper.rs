//! A plain hyper server on a Unix socket that verifies its callers:
//! `cargo run --example server_hyper`.
//!
//! It uses the agent at `SPIFFE_ENDPOINT_SOCKET`, or starts its own (`testing::FakeAgent`). It
//! sends requests to itself, and ends. In production the source is `JwtSource::new().await?`.

#![allow(clippy::print_stdout, reason = "the output is for users")]
#![cfg_attr(not(unix), allow(unused, reason = "it needs Unix sockets"))]

use std::convert::Infallible;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
use tower::{Layer, service_fn};
use tower_spiffe::server::{Allow, CallerState, ValidateJwtSvidLayer};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{JwtSource, Validator};

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";

/// The layer is `optional`, and its policy also allows anonymous callers.
async fn reports(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = match CallerState::from_extensions(request.extensions()) {
        Some(CallerState::Verified(caller)) => format!("reports for {}", caller.spiffe_id()),
        _ => "public reports".to_owned(),
    };
    Ok(Response::new(Full::from(text)))
}

#[cfg(unix)]
async fn serve(listener: UnixListener, source: JwtSource) -> Result<(), Error> {
    let validator = Validator::builder(source).audience(REPORTS).build()?;
    let layer = ValidateJwtSvidLayer::optional(validator, Allow::anyone());
    let service = TowerToHyperService::new(layer.layer(service_fn(reports)));
    loop {
        let (stream, _) = listener.accept().await?;
        let service = service.clone();
        tokio::spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[cfg(not(unix))]
fn main() {
    println!("this platform has no Unix sockets; examples/server_axum.rs serves over TCP");
}

#[cfg(unix)]
#[tokio::main]
async fn main() -> Result<(), Error> {
    let (source, _agent) = source().await?;
    let path = std::env::temp_dir().join(format!("server-hyper-{}.sock", std::process::id()));
    tokio::spawn(serve(UnixListener::bind(&path)?, source.clone()));

    let ours = source.authorization(REPORTS).await?;
    let for_another = source.authorization("spiffe://example.org/ledger").await?;
    for (authorization, expected) in [(Some(ours), 200), (None, 200), (Some(for_another), 401)] {
        let stream = TokioIo::new(UnixStream::connect(&path).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(connection);
        let mut request = Request::builder().uri("/").header("host", "reports");
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let response = sender
            .send_request(request.body(Empty::<Bytes>::new())?)
            .await?;
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await?.to_bytes().to_vec())?;
        let challenge = parts.headers.get("www-authenticate");
        println!(
            "{} {text} {}",
            parts.status,
            challenge.map_or("", |v| v.to_str().unwrap_or(""))
        );
        if parts.status.as_u16() != expected {
            return Err(format!("expected {expected}").into());
        }
    }
    std::fs::remove_file(&path)?;
    Ok(())
}

/// Returns a source on the agent at `SPIFFE_ENDPOINT_SOCKET`, or on an embedded agent if it is not set.
#[cfg(unix)]
async fn source() -> Result<(JwtSource, Option<FakeAgent>), Error> {
    if let Some(socket) = std::env::var_os("SPIFFE_ENDPOINT_SOCKET") {
        println!("Workload API: the agent at {}", socket.display());
        return Ok((JwtSource::new().await?, None));
    }
    let agent = FakeAgent::start("example.org").await?;
    Ok((agent.source().await?, Some(agent)))
}
