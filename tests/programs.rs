//! Runs the examples as a user does, with their own agent and with an external one.
//!
//! `cargo test` builds the examples first.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use tokio::process::Command;
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault};

const WEB: &str = "spiffe://example.org/web";
const LIFE: Duration = Duration::from_secs(300);

fn program(name: &str) -> Command {
    let here = std::env::current_exe().unwrap();
    let built: PathBuf = here
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        built
            .with_extension(std::env::consts::EXE_EXTENSION)
            .exists(),
        "{} is not built; `cargo test` builds it, `cargo test --test programs` alone does not",
        built.display()
    );
    let mut command = Command::new(built);
    command
        .env_remove("SPIFFE_ENDPOINT_SOCKET")
        .kill_on_drop(true);
    command
}

async fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = tokio::time::timeout(Duration::from_secs(120), command.output())
        .await
        .unwrap()
        .unwrap();
    let said = [stdout, stderr]
        .map(|bytes| String::from_utf8(bytes).unwrap())
        .concat();
    assert!(!said.contains("eyJ"), "a token was printed");
    (status.code(), said)
}

#[tokio::test]
async fn quickstart_with_external_agent_reports_skipped_steps() {
    let agent = FakeAgent::start("example.org").await.unwrap();
    agent.register(WEB, "", LIFE).unwrap();
    let (code, said) =
        run(program("quickstart").env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint().to_string()))
            .await;
    assert_eq!(code, Some(0), "{said}");
    for skipped in ["expired token", "rotation"] {
        let line = said
            .lines()
            .find(|line| line.contains("skipped") && line.contains(skipped));
        assert!(line.is_some(), "{skipped}: {said}");
    }
    let line = said
        .lines()
        .find(|line| line.contains("caller not allowed"));
    assert!(line.is_some_and(|line| line.contains("403")), "{said}");
    assert!(said.contains("All checks passed."), "{said}");
}

#[tokio::test]
async fn quickstart_loses_no_call_to_a_rotation() {
    let (code, said) = run(&mut program("quickstart")).await;
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "Workload API: embedded",
        "the token has expired",
        "of which 0 were lost",
        "All checks passed.",
    ] {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
}

#[tokio::test]
async fn quickstart_names_an_invalid_endpoint() {
    let (code, said) =
        run(program("quickstart").env("SPIFFE_ENDPOINT_SOCKET", "unix:relative")).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("SPIFFE_ENDPOINT_SOCKET"), "{said}");
}

#[tokio::test]
async fn testing_example_passes_its_tests() {
    let (code, said) = run(&mut program("testing")).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("ok: ").count(), 5, "{said}");
}

#[tokio::test]
async fn observability_scrape_counts_rejections() {
    let (code, said) = run(&mut program("observability")).await;
    assert_eq!(code, Some(0), "{said}");
    for outcome in ["verified", "missing", "not-allowed"] {
        let counted = format!("spiffe_admissions_total{{outcome=\"{outcome}\"");
        assert!(said.contains(&counted), "{said}");
    }
    assert!(said.contains("spiffe_svid_fetch_duration_seconds_bucket"));
}

#[tokio::test]
async fn h10_server_without_agent_verifies_two_domains() {
    let (code, said) = run(&mut program("server_without_agent")).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("200 spiffe://example.org/web"), "{said}");
    assert!(said.contains("200 spiffe://partner.example/web"), "{said}");
}

#[tokio::test]
async fn e30_servers_use_their_own_agent_or_yours() {
    // Another trust domain than the one of their own agent.
    let me = "spiffe://other.test/web";
    let agent = FakeAgent::start("other.test").await.unwrap();
    agent.register(me, "", LIFE).unwrap();
    for (name, skips) in [
        ("server_axum", true),
        ("server_tonic", true),
        ("server_hyper", false),
        ("server_tower_http", false),
        ("proxy", false),
    ] {
        let (code, said) = run(&mut program(name)).await;
        assert_eq!(code, Some(0), "{name}: {said}");
        let own = "spiffe://example.org/workload";
        assert!(said.contains(own), "{name}: {said}");
        assert!(!said.contains("skipped"), "{name}: {said}");

        let before = agent.counts().fetch_jwt_svid;
        let (code, said) =
            run(program(name).env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint().to_string())).await;
        assert_eq!(code, Some(0), "{name}: {said}");
        assert!(said.contains(me) && !said.contains(own), "{name}: {said}");
        assert_eq!(said.contains("skipped"), skips, "{name}: {said}");
        assert!(agent.counts().fetch_jwt_svid > before, "{name}");
    }
}

#[tokio::test]
async fn e30_servers_run_as_ops_too() {
    let agent = FakeAgent::start("other.test").await.unwrap();
    agent.register("spiffe://other.test/ops", "", LIFE).unwrap();
    for name in ["server_axum", "server_tonic"] {
        let (code, said) =
            run(program(name).env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint().to_string())).await;
        assert_eq!(code, Some(0), "{name}: {said}");
    }
}

#[tokio::test]
async fn e30_examples_name_an_invalid_endpoint() {
    for name in [
        "server_axum",
        "server_tonic",
        "server_hyper",
        "server_tower_http",
        "proxy",
    ] {
        let (code, said) = run(program(name).env("SPIFFE_ENDPOINT_SOCKET", "")).await;
        assert_eq!(code, Some(1), "{name}: {said}");
        assert!(said.contains("SPIFFE_ENDPOINT_SOCKET"), "{name}: {said}");
    }
}

#[tokio::test]
async fn e30_quickstart_reports_what_it_waits_for() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    let socket = "unix:///nowhere/agent.sock";
    let agent = FakeAgent::start("example.org").await.unwrap();
    agent.fail_call(AgentCall::FetchJwtSvid, Fault::Hang);
    for (endpoint, what) in [
        (socket, format!("the first bundles from {socket}")),
        (
            &agent.endpoint().to_string(),
            "a token from the agent".to_owned(),
        ),
    ] {
        let mut child = program("quickstart")
            .env("SPIFFE_ENDPOINT_SOCKET", endpoint)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let waits = format!("quickstart: waiting for {what}");
        let found = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.starts_with(&waits) {
                    return true;
                }
            }
            false
        };
        let deadline = Duration::from_secs(20);
        assert!(
            tokio::time::timeout(deadline, found).await.unwrap(),
            "{waits}"
        );
    }
}

#[tokio::test]
async fn three_services_lose_no_call() {
    let (code, said) = run(&mut program("three_services")).await;
    assert_eq!(code, Some(0), "{said}");
    let ids =
        ["web", "edge", "reports", "ledger"].map(|name| format!("spiffe://example.org/{name}"));
    for hop in ids.windows(2) {
        let seen = format!("{} called {}", hop[0], hop[1]);
        assert!(said.contains(&seen), "{seen}: {said}");
    }
    assert!(said.contains("of which 0 were lost"), "{said}");
}

#[tokio::test]
async fn clients_use_their_own_agent_or_yours() {
    let agent = FakeAgent::start("example.org").await.unwrap();
    agent.register(WEB, "", LIFE).unwrap();
    for name in [
        "client_hyper",
        "client_reqwest",
        "client_reqwest_middleware",
        "client_tonic",
    ] {
        let (code, said) = run(&mut program(name)).await;
        assert_eq!(code, Some(0), "{name}: {said}");
        let me = "spiffe://example.org/workload";
        assert!(said.contains(me), "{name}: {said}");

        let (code, said) =
            run(program(name).env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint().to_string())).await;
        assert_eq!(code, Some(0), "{name}: {said}");
        assert!(said.contains(WEB), "{name}: {said}");
    }
    let (code, said) = run(&mut program("client_stack")).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("50 served, 1 call to the agent"), "{said}");
}

#[tokio::test]
async fn policy_file_follows_its_file() {
    let (code, said) = run(&mut program("policy_file")).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains(", column 1: the rule has no `methods`"),
        "{said}"
    );
    assert!(said.contains("GET /reports/7 as portal: 200"), "{said}");
}

#[tokio::test]
async fn x01_oauth_exchange_acts_for_its_caller() {
    let (code, said) = run(&mut program("oauth_exchange")).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("2 exchanges, 0 failures"), "{said}");
}

#[tokio::test]
async fn policy_opa_denies_while_opa_fails() {
    let (code, said) = run(&mut program("policy_opa")).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("OPA was asked"), "{said}");
}

#[tokio::test]
async fn e03_gateway_forwards_no_token() {
    let (code, said) = run(&mut program("gateway")).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("with a token: false"), "{said}");
}
