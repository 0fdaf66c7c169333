//! A service with Prometheus metrics at `/metrics`, allowed and rejected callers, and an agent that
//! fails. Prints one scrape, and ends. With `--serve`, it continues until Ctrl-C, so that Prometheus can
//! scrape it.
//!
//! ```text
//! cargo run --example observability
//! cargo run --example observability -- --serve 127.0.0.1:9464
//! ```
//!
//! A Grafana dashboard and alert rules for these metrics are in the same folder.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::routing::get;
use axum::{Router, ServiceExt};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tower::Layer;
use tower_spiffe::client::{AddJwtSvid, Plaintext};
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
    let mut args = std::env::args().skip(1);
    let serve_at = match args.next().as_deref() {
        None => None,
        Some("--serve") => Some(args.next().unwrap_or_else(|| "127.0.0.1:9464".to_owned())),
        Some(other) => {
            return Err(format!("unknown argument `{other}`; use `--serve [ADDRESS]`").into());
        }
    };
    // Install the exporter first: earlier counts would be lost.
    let scrape = exporter()?;
    let recorder: Arc<dyn MetricsRecorder> = Arc::new(FacadeRecorder::new());

    // In production omit `endpoint`: the source uses SPIFFE_ENDPOINT_SOCKET.
    let agent = FakeAgent::start("example.org").await?;
    agent.register(WEB, "", Duration::from_secs(300))?;
    let source = JwtSource::builder()
        .endpoint(agent.endpoint())
        .metrics(recorder)
        .build()
        .await?;
    let address = serve_at.as_deref().unwrap_or("127.0.0.1:0");
    let server = serve(&source, scrape, address).await?;

    let traffic = Traffic::new(&source, &server)?;
    traffic.callers(&agent).await?;
    traffic.failing_agent(&agent, &source).await;
    if serve_at.is_none() {
        let text = reqwest::get(format!("{server}/metrics")).await?;
        return print(&text.text().await?);
    }
    print(&format!("serving {server}/metrics; end with Ctrl-C\n"))?;
    tokio::select! {
        done = traffic.continued(&agent, &source) => done,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

/// The callers of the service.
struct Traffic {
    signed: AddJwtSvid<reqwest::Client>,
    plain: reqwest::Client,
    reports: String,
}

impl Traffic {
    fn new(source: &JwtSource, server: &str) -> Result<Self, BoxError> {
        let audience = Audience::fixed(AUDIENCE).for_origin(server)?;
        Ok(Self {
            signed: AddJwtSvidLayer::new(source.clone(), audience)
                .allow_plaintext(Plaintext::Loopback)
                .layer(reqwest::Client::new()),
            plain: reqwest::Client::new(),
            reports: format!("{server}/reports"),
        })
    }

    async fn callers(&self, agent: &FakeAgent) -> Result<(), BoxError> {
        // An allowed caller: this workload, with tokens from the agent.
        for _ in 0..3 {
            let request = self.plain.get(&self.reports).build()?;
            let response = tower::ServiceExt::oneshot(self.signed.clone(), request).await?;
            assert_eq!(response.status(), 200);
        }
        // A caller without a token, and a caller that the policy denies.
        let response = self.plain.get(&self.reports).send().await?;
        assert_eq!(response.status(), 401);
        let denied = agent.token("spiffe://example.org/unknown", AUDIENCE);
        let request = self.plain.get(&self.reports).bearer_auth(denied);
        assert_eq!(request.send().await?.status(), 403);
        Ok(())
    }

    /// The agent returns no token for another audience, once.
    async fn failing_agent(&self, agent: &FakeAgent, source: &JwtSource) {
        agent.fail_call(
            AgentCall::FetchJwtSvid,
            Fault::Refuse(GrpcCode::Unavailable),
        );
        assert!(source.get_jwt_svid(["ledger"]).await.is_err());
        agent.recover();
    }

    /// Sends requests each second, rotates the key every minute, and restarts the agent every two
    /// minutes.
    async fn continued(&self, agent: &FakeAgent, source: &JwtSource) -> Result<(), BoxError> {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        for second in 1_u64.. {
            ticks.tick().await;
            self.callers(agent).await?;
            if second.is_multiple_of(20) {
                self.failing_agent(agent, source).await;
            }
            if second.is_multiple_of(60) {
                agent.rotate().await;
            }
            if second.is_multiple_of(120) {
                agent.restart().await?;
            }
        }
        Ok(())
    }
}

/// Installs the exporter. Without buckets it exports quantiles, which cannot be aggregated over several
/// processes.
fn exporter() -> Result<PrometheusHandle, BoxError> {
    let mut exporter = PrometheusBuilder::new();
    for metric in METRICS.iter().filter(|metric| !metric.buckets.is_empty()) {
        let name = Matcher::Full(metric.name.to_owned());
        exporter = exporter.set_buckets_for_metric(name, metric.buckets)?;
    }
    Ok(exporter.install_recorder()?)
}

/// Serves the reports, for `web` only, and the metrics outside the layer, without a token.
async fn serve(
    source: &JwtSource,
    scrape: PrometheusHandle,
    address: &str,
) -> Result<String, BoxError> {
    let validator = Validator::builder(source.clone())
        .audience(AUDIENCE)
        .build()?;
    let layer = ValidateJwtSvidLayer::required(validator, Allow::id(WEB)?);
    let hello = async |caller: VerifiedSvid| format!("hello, {}\n", caller.spiffe_id());
    let app = Router::new()
        .route("/reports", get(hello).layer(layer))
        .route("/metrics", get(async move || scrape.render()));
    let listener = tokio::net::TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        axum::serve(listener, ServiceExt::<Request>::into_make_service(app)).await
    });
    Ok(format!("http://{address}"))
}

fn print(text: &str) -> Result<(), BoxError> {
    use std::io::Write as _;
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}
