//! Runs the live tests with the embedded agent, so that they run everywhere.

use std::process::Stdio;
#[cfg(unix)]
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
#[cfg(unix)]
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::workload_api::ENDPOINT_VARIABLE;
use tower_spiffe_test_support::wait::soon;

/// Runs the tests of this binary whose names begin with `filter`, and returns their reports. Calls
/// `operate` for each line.
async fn run(filter: &str, endpoint: Option<&str>, mut operate: impl AsyncFnMut(&str)) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .arg(filter)
        .env_remove(ENDPOINT_VARIABLE)
        .env("TOWER_SPIFFE_LIVE_SECONDS", "5")
        .stderr(Stdio::piped())
        .stdout(Stdio::inherit())
        .kill_on_drop(true);
    if let Some(endpoint) = endpoint {
        command.env(ENDPOINT_VARIABLE, endpoint);
    }
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        operate(&line).await;
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait().await.unwrap();
    assert!(status.success(), "{said}");
    assert!(!said.contains("eyJ"), "a token was printed");
    said
}

#[tokio::test]
async fn skipped_tests_are_reported() {
    let said = soon("the tests", run("live_", None, async |_| ())).await;
    assert_eq!(said.matches("is skipped").count(), 5, "{said}");
}

#[cfg(unix)]
#[tokio::test]
async fn embedded_agent_passes_every_test() {
    let agent = FakeAgent::start("example.org").await.unwrap();
    agent.federate("partner.example").unwrap();
    let endpoint = agent.endpoint().to_string();
    // The first report lists the keys at the start. Each step causes the next report.
    let mut step = 0;
    let operate = async |line: &str| {
        if !line.contains(" s: ") {
            return;
        }
        step += 1;
        match step {
            1 => drop(agent.rotate().await),
            2 => agent.withdraw(),
            3 => {
                agent.restore();
                agent.restart().await.unwrap();
            }
            4 => drop(agent.rotate_now()),
            _ => {}
        }
    };
    let run = run("live_", Some(&endpoint), operate);
    let said = tokio::time::timeout(Duration::from_secs(60), run).await;
    let said = said.unwrap();
    assert!(!said.contains("is skipped"), "{said}");
    for expected in [
        "ready: false, withdrawn: Some",
        "ready: true",
        "done: revision",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(said.matches(", keys {").count() >= 3, "{said}");
}
