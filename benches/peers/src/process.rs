//! Peers that need a program of their own: it answers each line of ours with one of its own.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Builds the program in this folder, if needed, and returns its path. `None` if it does not build.
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
    /// `None` if it does not answer these lines with `yes`.
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
        (process.ask(lines) == "yes").then_some(process)
    }

    fn ask(&mut self, question: &str) -> String {
        let stdin = self.child.stdin.as_mut().expect("it listens");
        writeln!(stdin, "{question}").unwrap();
        self.lines.next().expect("an answer").unwrap()
    }

    /// Asks for a time.
    pub fn time(&mut self, question: &str) -> Duration {
        Duration::from_nanos(self.ask(question).parse().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
