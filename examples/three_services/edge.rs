//! The first service: an axum service that calls `reports` with tonic.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tower::Layer;
use tower_spiffe::{Allow, JwtSource, ValidateJwtSvidLayer, Validator, VerifiedSvid};

use crate::{EDGE, Error, SHOP, WEB, reports, seen};

/// Starts the service. Returns its origin.
pub(crate) async fn serve(source: JwtSource, reports_at: &str) -> Result<String, Error> {
    // One source for the client ...
    let reports = reports::Client::new(source.clone(), EDGE, reports_at)?;
    // ... and the server.
    let validator = Validator::builder(source).audience(EDGE).build()?;
    let router = Router::new()
        .route("/today", get(today))
        .with_state(reports);
    let callers = Allow::one_of([WEB, SHOP])?;
    let app = ValidateJwtSvidLayer::required(validator, callers).layer(router);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, Router::new().fallback_service(app)).into_future());
    Ok(origin)
}

async fn today(
    caller: VerifiedSvid,
    State(reports): State<reports::Client>,
) -> Result<String, (StatusCode, String)> {
    let further = reports.today().await;
    let further = further.map_err(|status| (StatusCode::BAD_GATEWAY, status.to_string()))?;
    Ok(seen(caller.spiffe_id().as_str(), EDGE) + &further)
}
