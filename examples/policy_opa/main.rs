//! An axum server whose policy queries the Open Policy Agent: `cargo run --example policy_opa`.
//!
//! It starts an embedded Workload API and a fake OPA, sends requests to itself, and ends. In production
//! the source is `JwtSource::new().await?`, and OPA runs beside the server.

#![allow(clippy::print_stdout, reason = "the output is for users")]
#![allow(clippy::indexing_slicing, reason = "a missing JSON member is null")]
#![allow(unreachable_pub, reason = "the modules are shared with a test")]

mod agent;
mod opa;

use std::time::Duration;

use axum::extract::Request;
use axum::routing::get;
use axum::{Router, ServiceExt};
use tower::Layer;
use tower_spiffe::server::{Allow, AskPolicy, ValidateJwtSvidLayer};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{Validator, VerifiedSvid};

use agent::{Agent, Behavior};
use opa::Opa;

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let workload_api = FakeAgent::start("example.org").await?;
    let agent = Agent::start().await?;
    let validator = Validator::builder(workload_api.source().await?)
        .audience(REPORTS)
        .build()?;
    let ask = AskPolicy::new(Opa::new(&agent.base, "reports/authz")?)
        .timeout(Duration::from_millis(500))
        .max_in_flight(64)
        .cache(10_000, Duration::from_secs(5));
    // The synchronous policy denies other trust domains without a query.
    let layer =
        ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org")?).ask(ask);
    let router = Router::new().route("/reports", get(reports).post(async || "written"));
    let app = ServiceExt::<Request>::into_make_service(layer.layer(router));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/reports", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, app).into_future());

    let client = reqwest::Client::new();
    let call = async |method: reqwest::Method, name: &str| {
        let bearer = workload_api.bearer(&format!("spiffe://example.org/{name}"), REPORTS);
        let request = client
            .request(method.clone(), &url)
            .header("authorization", bearer);
        let status = request.send().await?.status().as_u16();
        println!("{method} as {name}: {status}");
        Ok::<u16, Error>(status)
    };
    assert_eq!(call(reqwest::Method::GET, "web").await?, 200);
    assert_eq!(call(reqwest::Method::POST, "web").await?, 403);
    assert_eq!(call(reqwest::Method::POST, "ops").await?, 200);
    println!("OPA fails: requests without a cached decision are rejected");
    for (behavior, name) in [
        (Behavior::Broken, "a"),
        (Behavior::Invalid("yes"), "b"),
        (Behavior::TooLong, "c"),
        (Behavior::Slow(Duration::from_secs(60)), "d"),
    ] {
        agent.set(behavior);
        assert_eq!(call(reqwest::Method::GET, name).await?, 503, "{behavior:?}");
    }
    println!("cached decisions stay valid");
    assert_eq!(call(reqwest::Method::POST, "ops").await?, 200);
    println!("OPA was asked {} times", agent.asked());
    Ok(())
}

async fn reports(caller: VerifiedSvid) -> String {
    format!("reports for {}", caller.spiffe_id())
}
