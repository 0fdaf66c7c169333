//! A plain hyper server, on a Unix socket, whose callers are known:
//! `cargo run --example server_hyper`.
//!
//! It brings an agent of its own (`testing::WorkloadApi`), calls itself, and ends. In earnest the
//! source is `JwtSource::new().await?`.

#![allow(clippy::print_stdout, reason = "it is there to be read")]
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
use tower_spiffe::testing::WorkloadApi;
use tower_spiffe::{JwtSource, Validator};

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";

/// The layer is `optional`, and its policy allows anonymous callers too.
async fn reports(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = match CallerState::of(request.extensions()) {
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
    println!("there are no Unix sockets here; examples/server_axum.rs serves over TCP");
}

#[cfg(unix)]
#[tokio::main]
async fn main() -> Result<(), Error> {
    let agent = WorkloadApi::start("example.org").await?;
    let path = std::env::temp_dir().join(format!("server-hyper-{}.sock", std::process::id()));
    tokio::spawn(serve(UnixListener::bind(&path)?, agent.source().await?));

    let web = agent.bearer("spiffe://example.org/web", REPORTS);
    let for_another = agent.bearer("spiffe://example.org/web", "spiffe://example.org/ledger");
    for (authorization, expected) in [(Some(web), 200), (None, 200), (Some(for_another), 401)] {
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
