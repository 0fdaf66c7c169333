//! A proxy that forwards requests of verified callers without their tokens:
//! `cargo run --example proxy`.
//!
//! Response bodies are hyper's `Incoming`, which a layer cannot create, so `on_reject` sets the body of
//! rejections. It uses the agent at `SPIFFE_ENDPOINT_SOCKET`, or starts its own
//! (`testing::FakeAgent`). It sends requests to itself, and ends.

#![allow(clippy::print_stdout, reason = "the output is for users")]

use axum::Router;
use axum::routing::any;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::request::Parts;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::{Layer, service_fn};
use tower_spiffe::server::{Allow, CallerState, Rejection, ValidateJwtSvidLayer};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{JwtSource, Validator};

type Error = Box<dyn std::error::Error + Send + Sync>;

const PROXY: &str = "spiffe://example.org/proxy";

async fn proxy(
    listener: TcpListener,
    upstream: String,
    source: JwtSource,
    callers: String,
) -> Result<(), Error> {
    let validator = Validator::builder(source).audience(PROXY).build()?;
    let layer = ValidateJwtSvidLayer::required(validator, Allow::trust_domain(&callers)?)
        .on_reject(|rejection: &Rejection, _: &Parts| {
            let body = Full::new(Bytes::from(format!("{rejection}\n")));
            rejection.response_with(Either::<Incoming, _>::Right(body))
        });

    let client = Client::builder(TokioExecutor::new()).build_http();
    let forward = service_fn(move |request| forward(client.clone(), upstream.clone(), request));
    let service = TowerToHyperService::new(layer.layer(forward));
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

async fn forward(
    client: Client<HttpConnector, Incoming>,
    upstream: String,
    mut request: Request<Incoming>,
) -> Result<Response<Either<Incoming, Full<Bytes>>>, Error> {
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    *request.uri_mut() = format!("http://{upstream}{path}").parse::<Uri>()?;
    let state = CallerState::from_extensions(request.extensions());
    let caller = state.and_then(CallerState::verified).ok_or("no caller")?;
    let caller = caller.spiffe_id().as_str().parse()?;
    request.headers_mut().remove(HOST);
    request.headers_mut().insert("x-caller", caller);
    Ok(client.request(request).await?.map(Either::Left))
}

/// The upstream: returns what the proxy forwarded.
async fn upstream_handler(headers: HeaderMap) -> String {
    let token = headers.contains_key(AUTHORIZATION);
    format!(
        "called by {:?}, with a token: {token}\n",
        headers.get("x-caller")
    )
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (source, _agent) = source().await?;
    let me = source.get_jwt_svid([PROXY]).await?.spiffe_id().clone();
    let callers = me.trust_domain_name().to_owned();
    let upstream = TcpListener::bind("127.0.0.1:0").await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = upstream.local_addr()?.to_string();
    let base = format!("http://{}/x", listener.local_addr()?);
    tokio::spawn(
        axum::serve(upstream, Router::new().route("/x", any(upstream_handler))).into_future(),
    );
    tokio::spawn(proxy(listener, address, source.clone(), callers));

    let client = reqwest::Client::new();
    let token = source.authorization(PROXY).await?;
    let known = client
        .post(&base)
        .header(AUTHORIZATION, token)
        .body("x")
        .send()
        .await?;
    let unknown = client.post(&base).body("x").send().await?;
    for (response, expected) in [(known, 200), (unknown, 401)] {
        let status = response.status();
        print!("{status} {}", response.text().await?);
        if status.as_u16() != expected {
            return Err(format!("expected {expected}").into());
        }
    }
    Ok(())
}

/// Returns a source on the agent at `SPIFFE_ENDPOINT_SOCKET`, or on an embedded agent if it is not set.
async fn source() -> Result<(JwtSource, Option<FakeAgent>), Error> {
    if let Some(socket) = std::env::var_os("SPIFFE_ENDPOINT_SOCKET") {
        println!("Workload API: the agent at {}", socket.display());
        return Ok((JwtSource::new().await?, None));
    }
    let agent = FakeAgent::start("example.org").await?;
    Ok((agent.source().await?, Some(agent)))
}
