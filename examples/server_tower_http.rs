//! A server with tower-http's `ValidateRequestHeaderLayer`, in a stack with other layers:
//! `cargo run --example server_tower_http`.
//!
//! It uses the agent at `SPIFFE_ENDPOINT_SOCKET`, or starts its own (`testing::FakeAgent`). It
//! sends requests to itself, and ends. In production the source is `JwtSource::new().await?`, and `main` ends
//! with `axum::serve`.

#![allow(clippy::print_stdout, reason = "the output is for users")]

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
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{JwtSource, Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";

async fn reports(caller: VerifiedSvid) -> String {
    format!("reports for {}", caller.spiffe_id())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (source, _agent) = source().await?;
    let me = source.get_jwt_svid([REPORTS]).await?.spiffe_id().clone();
    let validator = Validator::builder(source.clone())
        .audience(REPORTS)
        .build()?;
    let callers = Allow::trust_domain(me.trust_domain_name())?;
    let svid = ValidateJwtSvidLayer::required(validator, callers);
    let stack = ServiceBuilder::new()
        // axum needs its own body type, but the trace layer wraps bodies.
        .layer(MapResponseBodyLayer::new(Body::new))
        // Marks credentials as sensitive before the trace layer sees them.
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION]))
        .layer(TraceLayer::new_for_http())
        // Rejections have the router's body type.
        .layer(ValidateRequestHeaderLayer::custom(
            svid.into_validate_request::<Body>(),
        ));
    // Wrap the complete router, so that its fallback is guarded too.
    let app = stack.service(Router::new().route("/reports", get(reports)));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let app = ServiceExt::<Request>::into_make_service(app);
    tokio::spawn(axum::serve(listener, app).into_future());

    let ours = source.authorization(REPORTS).await?;
    let for_another = source.authorization("spiffe://example.org/ledger").await?;
    for (what, token, path, expected) in [
        (me.as_str(), Some(&ours), "/reports", 200),
        ("for another audience", Some(&for_another), "/reports", 401),
        ("no token", None, "/no/such/path", 401),
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

/// Returns a source on the agent at `SPIFFE_ENDPOINT_SOCKET`, or on an embedded agent if it is not set.
async fn source() -> Result<(JwtSource, Option<FakeAgent>), Error> {
    if let Some(socket) = std::env::var_os("SPIFFE_ENDPOINT_SOCKET") {
        println!("Workload API: the agent at {}", socket.display());
        return Ok((JwtSource::new().await?, None));
    }
    let agent = FakeAgent::start("example.org").await?;
    Ok((agent.source().await?, Some(agent)))
}
