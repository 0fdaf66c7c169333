//! Runs the current program under callgrind and reads the output.

use std::collections::HashMap;
use std::process::{Command, Stdio};

/// The code path to count.
pub struct Path<'a> {
    /// The arguments that make this program run the path.
    pub arguments: &'a [&'a str],
    /// The function that runs it, for callgrind's `--toggle-collect`.
    pub toggle: &'a str,
    /// The number of runs.
    pub times: usize,
    /// Returns true for functions that are not counted, together with their callees.
    pub library: fn(&str) -> bool,
}

/// Returns the instructions of one run of this path, without the library's.
pub fn count(path: &Path<'_>) -> f64 {
    let name = path.arguments.join("-");
    let out = std::env::temp_dir().join(format!("callgrind.{}.{name}", std::process::id()));
    let program = std::env::current_exe().expect("the path of this program");
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--toggle-collect={}", path.toggle))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(path.arguments)
        .stderr(Stdio::piped())
        .output()
        .expect("valgrind is installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = std::fs::read_to_string(&out).expect("the output of callgrind");
    let _ = std::fs::remove_file(&out);
    let count = without_library(&text, path.library);
    assert!(count > 0, "nothing was collected for {name}");
    count as f64 / path.times as f64
}

/// Returns the total cost minus the cost of calls from Rust into the library.
///
/// The format: `fn=` begins a function, and lines of numbers are its own cost. `cfn=` names a callee,
/// and the line after `calls=` is the total cost of that call.
fn without_library(text: &str, library: fn(&str) -> bool) -> u64 {
    let mut kinds = HashMap::new();
    let (mut total, mut library_cost) = (0, 0);
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
                library_cost += cost;
            }
        }
    }
    total - library_cost
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Rust,
    Library,
    /// C functions outside the library.
    Other,
}

/// Returns the kind of a function. A name is written in full once; after that its number is used.
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
