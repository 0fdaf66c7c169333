//! An axum server that verifies its callers: `cargo run --example server_axum`.
//!
//! It uses the agent at `SPIFFE_ENDPOINT_SOCKET`, or starts its own (`testing::FakeAgent`). It
//! sends requests to itself, and ends. In production the source is `JwtSource::new().await?`, and `main` ends
//! with `axum::serve`.

#![allow(clippy::print_stdout, reason = "the output is for users")]

use axum::extract::Request;
use axum::routing::{get, post};
use axum::{Router, ServiceExt};
use reqwest::header::AUTHORIZATION;
use tower::Layer;
use tower_spiffe::server::{Allow, AllowCallersLayer, ValidateJwtSvidLayer};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{JwtSource, Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The audience of this service: callers request tokens for it.
const REPORTS: &str = "spiffe://example.org/reports";

/// The service. The layer wraps the complete router: `Router::route_layer` would not cover the
/// fallback, nested fallbacks and routes that are added later.
fn app(source: JwtSource, trust_domain: &str) -> Result<ValidatedRouter, Error> {
    let validator = Validator::builder(source).audience(REPORTS).build()?;
    let everyone = Allow::trust_domain(trust_domain)?;
    let only_ops =
        AllowCallersLayer::new(Allow::id(format!("spiffe://{trust_domain}/ops").as_str())?);
    let router = Router::new()
        .route("/reports", get(reports))
        .route("/reports/delete", post(delete).layer(only_ops));
    Ok(ValidateJwtSvidLayer::required(validator, everyone).layer(router))
}

type ValidatedRouter = tower_spiffe::server::ValidateJwtSvid<Router>;

async fn reports(caller: VerifiedSvid) -> String {
    format!("reports for {}", caller.spiffe_id())
}

async fn delete(caller: VerifiedSvid) -> String {
    format!("deleted by {}", caller.spiffe_id())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (source, agent) = source().await?;
    let me = source.get_jwt_svid([REPORTS]).await?.spiffe_id().clone();
    let ops = format!("spiffe://{}/ops", me.trust_domain_name());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let app = app(source.clone(), me.trust_domain_name())?;
    let app = ServiceExt::<Request>::into_make_service(app);
    tokio::spawn(axum::serve(listener, app).into_future());

    let our_token = source.authorization(REPORTS).await?;
    let ours = Some((me.as_str(), our_token));
    let may_we_delete = if me.as_str() == ops { 200 } else { 403 };
    let mut calls = vec![
        (ours.clone(), "GET", "/reports", 200),
        (ours, "POST", "/reports/delete", may_we_delete),
        (None, "GET", "/reports", 401),
        (None, "GET", "/no/such/path", 401),
    ];
    match agent {
        Some(agent) => {
            let token = agent.bearer(&ops, REPORTS);
            calls.push((Some((&ops, token)), "POST", "/reports/delete", 200));
        }
        None => println!(
            "skipped: a call of {ops}, because a real agent issues only this workload's tokens"
        ),
    }
    for (caller, method, path, expected) in calls {
        let mut request = reqwest::Client::new().request(method.parse()?, format!("{base}{path}"));
        let mut name = "anonymous";
        if let Some((id, token)) = caller {
            name = id;
            request = request.header(AUTHORIZATION, token);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        println!(
            "{name}: {method} {path} -> {status} {}",
            response.text().await?
        );
        if status != expected {
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
