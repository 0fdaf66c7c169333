//! Three services on one agent. Each allows only the service before it:
//!
//! ```text
//! web ── reqwest ──► edge (axum) ── tonic ──► reports (tonic) ── reqwest ──► ledger (axum)
//! ```
//!
//! ```text
//! cargo run --example three_services
//! ```
//!
//! Prints the path of a request as each service saw it, and the rejections. Then the issuer rotates its
//! key and the agent restarts during calls. Starts its own agent (`testing::FakeAgent`), and
//! ends. The exit code is 0 only if all checks passed.
//!
//! Each service has one source, for its server and its client. A real agent attests each process and
//! gives it only its own identity. The embedded agent gives all identities to every process, so each
//! client here selects one (`.spiffe_id(…)`). In production this is needed only if a workload has
//! several identities.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

mod edge;
mod ledger;
mod reports;
mod rotation;

use std::process::ExitCode;
use std::time::Duration;

use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use tonic::Code;
use tower_spiffe::client::JwtSvidMiddleware;
use tower_spiffe::client::Plaintext;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{Audience, JwtSource};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The SPIFFE ID of a service is also the audience of its callers' tokens.
const WEB: &str = "spiffe://example.org/web";
const EDGE: &str = "spiffe://example.org/edge";
const REPORTS: &str = "spiffe://example.org/reports";
const LEDGER: &str = "spiffe://example.org/ledger";
/// A caller of another trust domain, with its own agent.
const SHOP: &str = "spiffe://partner.test/shop";

/// Short, so that a whole rotation fits into this program: SPIRE's default is five minutes.
const TOKEN_LIFE: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match chain().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("three_services: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn chain() -> Result<(), Error> {
    let agent = FakeAgent::builder("example.org").token_life(TOKEN_LIFE);
    let agent = agent.start().await?;
    for id in [WEB, EDGE, REPORTS, LEDGER] {
        agent.register(id, "", TOKEN_LIFE)?;
    }
    // Federation: the agent also serves the partner's keys.
    let partner = FakeAgent::start("partner.test").await?;
    partner.register(SHOP, "", TOKEN_LIFE)?;
    agent.federate_with(partner.issuer());

    // One source for each service, as if each were a process.
    let [web, edge, reports, ledger] = [
        agent.source().await?,
        agent.source().await?,
        agent.source().await?,
        agent.source().await?,
    ];
    let ledger_at = ledger::serve(ledger.clone()).await?;
    let reports_at = reports::serve(reports.clone(), &ledger_at).await?;
    let edge_at = edge::serve(edge.clone(), &reports_at).await?;
    let today = format!("{edge_at}/today");
    let mut run = Run::default();

    println!("The callers of a request, as reported by each service");
    let browser = client(web.clone(), WEB, &edge_at, EDGE)?;
    let (status, path) = call(&browser, &today).await?;
    let expected = [seen(WEB, EDGE), seen(EDGE, REPORTS), seen(REPORTS, LEDGER)];
    run.check(
        "all three services",
        status == 200 && path == expected.concat(),
        &path,
    );

    println!("\nA request from another trust domain, which the edge allows");
    let shop = client(partner.source().await?, SHOP, &edge_at, EDGE)?;
    let (status, path) = call(&shop, &today).await?;
    run.check(
        "from the partner",
        status == 200 && path.starts_with(&seen(SHOP, EDGE)),
        &path,
    );

    println!("\nNo caller can skip a service");
    let entries = format!("{ledger_at}/entries");
    let past_reports = client(edge.clone(), EDGE, &ledger_at, LEDGER)?;
    let (status, _) = call(&past_reports, &entries).await?;
    run.check("edge calls the ledger", status == 403, &status.to_string());
    let shop = client(partner.source().await?, SHOP, &ledger_at, LEDGER)?;
    let (status, _) = call(&shop, &entries).await?;
    run.check(
        "partner calls the ledger",
        status == 403,
        &status.to_string(),
    );
    let past_edge = reports::Client::new(web.clone(), WEB, &reports_at)?;
    let rejected = past_edge.today().await;
    let code = rejected.map_or_else(|status| status.code(), |_| Code::Ok);
    run.check(
        "web calls reports",
        code == Code::PermissionDenied,
        &format!("{code:?}"),
    );
    // A forwarded token with another audience is also rejected.
    let forwarded = web
        .get_jwt_svid_with_id([EDGE], Some(&WEB.parse()?))
        .await?;
    let plain = reqwest::Client::builder().no_proxy().build()?;
    let response = plain.get(&entries).bearer_auth(forwarded.token()).send();
    let status = response.await?.status().as_u16();
    run.check(
        "token for the edge, sent to the ledger",
        status == 401,
        &status.to_string(),
    );

    println!("\nA key rotation and an agent restart during calls");
    let sources = [
        (&web, WEB, EDGE),
        (&edge, EDGE, REPORTS),
        (&reports, REPORTS, LEDGER),
    ];
    let calls = rotation::rotate_and_restart(&agent, &sources, browser, today).await?;
    let first = calls.lost.first().map_or("", String::as_str);
    run.check(
        "calls in this time",
        calls.made > 100 && calls.lost.is_empty(),
        &format!(
            "{}, of which {} were lost {first}",
            calls.made,
            calls.lost.len()
        ),
    );
    run.finish()
}

/// Creates a client that calls one service as `me`.
fn client(
    source: JwtSource,
    me: &str,
    origin: &str,
    audience: &str,
) -> Result<ClientWithMiddleware, Error> {
    let audience = Audience::fixed(audience).for_origin(origin)?;
    let tokens = JwtSvidMiddleware::with_audience(source, audience.spiffe_id(me.parse()?));
    // All services of this example are on loopback.
    let tokens = tokens.allow_plaintext(Plaintext::Loopback);
    let reqwest = reqwest::Client::builder().no_proxy().build()?;
    Ok(ClientBuilder::new(reqwest).with(tokens).build())
}

async fn call(client: &ClientWithMiddleware, url: &str) -> Result<(u16, String), Error> {
    let response = client.get(url).send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// Returns the line in which a service reports its caller.
fn seen(caller: &str, service: &str) -> String {
    format!("  {caller} called {service}\n")
}

/// Counts failed checks.
#[derive(Default)]
struct Run {
    failed: u32,
}

impl Run {
    fn check(&mut self, name: &str, passed: bool, what: &str) {
        let mark = if passed { " " } else { "!" };
        match what.strip_suffix('\n') {
            Some(lines) => println!("{mark} {name}:\n{lines}"),
            None => println!("{mark} {name}: {what}"),
        }
        self.failed += u32::from(!passed);
    }

    fn finish(self) -> Result<(), Error> {
        if self.failed > 0 {
            return Err(format!("{} checks failed; they are marked with `!`", self.failed).into());
        }
        println!("\nAll checks passed.");
        Ok(())
    }
}
