//! `agent`.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tower_spiffe::workload_api::Endpoint;
use tower_spiffe::{JwtSource, TrustDomain};
#[cfg(unix)]
use tower_spiffe_test_support::temp::TempDir;

use crate::support::{DEADLINE, Running, WEB, program, run};

/// The agent with these arguments, and its endpoint.
async fn start(args: &[&str]) -> (Running, Endpoint) {
    let mut running = Running::start(program("agent").args(args).stdin(Stdio::piped()));
    let line = running.line().await;
    let endpoint = line.strip_prefix("SPIFFE_ENDPOINT_SOCKET=").unwrap();
    let endpoint = endpoint.parse().unwrap();
    (running, endpoint)
}

async fn source(endpoint: &Endpoint) -> JwtSource {
    let builder = JwtSource::builder().endpoint(endpoint.clone());
    builder.build().await.unwrap()
}

/// The IDs of the agent's keys.
fn key_ids(source: &JwtSource) -> Vec<String> {
    let trust_domain: TrustDomain = "example.org".parse().unwrap();
    let bundle = source.bundle_for_trust_domain(&trust_domain).unwrap();
    let ids = bundle.authorities().map(|key| key.key_id().to_owned());
    ids.collect()
}

async fn eventually(holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the condition is not met"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a rotation is reported, and checks that the new key arrives and signs tokens.
async fn rotated(running: &mut Running, source: &JwtSource, before: &[String]) {
    let line = running.line_with("rotated the signing key").await;
    let new = line.split_whitespace().last().unwrap().to_owned();
    assert!(!before.contains(&new), "{line}");
    // This source may not have received the key yet.
    eventually(|| key_ids(source).contains(&new)).await;
    // An audience for which the agent has no cached token.
    let token = source.fetch_jwt_svid([&new]).await.unwrap();
    assert_eq!(token.key_id(), Some(&*new));
}

#[tokio::test]
async fn agent_prints_its_endpoint_and_its_counts() {
    let output = run(program("agent").args(["--for", "1", "--id", WEB])).await;
    assert_eq!(output.code, Some(0), "{}", output.all());
    assert!(
        output.out.starts_with(match cfg!(unix) {
            true => "SPIFFE_ENDPOINT_SOCKET=unix:///",
            false => "SPIFFE_ENDPOINT_SOCKET=tcp://127.0.0.1:",
        }),
        "{}",
        output.out
    );
    assert!(output.out.contains("0 connections"), "{}", output.out);
}

#[tokio::test]
async fn agent_reports_invalid_arguments() {
    let output = run(program("agent").args(["--id", "web"])).await;
    assert_eq!(output.code, Some(1), "{}", output.all());
    assert!(output.err.contains("web: "), "{}", output.err);
    let output = run(program("agent").args(["--id", WEB, "--id", "spiffe://other.test/x"])).await;
    assert_eq!(output.code, Some(1), "{}", output.all());
    assert!(
        output.err.contains("spiffe://other.test/x: "),
        "{}",
        output.err
    );
    for args in [&["--for"][..], &["--for", "0"], &["--token-life", "1.5"]] {
        let output = run(program("agent").args(args)).await;
        assert_eq!(output.code, Some(2), "{}", output.all());
        assert!(output.err.contains(args[0]), "{}", output.err);
    }
}

#[tokio::test]
async fn e32_agent_serves_tcp() {
    let (mut running, endpoint) = start(&["--tcp", "--id", WEB]).await;
    let address = endpoint.tcp_address().unwrap();
    assert!(address.ip().is_loopback() && address.port() > 0);
    let token = source(&endpoint).await.get_jwt_svid(["x"]).await.unwrap();
    assert_eq!(token.spiffe_id().as_str(), WEB);
    running.stop().await;
}

#[tokio::test]
async fn e32_hint_belongs_to_the_id_before_it() {
    let cron = "spiffe://example.org/cron";
    for (args, hints) in [
        (
            &["--id", WEB, "--id", cron, "--hint", "nightly"][..],
            ["", "nightly"],
        ),
        (&["--id", WEB, "--hint", "day", "--id", cron], ["day", ""]),
        (
            &["--id", WEB, "--hint", "day", "--id", cron, "--hint=nightly"],
            ["day", "nightly"],
        ),
    ] {
        let (mut running, endpoint) = start(args).await;
        let source = source(&endpoint).await;
        for (id, hint) in [WEB, cron].into_iter().zip(hints) {
            let id = id.parse().unwrap();
            let token = source.get_jwt_svid_with_id(["x"], Some(&id)).await.unwrap();
            assert_eq!(token.hint(), hint, "{args:?}");
        }
        running.stop().await;
    }
    // A hint for the default identity.
    let (mut running, endpoint) = start(&["--hint", "only"]).await;
    let token = source(&endpoint).await.get_jwt_svid(["x"]).await.unwrap();
    assert_eq!(token.hint(), "only");
    running.stop().await;
}

#[tokio::test]
async fn e32_misplaced_hints_are_errors() {
    for (args, why) in [
        (&["--hint", "a", "--id", WEB][..], "before the first --id"),
        (&["--id", WEB, "--hint", "a", "--hint", "b"], "two hints"),
        (&["--hint", "a", "--hint", "b"], "two hints"),
    ] {
        let output = run(program("agent").args(args)).await;
        assert_eq!(output.code, Some(2), "{args:?}: {}", output.all());
        assert!(output.err.contains(why), "{args:?}: {}", output.err);
    }
}

#[tokio::test]
async fn e32_stdin_line_rotates_the_key() {
    let (mut running, endpoint) = start(&[]).await;
    let source = source(&endpoint).await;
    let mut stdin = running.child.stdin.take().unwrap();
    for line in ["rotate\n", "\n  rotate \r\n"] {
        let before = key_ids(&source);
        stdin.write_all(line.as_bytes()).await.unwrap();
        rotated(&mut running, &source, &before).await;
    }
    // An unknown line may be a secret: the warning does not repeat it. The agent keeps running.
    stdin.write_all(b"\xff\xfe hunter2\n").await.unwrap();
    let line = running.error_line_with("standard input").await;
    assert!(!line.contains("hunter2"), "{line}");
    let before = key_ids(&source);
    stdin.write_all(b"rotate").await.unwrap();
    drop(stdin);
    // The end of the input ends the last line, but not the agent.
    rotated(&mut running, &source, &before).await;
    running.stop().await;
}

#[cfg(unix)]
#[tokio::test]
async fn e32_sigusr1_rotates_the_key() {
    let (mut running, endpoint) = start(&[]).await;
    let source = source(&endpoint).await;
    for _ in 0..2 {
        let before = key_ids(&source);
        running.signal("-USR1");
        rotated(&mut running, &source, &before).await;
    }
    running.stop().await;
}

#[cfg(unix)]
#[tokio::test]
async fn e32_signals_remove_the_socket() {
    for signal in ["-TERM", "-INT"] {
        let (mut running, endpoint) = start(&[]).await;
        let socket = endpoint.unix_path().unwrap().to_owned();
        // A client with an open stream.
        let source = source(&endpoint).await;
        assert!(socket.exists());
        running.signal(signal);
        running.line_with("1 bundle streams").await;
        assert_eq!(running.code().await, Some(0), "{signal}");
        assert!(!socket.parent().unwrap().exists(), "{signal}: {socket:?}");
        source.shutdown().await;
    }
}

#[cfg(unix)]
#[tokio::test]
async fn e32_failed_start_leaves_nothing_behind() {
    let dir = TempDir::new();
    for args in [
        &["--id", WEB, "--id", "spiffe://other.test/x"][..],
        &["--id", "spiffe://example.org//"],
    ] {
        let output = run(program("agent").args(args).env("TMPDIR", dir.path())).await;
        assert_eq!(output.code, Some(1), "{}", output.all());
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "{args:?}"
        );
    }
}

#[cfg(unix)]
#[tokio::test]
async fn e32_unusable_tmpdir_is_named() {
    let dir = TempDir::new();
    let file = dir.join("file");
    std::fs::write(&file, "").unwrap();
    for path in [dir.join("absent"), file] {
        let output = run(program("agent").env("TMPDIR", &path)).await;
        assert_eq!(output.code, Some(1), "{}", output.all());
        let named = format!("{path:?}");
        assert!(
            output.err.contains(&named) && output.err.contains("TMPDIR"),
            "no {named} in: {}",
            output.err
        );
    }
    // An empty value is the same as an unset variable.
    let output = run(program("agent").args(["--for", "1"]).env("TMPDIR", "")).await;
    assert_eq!(output.code, Some(0), "{}", output.all());
    assert!(
        output
            .out
            .starts_with("SPIFFE_ENDPOINT_SOCKET=unix:///tmp/"),
        "{}",
        output.out
    );
}

#[cfg(unix)]
#[tokio::test]
async fn e32_agent_survives_a_closed_output() {
    let (mut running, endpoint) = start(&[]).await;
    let socket = endpoint.unix_path().unwrap().to_owned();
    running.close_output();
    running.signal("-USR1");
    let source = source(&endpoint).await;
    eventually(|| key_ids(&source).len() == 2).await;
    running.stop().await;
    assert!(!socket.exists());
}
