//! A service that is watched: it serves `/metrics` in Prometheus' format, has a good caller and bad
//! ones, and an agent that has a bad day. Prints one scrape, and ends.
//!
//! ```text
//! cargo run --example observability
//! ```
//!
//! Beside this file: a Grafana dashboard and alert rules over what is printed.

use std::sync::Arc;

use axum::extract::Request;
use axum::routing::get;
use axum::{Router, ServiceExt};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tower::Layer;
use tower_spiffe::client::Plaintext;
use tower_spiffe::metrics::{FacadeRecorder, METRICS, MetricsRecorder};
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault};
use tower_spiffe::token::GrpcCode;
use tower_spiffe::{
    AddJwtSvidLayer, Allow, Audience, JwtSource, ValidateJwtSvidLayer, Validator, VerifiedSvid,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const AUDIENCE: &str = "spiffe://example.org/reports";
const WEB: &str = "spiffe://example.org/web";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // The exporter first: counts without an exporter are lost.
    let scrape = exporter()?;
    let recorder: Arc<dyn MetricsRecorder> = Arc::new(FacadeRecorder::new());

    // In production: without `endpoint`, so that SPIFFE_ENDPOINT_SOCKET names the agent.
    let agent = FakeAgent::start("example.org").await?;
    agent.register(WEB, "", std::time::Duration::from_secs(300))?;
    let source = JwtSource::builder()
        .endpoint(agent.endpoint())
        .metrics(recorder)
        .build()
        .await?;
    let server = serve(&source, scrape).await?;

    // A good caller: this same workload, with tokens from the agent.
    let audience = Audience::fixed(AUDIENCE).for_origin(&server)?;
    let client = AddJwtSvidLayer::new(source.clone(), audience)
        .allow_plaintext(Plaintext::Loopback)
        .layer(reqwest::Client::new());
    let reports = format!("{server}/reports");
    for _ in 0..3 {
        let request = reqwest::Client::new().get(&reports).build()?;
        let answer = tower::ServiceExt::oneshot(client.clone(), request).await?;
        assert_eq!(answer.status(), 200);
    }
    // One without a token, and one that the policy denies.
    let plain = reqwest::Client::new();
    assert_eq!(plain.get(&reports).send().await?.status(), 401);
    let stranger = agent.token("spiffe://example.org/stranger", AUDIENCE);
    let request = plain.get(&reports).bearer_auth(stranger);
    assert_eq!(request.send().await?.status(), 403);
    // The agent has no token for a service that we call.
    agent.fail_call(
        AgentCall::FetchJwtSvid,
        Fault::Refuse(GrpcCode::Unavailable),
    );
    assert!(source.get_jwt_svid(["ledger"]).await.is_err());

    let text = plain.get(format!("{server}/metrics")).send().await?;
    print(&text.text().await?)?;
    Ok(())
}

/// Installs the exporter. Without buckets a histogram is told as quantiles, which cannot be added
/// up over many processes.
fn exporter() -> Result<PrometheusHandle, BoxError> {
    let mut exporter = PrometheusBuilder::new();
    for metric in METRICS.iter().filter(|metric| !metric.buckets.is_empty()) {
        let name = Matcher::Full(metric.name.to_owned());
        exporter = exporter.set_buckets_for_metric(name, metric.buckets)?;
    }
    Ok(exporter.install_recorder()?)
}

/// Reports for `web` alone; the metrics for everybody who may reach us, outside of the layer.
async fn serve(source: &JwtSource, scrape: PrometheusHandle) -> Result<String, BoxError> {
    let validator = Validator::builder(source.clone())
        .audience(AUDIENCE)
        .build()?;
    let layer = ValidateJwtSvidLayer::required(validator, Allow::id(WEB)?);
    let hello = async |caller: VerifiedSvid| format!("hello, {}\n", caller.spiffe_id());
    let app = Router::new()
        .route("/reports", get(hello).layer(layer))
        .route("/metrics", get(async move || scrape.render()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        axum::serve(listener, ServiceExt::<Request>::into_make_service(app)).await
    });
    Ok(format!("http://{address}"))
}

fn print(text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    std::io::stdout().lock().write_all(text.as_bytes())
}
