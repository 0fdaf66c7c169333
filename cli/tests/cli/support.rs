//! Runs the program and reads what it prints.

use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

pub(crate) const WEB: &str = "spiffe://example.org/web";
pub(crate) const LIFE: Duration = Duration::from_secs(300);

/// An endpoint on which no agent listens.
pub(crate) const NO_AGENT: &str = if cfg!(unix) {
    "unix:///nowhere/agent.sock"
} else {
    "tcp://127.0.0.1:1"
};

/// How long a test waits for the program before it fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// The program with this subcommand, without an agent.
pub(crate) fn program(subcommand: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tower-spiffe"));
    command
        .arg(subcommand)
        .env_remove("SPIFFE_ENDPOINT_SOCKET")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The exit code and the output of the program.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Finished {
    pub(crate) fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

pub(crate) async fn run(command: &mut Command) -> Finished {
    let Output {
        status,
        stdout,
        stderr,
    } = tokio::time::timeout(DEADLINE, command.output())
        .await
        .unwrap()
        .unwrap();
    let [out, err] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    let output = Finished {
        code: status.code(),
        out,
        err,
    };
    assert!(!output.all().contains("eyJ"), "a token was printed");
    output
}

/// The program while it runs.
pub(crate) struct Running {
    pub(crate) child: Child,
    out: Option<Lines<BufReader<ChildStdout>>>,
    err: Lines<BufReader<ChildStderr>>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Self {
            out: Some(BufReader::new(child.stdout.take().unwrap()).lines()),
            err: BufReader::new(child.stderr.take().unwrap()).lines(),
            child,
        }
    }

    /// The next line of standard output.
    pub(crate) async fn line(&mut self) -> String {
        let out = self.out.as_mut().unwrap();
        let line = tokio::time::timeout(DEADLINE, out.next_line()).await;
        line.unwrap().unwrap().unwrap()
    }

    /// Closes the reading end of its standard output.
    #[cfg(unix)]
    pub(crate) fn close_output(&mut self) {
        self.out = None;
    }

    /// The next line of standard output that contains `part`.
    pub(crate) async fn line_with(&mut self, part: &str) -> String {
        loop {
            let line = self.line().await;
            if line.contains(part) {
                return line;
            }
        }
    }

    /// The next line of standard error.
    pub(crate) async fn error_line(&mut self) -> String {
        let line = tokio::time::timeout(DEADLINE, self.err.next_line()).await;
        line.unwrap().unwrap().unwrap()
    }

    /// The next line of standard error that contains `part`.
    pub(crate) async fn error_line_with(&mut self, part: &str) -> String {
        loop {
            let line = self.error_line().await;
            if line.contains(part) {
                return line;
            }
        }
    }

    #[cfg(unix)]
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill")
            .args([name, &id])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Ends the program with SIGTERM. An agent that is killed leaves its socket behind.
    #[cfg(unix)]
    pub(crate) async fn stop(&mut self) {
        self.signal("-TERM");
        assert_eq!(self.code().await, Some(0));
    }

    #[cfg(not(unix))]
    pub(crate) async fn stop(&mut self) {
        self.child.kill().await.unwrap();
    }

    pub(crate) async fn code(&mut self) -> Option<i32> {
        let ended = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        ended.unwrap().unwrap().code()
    }
}

/// A Unix socket that accepts connections and never responds. It is removed on drop.
#[cfg(unix)]
pub(crate) struct SilentSocket {
    path: std::path::PathBuf,
    _listener: std::os::unix::net::UnixListener,
}

#[cfg(unix)]
impl SilentSocket {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("silent-{}-{name}", std::process::id()));
        Self {
            _listener: std::os::unix::net::UnixListener::bind(&path).unwrap(),
            path,
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", self.path.display())
    }
}

#[cfg(unix)]
impl Drop for SilentSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
