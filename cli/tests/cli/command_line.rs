//! The command line as a whole: help, version, completions, errors.

use std::process::Stdio;

use tokio::process::Command;

use crate::support::{program, run};

const SUBCOMMANDS: [&str; 8] = [
    "watch",
    "explain",
    "call",
    "policy",
    "token-file",
    "agent",
    "agent-load",
    "completions",
];

#[tokio::test]
async fn help_has_examples_that_parse() {
    let said = run(&mut program("--help")).await;
    assert_eq!((said.code, &*said.err), (Some(0), ""));
    for name in SUBCOMMANDS {
        assert!(said.out.contains(&format!("\n  {name} ")), "{}", said.out);
        let said = run(program(name).arg("--help")).await;
        assert_eq!((said.code, &*said.err), (Some(0), ""));
        let usage = format!("Usage: tower-spiffe {name} ");
        assert!(said.out.contains(&usage), "{}", said.out);
        let examples = said.out.split_once("\nExamples:\n").unwrap().1;
        let prefix = format!("  tower-spiffe {name}");
        let mut examples = examples.lines().filter(|line| line.starts_with(&prefix));
        assert!(examples.next().is_some(), "{}", said.out);
        // `help` behind an example: every option before it is known.
        for example in examples.filter(|line| !line.contains(['<', '>', '|', '\\'])) {
            let args = example.trim().split(' ').skip(2);
            let said = run(program(name).args(args).arg("--help")).await;
            assert_eq!(said.code, Some(0), "{example}: {}", said.err);
        }
    }
}

#[tokio::test]
async fn version_is_that_of_the_package() {
    let said = run(&mut program("--version")).await;
    let version = format!("tower-spiffe {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((said.code, said.out), (Some(0), version));
}

#[tokio::test]
async fn completions_know_every_subcommand() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let said = run(program("completions").arg(shell)).await;
        assert_eq!(said.code, Some(0), "{shell}: {}", said.err);
        for name in SUBCOMMANDS {
            assert!(said.out.contains(name), "{shell}: no {name}");
        }
        assert!(said.out.contains("trust-domain"), "{shell}");
    }
    let said = run(program("completions").arg("tcsh")).await;
    assert_eq!(said.code, Some(2), "{}", said.all());
}

#[tokio::test]
async fn no_command_is_an_error_with_help() {
    let said = run(&mut Command::new(env!("CARGO_BIN_EXE_tower-spiffe"))).await;
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("Usage: tower-spiffe <COMMAND>"));
    let said = run(&mut program("look")).await;
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("'look'"), "{}", said.err);
}

#[tokio::test]
async fn errors_do_not_repeat_tokens() {
    let token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzcGlmZmU6Ly90ZC50ZXN0L3dlYiJ9.c2ln";
    let opaque = "x".repeat(65);
    for token in [token, &opaque] {
        let joined = format!("--leeway={token}");
        let option = format!("--{token}");
        for args in [
            vec![token],
            vec!["explain", token],
            vec!["explain", &joined],
            vec!["explain", &option],
            vec!["explain", "--now", token],
            vec!["explain", "--format", token],
            vec!["call", "--audience", "a", token],
            vec!["call", "--audience", "a", "--spiffe-id", token],
            vec!["watch", token],
            vec!["watch", "--for", token],
            vec!["agent", "--token-life", token],
            vec!["completions", token],
        ] {
            let said = run(program(args[0]).args(&args[1..])).await;
            assert_eq!(said.code, Some(2), "{args:?}: {}", said.all());
            assert!(!said.all().contains(token), "{args:?}: {}", said.err);
            assert!(said.err.contains("hidden"), "{args:?}: {}", said.err);
        }
    }
    // Other values are named.
    let said = run(program("explain").args(["--leeway", "ten"])).await;
    assert!(said.err.contains("'ten'"), "{}", said.err);
}

#[tokio::test]
async fn last_value_of_an_option_counts() {
    let said = run(program("agent").args(["--for", "600", "--for", "1", "--tcp", "--tcp"])).await;
    assert_eq!(said.code, Some(0), "{}", said.all());
}

#[tokio::test]
async fn closed_pipe_keeps_the_exit_code() {
    let mut command = program("explain");
    command.arg("--help").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
}
