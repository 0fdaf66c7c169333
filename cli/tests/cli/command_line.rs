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
    let output = run(&mut program("--help")).await;
    assert_eq!((output.code, &*output.err), (Some(0), ""));
    for name in SUBCOMMANDS {
        assert!(
            output.out.contains(&format!("\n  {name} ")),
            "{}",
            output.out
        );
        let output = run(program(name).arg("--help")).await;
        assert_eq!((output.code, &*output.err), (Some(0), ""));
        let usage = format!("Usage: tower-spiffe {name} ");
        assert!(output.out.contains(&usage), "{}", output.out);
        let examples = output.out.split_once("\nExamples:\n").unwrap().1;
        let examples = examples.replace("\\\n", " ");
        let prefix = format!("  tower-spiffe {name}");
        let examples: Vec<_> = examples
            .lines()
            .filter(|line| line.starts_with(&prefix))
            .collect();
        assert!(!examples.is_empty(), "{}", output.out);
        // With `--help` at the end, an example is parsed but not run.
        for example in examples {
            let command = example.split(['<', '>', '|']).next().unwrap();
            let args = words(command).into_iter().skip(2);
            let output = run(program(name).args(args).arg("--help")).await;
            assert_eq!(output.code, Some(0), "{example}: {}", output.err);
        }
    }
}

/// Splits a command as a shell does, without escapes.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in command.trim().chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == ' ' => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[tokio::test]
async fn version_is_the_package_version() {
    let output = run(&mut program("--version")).await;
    let version = format!("tower-spiffe {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((output.code, output.out), (Some(0), version));
}

#[tokio::test]
async fn completions_contain_every_subcommand() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = run(program("completions").arg(shell)).await;
        assert_eq!(output.code, Some(0), "{shell}: {}", output.err);
        for name in SUBCOMMANDS {
            assert!(output.out.contains(name), "{shell}: no {name}");
        }
        assert!(output.out.contains("trust-domain"), "{shell}");
    }
    let output = run(program("completions").arg("tcsh")).await;
    assert_eq!(output.code, Some(2), "{}", output.all());
}

#[tokio::test]
async fn no_command_is_an_error_with_help() {
    let output = run(&mut Command::new(env!("CARGO_BIN_EXE_tower-spiffe"))).await;
    assert_eq!(output.code, Some(2));
    assert!(output.err.contains("Usage: tower-spiffe <COMMAND>"));
    let output = run(&mut program("look")).await;
    assert_eq!(output.code, Some(2));
    assert!(output.err.contains("'look'"), "{}", output.err);
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
            let output = run(program(args[0]).args(&args[1..])).await;
            assert_eq!(output.code, Some(2), "{args:?}: {}", output.all());
            assert!(!output.all().contains(token), "{args:?}: {}", output.err);
            assert!(output.err.contains("hidden"), "{args:?}: {}", output.err);
        }
    }
    // Other values are printed.
    let output = run(program("explain").args(["--leeway", "ten"])).await;
    assert!(output.err.contains("'ten'"), "{}", output.err);
}

#[tokio::test]
async fn last_value_of_an_option_is_used() {
    let output = run(program("agent").args(["--for", "600", "--for", "1", "--tcp", "--tcp"])).await;
    assert_eq!(output.code, Some(0), "{}", output.all());
}

#[tokio::test]
async fn closed_pipe_keeps_the_exit_code() {
    let mut command = program("explain");
    command.arg("--help").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
}
