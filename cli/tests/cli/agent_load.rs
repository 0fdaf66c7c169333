//! `agent-load`.

use crate::support::{program, run};

#[tokio::test]
async fn agent_load_finds_that_the_promises_hold() {
    let said = run(program("agent-load").arg("--quick")).await;
    assert_eq!(said.code, Some(0), "{}", said.all());
    assert_eq!(said.out.matches(": holds").count(), 8, "{}", said.out);
}

#[tokio::test]
async fn agent_load_answers_own_questions() {
    let args = ["--processes", "2", "--audiences", "3", "--life", "60"];
    let said = run(program("agent-load").args(args).arg("--together")).await;
    assert_eq!(said.code, Some(0), "{}", said.all());
    let row: Vec<&str> = said
        .out
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(row[..5], ["2", "3", "together", "60", "1"], "{}", said.out);
    assert!(!said.out.contains("holds"), "{}", said.out);
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
        let said = run(program("agent-load").args(args)).await;
        assert_eq!(said.code, Some(2), "{args:?}: {}", said.all());
        assert!(
            said.err.contains(args[0]) && said.out.is_empty(),
            "{}",
            said.err
        );
    }
}
