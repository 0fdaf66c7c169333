//! reqwest to two services, by a middleware: `cargo run --example client_reqwest_middleware`.
//!
//! Takes the agent that `SPIFFE_ENDPOINT_SOCKET` names, or brings one of its own
//! (`testing::FakeAgent`); brings two services to call, and ends. In earnest the source is
//! `JwtSource::new().await?`, the services are at `https://`, and nothing is said of plaintext.

#![allow(clippy::print_stdout, reason = "it is there to be read")]

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
        // It heeds HTTP_PROXY even for loopback, and a proxy reads what goes by http.
        .no_proxy()
        .build()?;

    // Two services in two lines: each origin has its audience, every other goes without a token.
    let tokens = JwtSvidMiddleware::new(source, [(&reports, REPORTS), (&ledger, LEDGER)])?;
    let client = ClientBuilder::new(reqwest)
        // Middlewares run in the order in which they are added. One that retries is added before
        // this one, so that each try asks for the token anew; caching and tracing may stand on
        // either side, for the header is marked sensitive. Beneath all of them reqwest follows
        // redirects, and takes the token off when a hop leads to another origin.
        .with(tokens.allow_plaintext(Plaintext::Loopback))
        .build();

    for (origin, service) in [(&reports, REPORTS), (&ledger, LEDGER)] {
        let response = client.get(format!("{origin}/whoami")).send().await?;
        let body = response.error_for_status()?.text().await?;
        println!("GET {origin}/whoami -> {body}");
        if !body.starts_with(&format!("{service} was called by spiffe://")) {
            return Err("expected to be admitted".into());
        }
    }

    // Another audience for one request: the ledger refuses a token that is for somebody else.
    let wrong = Audience::fixed(REPORTS).for_origin(&ledger)?;
    let request = client.get(format!("{ledger}/whoami")).with_extension(wrong);
    let status = request.send().await?.status();
    println!("GET {ledger}/whoami with a token for {REPORTS} -> {status}");
    if status != 401 {
        return Err("expected a refusal".into());
    }

    // Where no token can be had, the request does not go out, and the error is ours to be found.
    let nowhere = Audience::fixed(REPORTS).for_origin("http://reports.example.org")?;
    let request = client.get("http://reports.example.org/whoami");
    let Err(error) = request.with_extension(nowhere).send().await else {
        return Err("expected no answer".into());
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

/// Serves one that says who calls; gives its origin.
async fn serve(source: &JwtSource, service: &'static str) -> Result<String, Error> {
    let validator = Validator::builder(source.clone())
        .audience(service)
        .build()?;
    let who =
        async move |caller: VerifiedSvid| format!("{service} was called by {}", caller.spiffe_id());
    let router = Router::new().route("/whoami", get(who));
    // An example admits whoever its agent's issuer knows; a service names its callers.
    let app = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain()).layer(router);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, Router::new().fallback_service(app)).into_future());
    Ok(origin)
}
