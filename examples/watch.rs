//! Follows an agent, for an operator: one line for each change of a source's state.
//!
//! ```text
//! SPIFFE_ENDPOINT_SOCKET=unix:///run/spire/agent.sock cargo run --example watch -- [--json] [--for SECONDS]
//! ```
//!
//! Ends on ctrl-c, or after `--for SECONDS`. With `--json` each line is one object:
//!
//! | field | what |
//! | --- | --- |
//! | `time` | seconds since 1970, with a fraction |
//! | `event` | `start`, `ready`, `bundles`, `withdrawn`, `restored`, `disconnected`, `reconnected`, `reconnecting`, `error`, `recovered`, `end` |
//! | `revision` | counts the changes in what validation answers; 0 before the first bundles |
//! | `ready` | whether tokens can be judged |
//! | `connected` | whether the bundle stream is open |
//! | `withdrawn` | what the agent said when it withdrew the bundles, else `null` |
//! | `last_contact` | seconds since something last came from the agent, or `null` |
//! | `reconnects` | successful reconnections |
//! | `reconnect_attempts` | attempts to open the stream after the first one |
//! | `trust_domains` | one object each: `name`, `key_ids`, `updated` (seconds since its keys last came), `changed` (seconds since they last differed), `error` |
//! | `error` | the last trouble with the stream, or `null` |

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tower_spiffe::source::TrustDomainState;
use tower_spiffe::{Clock, JwtSource, SourceState, SystemClock};

const USAGE: &str = "usage: watch [--json] [--for SECONDS]\n\
    Follows the agent at SPIFFE_ENDPOINT_SOCKET until ctrl-c, or for SECONDS.";

/// How often to look. What answers change by is told at once all the same.
const LOOK_EVERY: Duration = Duration::from_millis(200);

struct Options {
    json: bool,
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
    match watch(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "watch: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        json: false,
        duration: None,
    };
    let mut args = args;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => options.json = true,
            "--for" => {
                let seconds = args.next().and_then(|text| text.parse::<f64>().ok());
                let duration =
                    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                match duration {
                    Some(duration) => options.duration = Some(duration),
                    None => return Err(format!("--for wants a number of seconds\n{USAGE}")),
                }
            }
            other => return Err(format!("what is {other:?}?\n{USAGE}")),
        }
    }
    Ok(options)
}

async fn watch(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let source = JwtSource::builder().build_lazy()?;
    let mut updates = source.updated();
    let mut known = source.state();
    tell(options, "start", &known)?;
    let mut end = std::pin::pin!(async {
        match options.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    });
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            () = &mut end => break,
            _ = &mut interrupted => break,
            changed = updates.changed() => { changed?; }
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = source.state();
        for event in events(&known, &now) {
            tell(options, event, &now)?;
        }
        known = now;
    }
    tell(options, "end", &source.state())?;
    source.shutdown().await;
    Ok(())
}

/// What happened between two looks, in the order in which it is best read.
fn events(before: &SourceState, now: &SourceState) -> Vec<&'static str> {
    let mut events = Vec::new();
    // The stream's trouble and each trust domain's, whoever came or went without one.
    let errors = |state: &SourceState| -> Vec<(String, String)> {
        let stream = state.last_error().into_iter();
        let stream = stream.map(|error| (error.kind().to_owned(), error.message().to_owned()));
        let domains = state.trust_domains().iter().filter_map(|td| {
            let error = td.last_error()?;
            Some((td.trust_domain().name().to_owned(), error.to_owned()))
        });
        stream.chain(domains).collect()
    };
    if before.is_connected() && !now.is_connected() {
        events.push("disconnected");
    }
    let again = now.reconnects() > before.reconnects();
    let tried = now.reconnect_attempts() > before.reconnect_attempts();
    // Before the first connection there is nothing to reconnect.
    if tried && !now.is_connected() && now.last_message().is_some() {
        events.push("reconnecting");
    }
    match (before.withdrawn(), now.withdrawn()) {
        (None, Some(_)) => events.push("withdrawn"),
        (Some(_), None) => events.push("restored"),
        _ => {}
    }
    let (troubles_before, troubles) = (errors(before), errors(now));
    if !troubles.is_empty() && troubles != troubles_before {
        events.push("error");
    } else if troubles.is_empty() && !troubles_before.is_empty() {
        events.push("recovered");
    }
    let was_blind = before.revision() > 0 && !before.is_ready() && before.withdrawn().is_none();
    if now.is_ready() && (before.revision() == 0 || was_blind) {
        events.push("ready");
    } else if keys(before) != keys(now) && now.is_ready() {
        events.push("bundles");
    }
    // Between two looks it may be gone and back.
    let back = !before.is_connected() || again;
    if back && now.is_connected() && before.revision() > 0 {
        events.push("reconnected");
    }
    events
}

fn keys(state: &SourceState) -> Vec<(&str, Vec<&str>)> {
    let domains = state.trust_domains().iter();
    domains
        .map(|td| (td.trust_domain().name(), td.key_ids().collect()))
        .collect()
}

fn tell(options: &Options, event: &str, state: &SourceState) -> std::io::Result<()> {
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
            "name": td.trust_domain().name(),
            "key_ids": td.key_ids().collect::<Vec<_>>(),
            "updated": seconds(td.last_update()),
            "changed": seconds(td.last_change()),
            "error": td.last_error(),
        })
    };
    json!({
        "time": time,
        "event": event,
        "revision": state.revision(),
        "ready": state.is_ready(),
        "connected": state.is_connected(),
        "withdrawn": state.withdrawn().map(|withdrawal| withdrawal.why().to_owned()),
        "last_contact": seconds(state.last_contact()),
        "reconnects": state.reconnects(),
        "reconnect_attempts": state.reconnect_attempts(),
        "trust_domains": state.trust_domains().iter().map(domain).collect::<Vec<_>>(),
        "error": state.last_error().map(|error| error.message().to_owned()),
    })
}

fn text(time: f64, event: &str, state: &SourceState) -> String {
    let mut line = format!("{time:.3} {event:<12} revision {}", state.revision());
    if let Some(why) = state.cannot_judge() {
        let _ = write!(line, ", cannot judge: {why}");
    }
    for td in state.trust_domains() {
        // A federated peer names its keys as it likes: no name may move the terminal or begin a line.
        let ids: Vec<String> = td
            .key_ids()
            .map(|id| id.escape_debug().to_string())
            .collect();
        let _ = write!(line, "; {} [{}]", td.trust_domain(), ids.join(" "));
        if let Some(error) = td.last_error() {
            let _ = write!(line, " ({error})");
        }
    }
    if let Some(age) = state.last_contact() {
        let _ = write!(line, "; last contact {:.1} s ago", age.as_secs_f64());
    }
    if state.reconnects() > 0 {
        let _ = write!(line, "; {} reconnects", state.reconnects());
    }
    if let Some(error) = state.last_error() {
        let _ = write!(line, "; {}", error.message());
    }
    line
}
