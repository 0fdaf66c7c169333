//! `watch`: follows an agent and prints one line for each change.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tower_spiffe::JwtSource;
use tower_spiffe::clock::{Clock, SystemClock};
use tower_spiffe::source::SourceState;
use tower_spiffe::source::TrustDomainState;
use tower_spiffe::workload_api::Endpoint;

use crate::waiting;

/// Follow an agent: print one line for each change of its bundles or its state.
///
/// Uses the agent at SPIFFE_ENDPOINT_SOCKET. Ends on ctrl-c, or after `--for SECONDS`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{FIELDS}"))]
pub(crate) struct Args {
    /// Print each line as a JSON object; `--help` lists its fields
    #[arg(long)]
    json: bool,
    /// End after this time; fractions are allowed
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds_from)]
    duration: Option<Duration>,
}

const EXAMPLES: &str = "\
Examples:
  export SPIFFE_ENDPOINT_SOCKET=unix:///run/spire/agent.sock
  tower-spiffe watch
  tower-spiffe watch --json --for 5 | jq .event";

const FIELDS: &str = "\
Fields of a JSON line:
  time           seconds since 1970, with a fraction
  event          start, ready, bundles, withdrawn, restored, disconnected, reconnected,
                 reconnecting, error, recovered or end
  revision       number of changes that affect verification; 0 before the first bundles
  ready          whether tokens can be verified
  connected      whether the bundle stream is open
  withdrawn      the agent's message when it withdrew the bundles, or null
  last_contact   seconds since the agent's last response or message, or null
  reconnects     number of successful reconnections
  reconnect_attempts
                 number of attempts to open the stream after the first one
  trust_domains  one object each: name, key_ids, updated (seconds since its keys last arrived),
                 changed (seconds since its keys last changed), error
  error          the last error of the stream, or null

Exit code: 0 at the end, 1 if the source cannot start, 2 for an invalid command line.";

/// How often the state is checked. Changes of the bundles are reported immediately.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

#[tokio::main]
pub(crate) async fn run(args: &Args) -> ExitCode {
    match watch(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            warn!("watch: {error:#}");
            ExitCode::FAILURE
        }
    }
}

pub(crate) fn seconds_from(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok();
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "not a number of seconds".to_owned())
}

async fn watch(options: &Args) -> Result<(), crate::BoxError> {
    let agent = Endpoint::from_env()?;
    let source = JwtSource::builder().build_lazy()?;
    let mut updates = source.updated();
    let mut known = source.state();
    print(options, "start", &known)?;
    for event in at_start(&known) {
        print(options, event, &known)?;
    }
    let mut end = std::pin::pin!(async {
        match options.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    });
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let (started, mut reported) = (Instant::now(), false);
    loop {
        tokio::select! {
            () = &mut end => break,
            _ = &mut interrupted => break,
            changed = updates.changed() => { changed?; }
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let now = source.state();
        if !reported && started.elapsed() >= waiting::REPORT_AFTER {
            reported = true;
            if now.revision == 0 {
                warn!(
                    "watch: waiting for {}",
                    waiting::first_bundles(&agent, &now)
                );
            }
        }
        for event in events(&known, &now) {
            print(options, event, &now)?;
        }
        known = now;
    }
    print(options, "end", &source.state())?;
    source.shutdown().await;
    Ok(())
}

/// The events before the first check: the source may already have read its first message.
fn at_start(now: &SourceState) -> Vec<&'static str> {
    let found = [
        (now.withdrawn.is_some(), "withdrawn"),
        (!errors(now).is_empty(), "error"),
        (now.is_ready(), "ready"),
    ];
    let found = found.into_iter().filter(|(found, _)| *found);
    found.map(|(_, event)| event).collect()
}

/// The events between two checks, in the order in which they happened.
fn events(before: &SourceState, now: &SourceState) -> Vec<&'static str> {
    let mut events = Vec::new();
    if before.connected && !now.connected {
        events.push("disconnected");
    }
    let again = now.reconnects > before.reconnects;
    let tried = now.reconnect_attempts > before.reconnect_attempts;
    // Before the first message it is a first connection, not a reconnection.
    if tried && !now.connected && now.last_message.is_some() {
        events.push("reconnecting");
    }
    match (&before.withdrawn, &now.withdrawn) {
        (None, Some(_)) => events.push("withdrawn"),
        (Some(_), None) => events.push("restored"),
        _ => {}
    }
    let (errors_before, errors_now) = (errors(before), errors(now));
    if !errors_now.is_empty() && errors_now != errors_before {
        events.push("error");
    } else if errors_now.is_empty() && !errors_before.is_empty() {
        events.push("recovered");
    }
    let was_unready = before.revision > 0 && !before.is_ready() && before.withdrawn.is_none();
    if now.is_ready() && (before.revision == 0 || was_unready) {
        events.push("ready");
    } else if keys(before) != keys(now) && now.is_ready() {
        events.push("bundles");
    }
    // The source may have disconnected and reconnected between two checks.
    let reconnected = !before.connected || again;
    if reconnected && now.connected && before.revision > 0 {
        events.push("reconnected");
    }
    events
}

/// The errors of the stream and of each trust domain, by kind and text.
fn errors(state: &SourceState) -> Vec<(String, String)> {
    let stream = state.last_error.iter();
    let stream = stream.map(|error| (error.kind.to_owned(), error.text.to_string()));
    let domains = state.trust_domains.iter().filter_map(|td| {
        let error = td.last_error.as_ref()?;
        Some((td.trust_domain.name().to_owned(), error.to_string()))
    });
    stream.chain(domains).collect()
}

fn keys(state: &SourceState) -> Vec<(&str, Vec<&str>)> {
    let domains = state.trust_domains.iter();
    domains
        .map(|td| {
            (
                td.trust_domain.name(),
                td.key_ids.iter().map(|id| &**id).collect(),
            )
        })
        .collect()
}

fn print(options: &Args, event: &str, state: &SourceState) -> std::io::Result<()> {
    let now = SystemClock::shared().now();
    let time = now.secs() as f64 + f64::from(now.subsec_nanos() / 1_000_000) / 1000.0;
    let line = match options.json {
        true => json(time, event, state).to_string(),
        false => text(time, event, state),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn seconds(age: Option<Duration>) -> Value {
    age.map_or(Value::Null, |age| {
        json!((age.as_secs_f64() * 1000.0).round() / 1000.0)
    })
}

fn json(time: f64, event: &str, state: &SourceState) -> Value {
    let domain = |td: &TrustDomainState| {
        json!({
            "name": td.trust_domain.name(),
            "key_ids": td.key_ids,
            "updated": seconds(td.last_update),
            "changed": seconds(td.last_change),
            "error": td.last_error,
        })
    };
    json!({
        "time": time,
        "event": event,
        "revision": state.revision,
        "ready": state.is_ready(),
        "connected": state.connected,
        "withdrawn": state.withdrawn.as_ref().map(|withdrawal| &withdrawal.why),
        "last_contact": seconds(state.last_contact),
        "reconnects": state.reconnects,
        "reconnect_attempts": state.reconnect_attempts,
        "trust_domains": state.trust_domains.iter().map(domain).collect::<Vec<_>>(),
        "error": state.last_error.as_ref().map(|error| &error.text),
    })
}

fn text(time: f64, event: &str, state: &SourceState) -> String {
    let mut line = format!("{time:.3} {event:<12} revision {}", state.revision);
    if let Some(why) = state.bundles_unavailable {
        let _ = write!(line, ", bundles unavailable: {why}");
    }
    for td in &state.trust_domains {
        // Escaped: the key IDs of a federated trust domain may contain control characters.
        let ids: Vec<String> = td
            .key_ids
            .iter()
            .map(|id| id.escape_debug().to_string())
            .collect();
        let _ = write!(line, "; {} [{}]", td.trust_domain, ids.join(" "));
        if let Some(error) = &td.last_error {
            let _ = write!(line, " ({error})");
        }
    }
    if let Some(age) = state.last_contact {
        let _ = write!(line, "; last contact {:.1} s ago", age.as_secs_f64());
    }
    if state.reconnects > 0 {
        let _ = write!(line, "; {} reconnects", state.reconnects);
    }
    if let Some(error) = &state.last_error {
        let _ = write!(line, "; {}", error.text);
    }
    line
}
