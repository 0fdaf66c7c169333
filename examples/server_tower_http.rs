//! The verdict in tower-http's own `ValidateRequestHeaderLayer`, among the other layers of a stack:
//! `cargo run --example server_tower_http`.
//!
//! It brings an agent of its own (`testing::WorkloadApi`), calls itself, and ends. In earnest the
//! source is `JwtSource::new().await?`, and `main` ends with `axum::serve`.

#![allow(clippy::print_stdout, reason = "it is there to be read")]

use axum::body::Body;
use axum::extract::Request;
use axum::routing::get;
use axum::{Router, ServiceExt};
use reqwest::header::AUTHORIZATION;
use tower::ServiceBuilder;
use tower_http::map_response_body::MapResponseBodyLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::trace::TraceLayer;
use tower_http::validate_request::ValidateRequestHeaderLayer;
use tower_spiffe::server::{Allow, ValidateJwtSvidLayer};
use tower_spiffe::testing::WorkloadApi;
use tower_spiffe::{Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";

async fn reports(caller: VerifiedSvid) -> String {
    format!("reports for {}", caller.spiffe_id())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let agent = WorkloadApi::start("example.org").await?;
    let validator = Validator::builder(agent.source().await?)
        .audience(REPORTS)
        .build()?;
    let svid = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org")?);
    let stack = ServiceBuilder::new()
        // axum serves bodies of its own type; tracing wraps them.
        .layer(MapResponseBodyLayer::new(Body::new))
        // What traces requests stands outside, so credentials are marked before it.
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION]))
        .layer(TraceLayer::new_for_http())
        // The body type is that of the refusals: the router's own.
        .layer(ValidateRequestHeaderLayer::custom(
            svid.into_validate_request::<Body>(),
        ));
    // Around the finished router, so that its fallback is guarded too.
    let app = stack.service(Router::new().route("/reports", get(reports)));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let app = ServiceExt::<Request>::into_make_service(app);
    tokio::spawn(axum::serve(listener, app).into_future());

    let web = agent.bearer("spiffe://example.org/web", REPORTS);
    let for_another = agent.bearer("spiffe://example.org/web", "spiffe://example.org/ledger");
    for (what, token, path, expected) in [
        ("web", Some(&web), "/reports", 200),
        ("for another audience", Some(&for_another), "/reports", 401),
        ("nobody", None, "/no/such/path", 401),
    ] {
        let mut request = reqwest::Client::new().get(format!("{base}{path}"));
        if let Some(value) = token {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        println!("{what}: {path} -> {status} {}", response.text().await?);
        if status != expected {
            return Err(format!("expected {expected}").into());
        }
    }
    Ok(())
}
