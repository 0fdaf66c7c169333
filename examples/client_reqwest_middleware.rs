//! Calls two services with reqwest and a middleware: `cargo run --example client_reqwest_middleware`.
//!
//! Uses the agent at `SPIFFE_ENDPOINT_SOCKET`, or starts its own (`testing::FakeAgent`). Calls two
//! services of its own. In production the source is `JwtSource::new().await?`, the services are at
//! `https://`, and `allow_plaintext` is not needed.

#![allow(clippy::print_stdout, reason = "the output is for users")]

use axum::{Router, routing::get};
use reqwest_middleware::ClientBuilder;
use tokio::net::TcpListener;
use tower::Layer;
use tower_spiffe::client::JwtSvidMiddleware;
use tower_spiffe::client::Plaintext;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::token::TokenError;
use tower_spiffe::{Allow, Audience, JwtSource};
use tower_spiffe::{ValidateJwtSvidLayer, Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";
const LEDGER: &str = "spiffe://example.org/ledger";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (source, _agent) = source().await?;
    let reports = serve(&source, REPORTS).await?;
    let ledger = serve(&source, LEDGER).await?;
    let reqwest = reqwest::Client::builder()
        // reqwest uses HTTP_PROXY even for loopback, and a proxy can read http requests.
        .no_proxy()
        .build()?;

    // Each origin has its audience. Requests to other origins are sent without a token.
    let tokens = JwtSvidMiddleware::new(source, [(&reports, REPORTS), (&ledger, LEDGER)])?;
    let client = ClientBuilder::new(reqwest)
        // Middlewares run in the order in which they are added. Add retries before this one, so that
        // each try gets the current token. Caching and tracing may go on either side, because the
        // header is marked sensitive. reqwest follows redirects inside all of them, and removes the
        // token if a hop leads to another origin.
        .with(tokens.allow_plaintext(Plaintext::Loopback))
        .build();

    for (origin, service) in [(&reports, REPORTS), (&ledger, LEDGER)] {
        let response = client.get(format!("{origin}/whoami")).send().await?;
        let body = response.error_for_status()?.text().await?;
        println!("GET {origin}/whoami -> {body}");
        if !body.starts_with(&format!("{service} was called by spiffe://")) {
            return Err("expected the name of the caller".into());
        }
    }

    // Another audience for one request: the ledger rejects a token for another service.
    let wrong = Audience::fixed(REPORTS).for_origin(&ledger)?;
    let request = client.get(format!("{ledger}/whoami")).with_extension(wrong);
    let status = request.send().await?.status();
    println!("GET {ledger}/whoami with a token for {REPORTS} -> {status}");
    if status != 401 {
        return Err("expected a rejection".into());
    }

    // If there is no token, the request is not sent, and the error contains a `TokenError`.
    let nowhere = Audience::fixed(REPORTS).for_origin("http://reports.example.org")?;
    let request = client.get("http://reports.example.org/whoami");
    let Err(error) = request.with_extension(nowhere).send().await else {
        return Err("expected an error".into());
    };
    println!("GET http://reports.example.org/whoami -> {error}");
    if TokenError::find(&error).is_none() {
        return Err("expected an error of the middleware".into());
    }
    Ok(())
}

async fn source() -> Result<(JwtSource, Option<FakeAgent>), Error> {
    if std::env::var_os("SPIFFE_ENDPOINT_SOCKET").is_some() {
        return Ok((JwtSource::new().await?, None));
    }
    let agent = FakeAgent::start("example.org").await?;
    Ok((agent.source().await?, Some(agent)))
}

/// Serves a service that returns its caller. Returns its origin.
async fn serve(source: &JwtSource, service: &'static str) -> Result<String, Error> {
    let validator = Validator::builder(source.clone())
        .audience(service)
        .build()?;
    let who =
        async move |caller: VerifiedSvid| format!("{service} was called by {}", caller.spiffe_id());
    let router = Router::new().route("/whoami", get(who));
    // An example allows every identity of its agent; a real service names its callers.
    let app = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain()).layer(router);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, Router::new().fallback_service(app)).into_future());
    Ok(origin)
}
