//! Runs this very program under callgrind and reads what it wrote.

use std::collections::HashMap;
use std::process::{Command, Stdio};

/// What is counted.
pub struct Path<'a> {
    /// What this program is told, so that it takes the path.
    pub arguments: &'a [&'a str],
    /// The function that takes it, as callgrind's `--toggle-collect` wants it.
    pub toggle: &'a str,
    /// How often it does.
    pub times: usize,
    /// Whose functions, by their names, are not counted, nor what they call.
    pub library: fn(&str) -> bool,
}

/// The instructions of one time through this path, without the library's.
pub fn count(path: &Path<'_>) -> f64 {
    let name = path.arguments.join("-");
    let out = std::env::temp_dir().join(format!("callgrind.{}.{name}", std::process::id()));
    let program = std::env::current_exe().expect("we know where we are");
    let status = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--toggle-collect={}", path.toggle))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(path.arguments)
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
    let count = ours(&text, path.library);
    assert!(count > 0, "nothing was collected for {name}");
    count as f64 / path.times as f64
}

/// Everything, less what Rust's calls into the library cost.
///
/// The format: `fn=` begins a function, lines of numbers are its own cost, `cfn=` names whom it
/// calls, and the line after `calls=` is what that cost altogether.
fn ours(text: &str, library: fn(&str) -> bool) -> u64 {
    let mut kinds = HashMap::new();
    let (mut total, mut foreign) = (0, 0);
    let (mut caller, mut callee) = (Kind::Other, Kind::Other);
    let mut after_calls = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            caller = kind(&mut kinds, name, library);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            callee = kind(&mut kinds, name, library);
        } else if line.starts_with("calls=") {
            after_calls = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse().ok());
            let cost: u64 = cost.unwrap_or(0);
            if !std::mem::take(&mut after_calls) {
                total += cost;
            } else if caller == Kind::Rust && callee == Kind::Library {
                foreign += cost;
            }
        }
    }
    total - foreign
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Rust,
    Library,
    /// C: what the library calls, and what everybody does.
    Other,
}

/// Whose function this is; names are written out once and numbered after that.
fn kind<'a>(kinds: &mut HashMap<&'a str, Kind>, name: &'a str, library: fn(&str) -> bool) -> Kind {
    let Some((number, name)) = name.split_once(' ') else {
        return kinds.get(name).copied().unwrap_or(Kind::Other);
    };
    let kind = if library(name) {
        Kind::Library
    } else if name.contains("::") {
        Kind::Rust
    } else {
        Kind::Other
    };
    kinds.insert(number, kind);
    kind
}
