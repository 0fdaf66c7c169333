//! `token-file`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::process::Command;
use tower_spiffe::JwtSvid;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe_test_support::temp::TempDir;

use crate::support::{Running, program, run};

struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(TempDir::new())
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

async fn agent(life: u64) -> FakeAgent {
    let agent = FakeAgent::builder("example.org").token_life(Duration::from_secs(life));
    let started = if cfg!(unix) {
        agent.start().await
    } else {
        agent.start_tcp().await
    };
    started.unwrap()
}

fn token_file(agent: &FakeAgent, args: &[&str]) -> Command {
    let mut command = program("token-file");
    command
        .env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint().to_string())
        .args(args);
    command
}

/// Checks the permission bits of a file, on Unix.
fn has_mode(path: impl AsRef<Path>, expected: u32) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(path).unwrap().permissions().mode() & 0o7777 == expected
    }
    #[cfg(not(unix))]
    {
        let _ = (path, expected);
        true
    }
}

fn read(path: impl AsRef<Path>) -> JwtSvid {
    JwtSvid::parse_unverified(&fs::read_to_string(path).unwrap(), "").unwrap()
}

#[tokio::test]
async fn t03_once_writes_each_file() {
    let (agent, dir) = (agent(300).await, Dir::new());
    let (a, b, log) = (dir.path("a"), dir.path("b"), dir.path("log"));
    // Quotes and operators are those of the shell.
    let (command, mode) = match cfg!(windows) {
        true => ("echo %TOWER_SPIFFE_TOKEN_FILE%", &[][..]),
        false => ("echo \"$TOWER_SPIFFE_TOKEN_FILE\"", &["--mode", "640"][..]),
    };
    let command = format!("{command}>> \"{log}\"");
    let args = ["--file", "aud-a", &a, "--file", "aud-b", &b];
    let args = [&args[..], &["--once", "--command", &command], mode].concat();
    let output = run(&mut token_file(&agent, &args)).await;
    assert_eq!(
        (output.code, &*output.err),
        (Some(0), ""),
        "{}",
        output.all()
    );
    for (path, audience) in [(&a, "aud-a"), (&b, "aud-b")] {
        assert_eq!(read(path).audiences().collect::<Vec<_>>(), [audience]);
        assert!(has_mode(path, 0o640));
        assert!(
            output.out.contains(&format!("wrote {path}")),
            "{}",
            output.out
        );
    }
    let mut acted: Vec<String> = fs::read_to_string(log)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    acted.sort();
    assert_eq!(acted, [a, b]);
}

#[tokio::test]
async fn t03_file_is_refreshed_and_removed_at_the_end() {
    let (agent, dir) = (agent(2).await, Dir::new());
    let path = dir.path("token");
    let mut running = Running::start(&mut token_file(
        &agent,
        &["--file", "aud", &path, "--remove-on-exit"],
    ));
    running.line_with("wrote").await;
    let first = read(&path);
    assert!(has_mode(&path, 0o600));
    running.line_with("wrote").await;
    running.line_with("wrote").await;
    assert_ne!(read(&path).token(), first.token());
    assert!(has_mode(&path, 0o600));
    running.stop().await;
    // Elsewhere the test ends the program without a signal.
    assert!(cfg!(not(unix)) || !Path::new(&path).exists());
}

#[cfg(unix)]
#[tokio::test]
async fn t03_signal_follows_each_write() {
    let (agent, dir) = (agent(300).await, Dir::new());
    let (path, pid, ready, got) = (
        dir.path("token"),
        dir.path("pid"),
        dir.path("ready"),
        dir.path("got"),
    );
    let script =
        format!("trap 'echo got > {got}; exit' USR1; echo > {ready}; while :; do sleep 0.05; done");
    let mut reader = Command::new("sh")
        .args(["-c", &script])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    fs::write(&pid, format!("{}\n", reader.id().unwrap())).unwrap();
    while !Path::new(&ready).exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let args = [
        "--file",
        "aud",
        &path,
        "--once",
        "--signal",
        "SIGUSR1",
        "--pid-file",
        &pid,
    ];
    let output = run(&mut token_file(&agent, &args)).await;
    assert_eq!(output.code, Some(0), "{}", output.all());
    let ended = tokio::time::timeout(crate::support::DEADLINE, reader.wait()).await;
    ended.unwrap().unwrap();
    assert_eq!(fs::read_to_string(got).unwrap(), "got\n");
}

#[tokio::test]
async fn t03_once_fails_if_the_action_fails() {
    let (agent, dir) = (agent(300).await, Dir::new());
    let path = dir.path("token");
    let args = ["--file", "aud", &path, "--once", "--command", "exit 7"];
    let output = run(&mut token_file(&agent, &args)).await;
    assert_eq!(output.code, Some(1), "{}", output.all());
    assert!(output.err.contains("exit 7") && output.err.contains("7\n"));
    #[cfg(unix)]
    for id in ["0", "-1", "x", ""] {
        fs::write(dir.path("pid"), id).unwrap();
        let pid = dir.path("pid");
        let args = [
            "--file",
            "aud",
            &path,
            "--once",
            "--signal",
            "HUP",
            "--pid-file",
            &pid,
        ];
        let output = run(&mut token_file(&agent, &args)).await;
        assert_eq!(output.code, Some(1), "{}", output.all());
        assert!(output.err.contains("not a process ID"), "{}", output.err);
    }
}

/// With a file size limit of 0, the write fails but the creation of the file does not, as on a full
/// disk.
#[cfg(unix)]
#[tokio::test]
async fn t03_full_disk_keeps_the_old_file() {
    let (agent, dir) = (agent(300).await, Dir::new());
    let path = dir.path("token");
    fs::write(&path, "the old token").unwrap();
    let program = env!("CARGO_BIN_EXE_tower-spiffe");
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$@\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh", program, "token-file"])
        .args(["--file", "aud", &path, "--for", "3"])
        .env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint().to_string())
        .kill_on_drop(true);
    let output = run(&mut command).await;
    assert_eq!(output.code, Some(1), "{}", output.all());
    assert!(
        output.err.contains("cannot be written (its content)"),
        "{}",
        output.err
    );
    assert!(
        output.err.contains("free space on its disk"),
        "{}",
        output.err
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "the old token");
    let left = fs::read_dir(dir.0.path()).unwrap().count();
    assert_eq!(left, 1, "a temporary file was left");
}

#[tokio::test]
async fn t03_missing_token_is_reported() {
    let (agent, dir) = (agent(300).await, Dir::new());
    let path = dir.path("token");
    let args = [
        "--file",
        "aud",
        &path,
        "--for",
        "2",
        "--spiffe-id",
        "spiffe://example.org/unknown",
    ];
    let output = run(&mut token_file(&agent, &args)).await;
    assert_eq!(output.code, Some(1), "{}", output.all());
    assert!(
        output.err.contains("waiting for the token of"),
        "{}",
        output.err
    );
    assert!(output.err.contains("PermissionDenied"), "{}", output.err);
    assert!(!Path::new(&path).exists());
}

#[tokio::test]
async fn t03_invalid_command_lines_are_errors() {
    let agent = agent(300).await;
    for args in [
        &["--file", "aud"][..],
        &[],
        &["--file", "aud", "p", "--mode", "999"],
        &["--file", "aud", "p", "--mode", "4755"],
        &["--file", "aud", "p", "--signal", "KILL", "--pid-file", "x"],
        &["--file", "aud", "p", "--signal", "HUP"],
        &["--file", "aud", "p", "--pid-file", "x"],
        &["--file", "aud", "p", "--once", "--remove-on-exit"],
    ] {
        let output = run(&mut token_file(&agent, args)).await;
        assert_eq!(output.code, Some(2), "{args:?}: {}", output.all());
    }
    for args in [
        &["--file", "aud", "p", "--file", "other", "p"][..],
        &["--file", "", "p"],
        &["--file", "aud", "/"],
    ] {
        let output = run(&mut token_file(&agent, args)).await;
        assert_eq!(output.code, Some(1), "{args:?}: {}", output.all());
        assert!(output.err.starts_with("token-file: "), "{}", output.err);
    }
}
