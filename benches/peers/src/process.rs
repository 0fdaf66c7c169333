//! Peers that run as a separate program. It prints one line for each line that it reads.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Builds the program in this folder and returns its path. Returns `None` if the build fails.
pub fn build(folder: &str) -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = here.join("target").join(folder);
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--locked"])
        .arg("--manifest-path")
        .arg(here.join(folder).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .unwrap();
    let name = format!("release/tower-spiffe-peers-{folder}");
    status.success().then(|| target.join(name))
}

pub struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts the program and sends these lines. Returns `None` if it does not print `yes`.
    pub fn start(program: &Path, lines: &str) -> Option<Self> {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Self {
            child,
            lines: output,
        };
        (process.request(lines) == "yes").then_some(process)
    }

    fn request(&mut self, lines: &str) -> String {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{lines}").unwrap();
        self.lines.next().expect("a line of output").unwrap()
    }

    /// Sends this line and returns the printed time.
    pub fn time(&mut self, line: &str) -> Duration {
        Duration::from_nanos(self.request(line).parse().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
