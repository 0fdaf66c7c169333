//! Rejects every request of the programs that `interop/rejections.sh` runs.
//!
//! Prints its address on one line, and runs until it is killed. The layer rejects requests to
//! `/layer`; an extractor of the handler rejects requests to `/extractor`.

#![allow(clippy::print_stdout, reason = "the script reads it")]

use axum::Router;
use axum::routing::post;
use tokio::net::TcpListener;
use tower_spiffe::bundle::{FixedBundles, JwtBundleSet};
use tower_spiffe::{Allow, ValidateJwtSvidLayer, Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    // No client sends a token, so no key is needed.
    let bundles = FixedBundles::new(JwtBundleSet::default());
    let validator = Validator::builder(bundles).audience("interop").build()?;
    let policy = Allow::trust_domain("example.org")?;
    let required = ValidateJwtSvidLayer::required(validator.clone(), policy.clone());
    let optional = ValidateJwtSvidLayer::optional(validator, policy);
    let app = Router::new()
        .route("/layer", post(async |body: String| body).layer(required))
        .route(
            "/extractor",
            post(async |_: VerifiedSvid, body: String| body).layer(optional),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
