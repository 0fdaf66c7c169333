//! An axum server whose callers are known: `cargo run --example server_axum`.
//!
//! It brings an agent of its own (`testing::WorkloadApi`), calls itself, and ends. In earnest the
//! source is `JwtSource::new().await?`, and `main` ends with `axum::serve`.

#![allow(clippy::print_stdout, reason = "it is there to be read")]

use axum::extract::Request;
use axum::routing::{get, post};
use axum::{Router, ServiceExt};
use reqwest::header::AUTHORIZATION;
use tower::Layer;
use tower_spiffe::server::{Allow, AllowCallersLayer, ValidateJwtSvidLayer};
use tower_spiffe::testing::WorkloadApi;
use tower_spiffe::{JwtSource, Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What callers name as the audience of their tokens: this service.
const REPORTS: &str = "spiffe://example.org/reports";

/// The service. The layer goes around the finished router: `Router::route_layer` would leave the
/// fallback, nested fallbacks and every later route open.
fn app(source: JwtSource) -> Result<ValidatedRouter, Error> {
    let validator = Validator::builder(source).audience(REPORTS).build()?;
    let everyone = Allow::trust_domain("example.org")?;
    let only_ops = AllowCallersLayer::new(Allow::id("spiffe://example.org/ops")?);
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
    let agent = WorkloadApi::start("example.org").await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let app = ServiceExt::<Request>::into_make_service(app(agent.source().await?)?);
    tokio::spawn(axum::serve(listener, app).into_future());

    let web = Some("spiffe://example.org/web");
    let ops = Some("spiffe://example.org/ops");
    for (caller, method, path, expected) in [
        (web, "GET", "/reports", 200),
        (web, "POST", "/reports/delete", 403),
        (ops, "POST", "/reports/delete", 200),
        (None, "GET", "/reports", 401),
        (None, "GET", "/no/such/path", 401),
    ] {
        let mut request = reqwest::Client::new().request(method.parse()?, format!("{base}{path}"));
        if let Some(id) = caller {
            request = request.header(AUTHORIZATION, agent.bearer(id, REPORTS));
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let caller = caller.unwrap_or("nobody");
        println!(
            "{caller}: {method} {path} -> {status} {}",
            response.text().await?
        );
        if status != expected {
            return Err(format!("expected {expected}").into());
        }
    }
    Ok(())
}
