//! Runs a path under callgrind and reads what it wrote.

use std::collections::HashMap;
use std::process::{Command, Stdio};

use crate::paths::TIMES;

/// The instructions of one time through this path, without aws-lc's C code.
pub fn count(path: &str) -> f64 {
    let out = std::env::temp_dir().join(format!("callgrind.{}.{path}", std::process::id()));
    let program = std::env::current_exe().expect("we know where we are");
    let status = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*paths::counted*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["path", path])
        .stderr(Stdio::piped())
        .output()
        .expect("valgrind is installed");
    assert!(
        status.status.success(),
        "{}",
        String::from_utf8_lossy(&status.stderr)
    );
    let text = std::fs::read_to_string(&out).expect("callgrind wrote a file");
    let _ = std::fs::remove_file(&out);
    let count = rust_side(&text);
    assert!(count > 0, "nothing was collected for {path}");
    count as f64 / TIMES as f64
}

/// Everything, less what Rust's calls into aws-lc's C code cost.
///
/// The format: `fn=` begins a function, lines of numbers are its own cost, `cfn=` names whom it
/// calls, and the line after `calls=` is what that cost altogether.
fn rust_side(text: &str) -> u64 {
    let mut kinds = HashMap::new();
    let (mut total, mut foreign) = (0, 0);
    let (mut caller, mut callee) = (Kind::Other, Kind::Other);
    let mut after_calls = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            caller = kind(&mut kinds, name);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            callee = kind(&mut kinds, name);
        } else if line.starts_with("calls=") {
            after_calls = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse().ok());
            let cost: u64 = cost.unwrap_or(0);
            if !std::mem::take(&mut after_calls) {
                total += cost;
            } else if caller == Kind::Rust && callee == Kind::AwsLc {
                foreign += cost;
            }
        }
    }
    total - foreign
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Rust,
    /// One of those that aws-lc shows to Rust.
    AwsLc,
    Other,
}

/// Whose function this is; names are written out once and numbered after that.
fn kind<'a>(kinds: &mut HashMap<&'a str, Kind>, name: &'a str) -> Kind {
    let Some((number, name)) = name.split_once(' ') else {
        return kinds.get(name).copied().unwrap_or(Kind::Other);
    };
    // aws_lc_0_47_0_…: the version is in each name.
    let versioned = name.strip_prefix("aws_lc_");
    let kind = if versioned.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
        Kind::AwsLc
    } else if name.contains("::") {
        Kind::Rust
    } else {
        Kind::Other
    };
    kinds.insert(number, kind);
    kind
}
