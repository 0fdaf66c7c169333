//! `agent-load`.

use crate::support::{program, run};

#[tokio::test]
async fn agent_load_default_scenarios_pass() {
    let output = run(program("agent-load").arg("--quick")).await;
    assert_eq!(output.code, Some(0), "{}", output.all());
    assert_eq!(output.out.matches(": holds").count(), 8, "{}", output.out);
}

#[tokio::test]
async fn agent_load_runs_a_given_scenario() {
    let args = ["--processes", "2", "--audiences", "3", "--life", "60"];
    let output = run(program("agent-load").args(args).arg("--together")).await;
    assert_eq!(output.code, Some(0), "{}", output.all());
    let row: Vec<&str> = output
        .out
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        row[..5],
        ["2", "3", "together", "60", "1"],
        "{}",
        output.out
    );
    assert!(!output.out.contains("holds"), "{}", output.out);
}

#[tokio::test]
async fn agent_load_rejects_invalid_numbers() {
    for args in [
        ["--audiences", "none"],
        ["--processes", "0"],
        ["--rate", "0"],
        ["--rate", "inf"],
        ["--seeds", "1.5"],
    ] {
        let output = run(program("agent-load").args(args)).await;
        assert_eq!(output.code, Some(2), "{args:?}: {}", output.all());
        assert!(
            output.err.contains(args[0]) && output.out.is_empty(),
            "{}",
            output.err
        );
    }
}
