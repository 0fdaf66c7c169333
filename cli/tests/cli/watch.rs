//! `watch`.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, timeout_at};
use tower_spiffe::testing::{FakeAgent, Issuer};
use tower_spiffe_test_support::agent;

use crate::support::{DEADLINE, NO_AGENT, Running, program, run};

fn watch(agent: &FakeAgent, args: &[&str]) -> Command {
    let mut command = program("watch");
    command
        .env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint().to_string())
        .args(args);
    command
}

/// The next JSON line with this event. Skips other lines.
async fn until(watched: &mut Running, event: &str) -> Value {
    let deadline = Instant::now() + DEADLINE;
    let mut seen = String::new();
    loop {
        let line = timeout_at(deadline, watched.line()).await;
        let line = line.unwrap_or_else(|_| panic!("no {event}, but: {seen}"));
        seen = format!("{seen}\n{line}");
        let printed: Value = serde_json::from_str(&line).unwrap();
        if printed["event"] == event {
            return printed;
        }
        assert_ne!(printed["event"], "end", "ended before {event}");
        if event == "ready" {
            assert_ne!(printed["event"], "recovered", "no error before: {line}");
        }
    }
}

#[tokio::test]
async fn watch_reports_each_change() {
    let agent = agent::start("example.org").await;
    let mut watched = Running::start(&mut watch(&agent, &["--json"]));
    let start = until(&mut watched, "start").await;
    let help = run(program("watch").arg("--help")).await.out;
    let rows = help.split_once("\nFields of a JSON line:\n").unwrap().1;
    let documented: BTreeSet<&str> = rows
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let given = start.as_object().unwrap().keys().map(String::as_str);
    assert_eq!(given.collect::<BTreeSet<_>>(), documented);
    let ready = until(&mut watched, "ready").await;
    assert_eq!(
        (&ready["ready"], &ready["connected"]),
        (&true.into(), &true.into())
    );
    let domain = &ready["trust_domains"][0];
    assert_eq!(domain["name"], "example.org");
    assert_eq!(domain["key_ids"][0], agent.issuer().signing_key_id());
    assert!(domain["updated"].is_number() && domain["error"].is_null());

    let new = agent.rotate_now();
    let bundles = until(&mut watched, "bundles").await;
    let ids = bundles["trust_domains"][0]["key_ids"].as_array().unwrap();
    assert!(ids.contains(&new.into()), "{bundles}");
    agent.withdraw();
    let withdrawn = until(&mut watched, "withdrawn").await;
    assert!(withdrawn["withdrawn"].is_string() && withdrawn["ready"] == false);
    agent.restore();
    let restored = until(&mut watched, "restored").await;
    assert!(restored["withdrawn"].is_null() && restored["ready"] == true);
    agent.restart().await.unwrap();
    let again = until(&mut watched, "reconnected").await;
    assert!(again["reconnects"].as_u64().unwrap() > 0, "{again}");

    #[cfg(unix)]
    {
        watched.signal("-INT");
        until(&mut watched, "end").await;
        assert_eq!(watched.code().await, Some(0));
    }
}

#[tokio::test]
async fn watch_ends_after_its_time() {
    let agent = agent::start("example.org").await;
    let mut watched = Running::start(&mut watch(&agent, &["--json", "--for", "1"]));
    until(&mut watched, "end").await;
    assert_eq!(watched.code().await, Some(0));
}

#[tokio::test]
async fn watch_reports_invalid_arguments() {
    let output = run(&mut program("watch")).await;
    assert_eq!(output.code, Some(1), "{}", output.all());
    assert!(
        output.err.contains("SPIFFE_ENDPOINT_SOCKET"),
        "{}",
        output.err
    );
    for seconds in ["soon", "-1", "NaN", "1e300"] {
        let output = run(program("watch").arg(format!("--for={seconds}"))).await;
        assert_eq!(output.code, Some(2), "{}", output.all());
        assert!(
            output.err.contains("not a number of seconds"),
            "{}",
            output.err
        );
    }
}

#[tokio::test]
async fn watch_escapes_key_ids_of_a_peer() {
    let agent = agent::start("example.org").await;
    let peer = Issuer::new("other.test").unwrap();
    let mut jwks: Value = serde_json::from_slice(&peer.jwks()).unwrap();
    jwks["keys"][0]["kid"] = "x\u{1b}[2J\n1790000000.000 withdrawn".into();
    agent.federate_raw("other.test", jwks.to_string()).unwrap();
    let output = run(&mut watch(&agent, &["--for", "1"])).await;
    assert_eq!(output.code, Some(0), "{}", output.all());
    let out = output.out;
    assert!(
        out.contains("[x\\u{1b}[2J\\n1790000000.000 withdrawn]"),
        "{out}"
    );
    assert!(!out.contains('\u{1b}') && out.lines().count() == 3, "{out}");
}

#[tokio::test]
async fn watch_is_silent_without_changes() {
    let agent = agent::start("example.org").await;
    let output = run(&mut watch(&agent, &["--for", "1.5"])).await;
    assert_eq!(output.code, Some(0), "{}", output.all());
    let events: Vec<&str> = output
        .out
        .lines()
        .map(|line| line.split_whitespace().nth(1).unwrap())
        .collect();
    assert_eq!(events, ["start", "ready", "end"], "{}", output.out);
    let key = agent.issuer().signing_key_id();
    assert!(
        output.out.contains(&format!("example.org [{key}]")),
        "{}",
        output.out
    );
}

#[tokio::test]
async fn watch_waits_and_reports_errors() {
    let agent = agent::start("example.org").await;
    agent.stop().await;
    let mut watched = Running::start(&mut watch(&agent, &["--json"]));
    let error = until(&mut watched, "error").await;
    assert_eq!(error["revision"], 0);
    let endpoint = agent.endpoint().to_string();
    assert!(error["error"].as_str().unwrap().contains(&endpoint));
    agent.start_again().await.unwrap();
    until(&mut watched, "recovered").await;

    agent.federate_raw("broken.test", "no JWK Set").unwrap();
    let error = until(&mut watched, "error").await;
    assert_eq!(error["trust_domains"][0]["name"], "broken.test");
    assert!(error["trust_domains"][0]["error"].is_string());
    agent.unfederate("broken.test");
    until(&mut watched, "recovered").await;
}

#[tokio::test]
async fn e30_watch_reports_a_missing_agent() {
    let mut watched = Running::start(program("watch").env("SPIFFE_ENDPOINT_SOCKET", NO_AGENT));
    let line = watched.error_line().await;
    for part in [
        "watch: waiting for the first bundles",
        &format!("{NO_AGENT}: "),
        "cannot connect",
    ] {
        assert!(line.contains(part), "no {part:?} in: {line}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn e30_watch_reports_a_silent_agent() {
    let silent = crate::support::SilentSocket::new("watch");
    let mut watched =
        Running::start(program("watch").env("SPIFFE_ENDPOINT_SOCKET", silent.endpoint()));
    let line = watched.error_line().await;
    let waits = format!(
        "watch: waiting for the first bundles from the agent at {}: no response yet",
        silent.endpoint()
    );
    assert_eq!(line, waits);
}
