//! The layer in tower-http's own `ValidateRequestHeaderLayer`, in a stack with other layers:
//! `cargo run --example server_tower_http`.
//!
//! It uses the agent at `SPIFFE_ENDPOINT_SOCKET`, or starts its own (`testing::FakeAgent`); it
//! calls itself, and ends. In production the source is `JwtSource::new().await?`, and `main` ends
//! with `axum::serve`.

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
        // axum serves bodies of its own type; tracing wraps them.
        .layer(MapResponseBodyLayer::new(Body::new))
        // The trace layer is outside of ours, so credentials are marked before it.
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION]))
        .layer(TraceLayer::new_for_http())
        // The body type of the rejections: the router's own.
        .layer(ValidateRequestHeaderLayer::custom(
            svid.into_validate_request::<Body>(),
        ));
    // Around the finished router, so that its fallback is guarded too.
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
        ("anonymous", None, "/no/such/path", 401),
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

/// A source on the agent at `SPIFFE_ENDPOINT_SOCKET`; without one, on an agent of our own.
async fn source() -> Result<(JwtSource, Option<FakeAgent>), Error> {
    if let Some(socket) = std::env::var_os("SPIFFE_ENDPOINT_SOCKET") {
        println!("Workload API: the agent at {}", socket.display());
        return Ok((JwtSource::new().await?, None));
    }
    let agent = FakeAgent::start("example.org").await?;
    Ok((agent.source().await?, Some(agent)))
}
