//! `call`.

use std::time::Duration;

use axum::extract::Request;
use axum::routing::get;
use axum::{Router, ServiceExt};
use tower::Layer;
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault};
use tower_spiffe::{Allow, ValidateJwtSvidLayer, Validator, VerifiedSvid};
use tower_spiffe_test_support::agent;

use crate::support::{Finished, LIFE, NO_AGENT, Running, WEB, program, run};

/// A server on the loopback interface that allows `web`.
async fn server(agent: &FakeAgent) -> String {
    async fn hello(caller: VerifiedSvid) -> String {
        format!("hello, {}", caller.spiffe_id())
    }
    let source = agent.source().await.unwrap();
    let validator = Validator::builder(source)
        .audience("reports")
        .build()
        .unwrap();
    let app = ValidateJwtSvidLayer::required(validator, Allow::id(WEB).unwrap())
        .layer(Router::new().route("/", get(hello)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        axum::serve(listener, ServiceExt::<Request>::into_make_service(app)).await
    });
    format!("http://{address}/")
}

async fn agent() -> FakeAgent {
    let agent = agent::start("example.org").await;
    agent.register(WEB, "", LIFE).unwrap();
    agent
}

fn call(agent: &FakeAgent, args: &[&str]) -> tokio::process::Command {
    let mut command = program("call");
    command
        .env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint().to_string())
        .args(args);
    command
}

#[tokio::test]
async fn call_signs_and_describes_the_token() {
    let agent = agent().await;
    let url = server(&agent).await;
    let before = agent.counts();
    let args = ["--audience", "reports", "--spiffe-id", WEB];
    let Finished { code, out, err } =
        run(call(&agent, &args).args(["--allow-plaintext", "-n", "3", &url])).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.starts_with(&format!("token: sub {WEB}, aud [\"reports\"], ")),
        "{out}"
    );
    assert_eq!(out.matches("200 OK").count(), 3, "{out}");
    assert_eq!(out.matches(&format!("hello, {WEB}")).count(), 3, "{out}");
    let fetched = agent.counts().fetch_jwt_svid - before.fetch_jwt_svid;
    assert_eq!(fetched, 1, "one token for three calls");
}

#[tokio::test]
async fn rejected_call_fails_and_shows_the_challenge() {
    let agent = agent().await;
    let url = server(&agent).await;
    let args = ["--audience", "ledger", "--allow-plaintext", &url];
    let Finished { code, out, .. } = run(&mut call(&agent, &args)).await;
    assert_eq!(code, Some(1), "{out}");
    assert!(
        out.contains("401") && out.contains("another audience"),
        "{out}"
    );
}

#[tokio::test]
async fn call_over_plaintext_fails_by_default() {
    let agent = agent().await;
    let url = server(&agent).await;
    let Finished { code, out, err } =
        run(&mut call(&agent, &["--audience", "reports", &url])).await;
    assert_eq!(code, Some(1), "{out}{err}");
    assert_eq!(out.lines().count(), 1, "the token only: {out}");
    let errors: Vec<&str> = err
        .lines()
        .filter(|line| !line.contains("waiting for"))
        .collect();
    assert_eq!(errors.len(), 1, "{err}");
    assert!(errors[0].starts_with("call: ") && errors[0].contains("--allow-plaintext"));

    // An ambiguous origin gets neither a token nor a request without a token.
    let confused = url.replace("http://", "http://user@");
    let args = ["--audience", "reports", "--allow-plaintext", &confused];
    let output = run(&mut call(&agent, &args)).await;
    assert_eq!(output.code, Some(1), "{}", output.all());
    assert!(
        !output.all().contains("401"),
        "it was sent: {}",
        output.all()
    );
}

#[tokio::test]
async fn call_names_an_invalid_endpoint() {
    for (endpoint, whys) in [
        (None, ["SPIFFE_ENDPOINT_SOCKET", "is unset"]),
        (Some("unix:relative"), ["SPIFFE_ENDPOINT_SOCKET", "unix:"]),
        (
            Some("http://127.0.0.1:1"),
            ["SPIFFE_ENDPOINT_SOCKET", "tcp"],
        ),
    ] {
        let mut command = program("call");
        if let Some(endpoint) = endpoint {
            command.env("SPIFFE_ENDPOINT_SOCKET", endpoint);
        }
        let output = run(command.args(["--audience", "reports", "http://localhost/"])).await;
        assert_eq!(output.code, Some(1), "{}", output.all());
        for why in whys {
            assert!(output.err.contains(why), "no {why:?} in: {}", output.err);
        }
    }
}

#[tokio::test]
async fn call_reports_an_invalid_command_line() {
    for (args, why) in [
        (&["http://localhost/"][..], "--audience <AUD>"),
        (&["--audience", "a"], "<URL>"),
        (&["--audience", "a", "localhost"], "'localhost'"),
        (
            &["--audience", "a", "--spiffe-id", "spiffe://X", "http://x/"],
            "--spiffe-id",
        ),
        (&["--audience", "a", "-n", "x", "http://x/"], "'-n <N>'"),
        (&["--colour"], "'--colour'"),
    ] {
        let output = run(program("call").args(args)).await;
        assert_eq!(output.code, Some(2), "{}", output.all());
        assert!(output.err.contains(why), "no {why} in: {}", output.err);
    }
}

#[tokio::test]
async fn e30_call_reports_a_missing_agent() {
    let mut running = Running::start(
        program("call")
            .env("SPIFFE_ENDPOINT_SOCKET", NO_AGENT)
            .args(["--audience", "reports", "http://localhost/"]),
    );
    let line = running.error_line().await;
    for part in [
        "call: waiting for the first bundles",
        &format!("{NO_AGENT}: "),
        "cannot connect",
    ] {
        assert!(line.contains(part), "no {part:?} in: {line}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn e30_call_reports_a_silent_agent() {
    let silent = crate::support::SilentSocket::new("call");
    let mut running = Running::start(
        program("call")
            .env("SPIFFE_ENDPOINT_SOCKET", silent.endpoint())
            .args(["--audience", "reports", "http://localhost/"]),
    );
    let line = running.error_line().await;
    let waits = format!(
        "the first bundles from the agent at {}: no",
        silent.endpoint()
    );
    assert!(line.contains(&waits), "{line}");
}

#[tokio::test]
async fn e30_call_reports_a_wait_for_a_token() {
    let agent = agent().await;
    agent.fail_call(AgentCall::FetchJwtSvid, Fault::Hang);
    let args = ["--audience", "reports", "http://localhost/"];
    let mut running = Running::start(&mut call(&agent, &args));
    let line = running.error_line_with("a token").await;
    let waits = format!(
        "call: waiting for a token for \"reports\" from the agent at {}",
        agent.endpoint()
    );
    assert_eq!(line, waits);
}

#[tokio::test]
async fn e30_call_reports_a_silent_server() {
    let agent = agent().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let url = format!("{origin}/path?secret=1");
    let args = ["--audience", "reports", "--allow-plaintext", &url];
    let mut running = Running::start(&mut call(&agent, &args));
    let line = running.error_line_with("respond").await;
    assert_eq!(line, format!("call: waiting for {origin} to respond"));
}

#[tokio::test]
async fn e30_quick_call_reports_no_wait() {
    let agent = agent().await;
    let url = server(&agent).await;
    let args = ["--audience", "reports", "--allow-plaintext", &url];
    // On a busy machine one call may be slow, but not five.
    for _ in 0..5 {
        if run(&mut call(&agent, &args)).await.err.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("each call reported a wait");
}
