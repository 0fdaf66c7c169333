//! An agent to work against, where there is no SPIFFE deployment: serves the Workload API on a Unix
//! socket until ctrl-c. The first line it prints is what other programs need:
//!
//! ```text
//! $ cargo run --example agent -- --rotate-every 60
//! SPIFFE_ENDPOINT_SOCKET=unix:///tmp/tower-spiffe-XXXXXXXXXXXX/agent.sock
//!
//! $ SPIFFE_ENDPOINT_SOCKET=unix:///tmp/tower-spiffe-XXXXXXXXXXXX/agent.sock cargo run --example watch
//! ```
//!
//! Everybody who may open the socket (this user alone) gets the identities. For tests and local
//! work only: keys live in this process, and nobody is attested.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use tower_spiffe::testing::WorkloadApi;

const USAGE: &str = "usage: agent [--id SPIFFE_ID]... [--token-life SECONDS] [--rotate-every SECONDS] [--for SECONDS]\n\
    Serves the Workload API for the trust domain of the IDs (spiffe://example.org/workload, if none is given)\n\
    until ctrl-c, or for SECONDS.";

struct Options {
    ids: Vec<String>,
    token_life: Duration,
    rotate_every: Option<Duration>,
    duration: Option<Duration>,
}

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::args_os().skip(1).eq(["--help"]) {
        let _ = writeln!(std::io::stdout(), "{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(text) => {
            let _ = writeln!(std::io::stderr(), "{text}");
            return ExitCode::from(2);
        }
    };
    match serve(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        ids: Vec::new(),
        token_life: Duration::from_secs(300),
        rotate_every: None,
        duration: None,
    };
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg}?\n{USAGE}"))?;
        let seconds = || match value.parse() {
            Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
            _ => Err(format!("{arg} {value}: not a number of seconds\n{USAGE}")),
        };
        match arg.as_str() {
            "--id" => options.ids.push(value),
            "--token-life" => options.token_life = seconds()?,
            "--rotate-every" => options.rotate_every = Some(seconds()?),
            "--for" => options.duration = Some(seconds()?),
            _ => return Err(format!("{arg}: unknown\n{USAGE}")),
        }
    }
    if options.ids.is_empty() {
        options.ids.push("spiffe://example.org/workload".to_owned());
    }
    Ok(options)
}

async fn serve(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let first: tower_spiffe::SpiffeId = options.ids.first().ok_or(USAGE)?.parse()?;
    let agent = WorkloadApi::builder(first.trust_domain_name())
        .token_life(options.token_life)
        .start()
        .await?;
    for id in &options.ids {
        agent
            .register(id, "", options.token_life)
            .map_err(|error| format!("{id}: {error}"))?;
    }
    if let Some(period) = options.rotate_every {
        agent.rotate_every(period);
    }
    let mut out = std::io::stdout();
    writeln!(out, "SPIFFE_ENDPOINT_SOCKET={}", agent.endpoint())?;
    out.flush()?;

    match options.duration {
        Some(duration) => {
            let _ = tokio::time::timeout(duration, tokio::signal::ctrl_c()).await;
        }
        None => tokio::signal::ctrl_c().await?,
    }
    let counts = agent.counts();
    writeln!(
        out,
        "{} connections, {} bundle streams, {} token calls, {} verdicts",
        counts.connections,
        counts.fetch_jwt_bundles,
        counts.fetch_jwt_svid,
        counts.validate_jwt_svid
    )?;
    Ok(())
}
