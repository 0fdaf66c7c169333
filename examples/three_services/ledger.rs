//! The last service: an axum service that only `reports` may call.

use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tower::Layer;
use tower_spiffe::{Allow, JwtSource, ValidateJwtSvidLayer, Validator, VerifiedSvid};

use crate::{Error, LEDGER, REPORTS, seen};

/// Starts the service. Returns its origin.
pub(crate) async fn serve(source: JwtSource) -> Result<String, Error> {
    let validator = Validator::builder(source).audience(LEDGER).build()?;
    let router = Router::new().route("/entries", get(entries));
    let app = ValidateJwtSvidLayer::required(validator, Allow::id(REPORTS)?).layer(router);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, Router::new().fallback_service(app)).into_future());
    Ok(origin)
}

async fn entries(caller: VerifiedSvid) -> String {
    seen(caller.spiffe_id().as_str(), LEDGER)
}
