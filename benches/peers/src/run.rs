//! The environment of a run: machine, system, compiler and versions.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Sections of runs with equal environments may be combined.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Run(Vec<(String, String)>);

impl Run {
    /// Reads the current environment.
    pub fn here() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let lock =
            std::fs::read_to_string(here.join("Cargo.lock")).expect("Cargo.lock is readable");
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let all = [
            (
                "processor",
                format!(
                    "{}, {cores} cores",
                    field(&read("/proc/cpuinfo"), "model name")
                ),
            ),
            ("memory", memory(&field(&read("/proc/meminfo"), "MemTotal"))),
            (
                "system",
                format!(
                    "Linux {}, {}",
                    read("/proc/sys/kernel/osrelease").trim(),
                    first_line("ldd", &["--version"])
                ),
            ),
            ("allocator", "the system's, wrapped by a counter".to_owned()),
            (
                "compiler",
                format!("{}, release", first_line("rustc", &["--version"])),
            ),
            (
                "tower-spiffe",
                format!("{}, {}", version(&lock, "tower-spiffe"), commit(here)),
            ),
            (
                "aws-lc",
                format!(
                    "aws-lc-rs {}, aws-lc-sys {}",
                    version(&lock, "aws-lc-rs"),
                    version(&lock, "aws-lc-sys")
                ),
            ),
            (
                "lock file",
                format!("{:016x} (FNV-1a)", fnv(lock.as_bytes())),
            ),
        ];
        Self(all.map(|(what, is)| (what.to_owned(), is)).to_vec())
    }

    pub fn about(&self) -> String {
        let lines = self.0.iter();
        lines
            .map(|(what, is)| format!("- {what}: {is}\n"))
            .collect()
    }

    /// Lists the values that differ from another run.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mine = self.0.iter().filter(|pair| !other.0.contains(pair));
        mine.map(|(what, is)| {
            let theirs = other.0.iter().find(|(name, _)| name == what);
            let theirs = theirs.map_or("missing", |(_, is)| is.as_str());
            format!("{what}: {is} in the file, {theirs} now")
        })
        .collect()
    }
}

pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn field(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once(':'));
    value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
}

fn memory(kib: &str) -> String {
    let number = kib.trim_end_matches(" kB").parse::<f64>();
    number.map_or_else(
        |_| kib.to_owned(),
        |kib| format!("{:.1} GiB", kib / 1024.0 / 1024.0),
    )
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let text = output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    text.lines().next().unwrap_or_default().to_owned()
}

/// Returns the last commit that changed the measured code, and whether there are later changes.
fn commit(here: &Path) -> String {
    const MEASURED: [&str; 4] = ["src", "proto", "Cargo.toml", "benches/peers"];
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(arguments).arg("--").args(MEASURED);
        let output = git.current_dir(here.join("../..")).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    match git(&["log", "-1", "--format=%h", "--abbrev=12"]) {
        Some(commit) if !commit.is_empty() => {
            let clean = git(&["status", "--porcelain"]).is_some_and(|status| status.is_empty());
            format!(
                "commit {commit}{}",
                if clean { "" } else { " with changes" }
            )
        }
        _ => "no commit".to_owned(),
    }
}

/// Returns the newest version of a crate in a lock file.
fn version(lock: &str, name: &str) -> String {
    let mut lines = lock.lines();
    let wanted = format!("name = \"{name}\"");
    let mut found = String::new();
    while let Some(line) = lines.next() {
        if line == wanted {
            let version = lines.next().unwrap_or_default();
            let version = version.trim_start_matches("version = ").trim_matches('"');
            found = version.to_owned();
        }
    }
    found
}

/// Returns the FNV-1a hash, to detect a changed lock file.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}
