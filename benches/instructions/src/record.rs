//! The file of counts.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

/// The recorded counts, and the environment they were made in.
pub struct Record {
    pub made_with: Vec<(String, String)>,
    /// Path, instructions of one run, and the spread between runs.
    pub counts: Vec<(String, f64, f64)>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

impl Record {
    pub fn read() -> Self {
        let text = std::fs::read_to_string(folder().join("counts.txt"));
        let text = text.expect("counts.txt is missing; `accept` creates it");
        let mut record = Self {
            made_with: Vec::new(),
            counts: Vec::new(),
        };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((what, is)) = line.split_once(": ") {
                record.made_with.push((what.to_owned(), is.to_owned()));
            } else if let [count, spread, name] = *line.splitn(3, ' ').collect::<Vec<_>>() {
                let number = |text: &str| text.parse().expect("a number");
                record
                    .counts
                    .push((name.to_owned(), number(count), number(spread)));
            }
        }
        record
    }

    pub fn count(&self, name: &str) -> Option<f64> {
        let found = self.counts.iter().find(|(other, ..)| other == name);
        found.map(|(_, count, _)| *count)
    }

    pub fn write(&self) {
        let mut text = String::from(
            "# Instructions of the hot paths, for one of each, without the C code of aws-lc.\n\
             # Made by `bash .ci/instructions accept`: count, spread between runs, path.\n",
        );
        for (what, is) in &self.made_with {
            let _ = writeln!(text, "{what}: {is}");
        }
        for (name, count, spread) in &self.counts {
            let _ = writeln!(text, "{count:.0} {spread:.4} {name}");
        }
        std::fs::write(folder().join("counts.txt"), text).expect("counts.txt can be written");
    }
}

/// Returns what the counts depend on besides the code of this crate.
pub fn here() -> Vec<(String, String)> {
    let compiler = first_lines("rustc", &["-vV"], &["release:", "host:"]);
    let lock = std::fs::read(folder().join("Cargo.lock")).expect("the lock file is there");
    // FNV-1a is sufficient to detect another lock file.
    let lock = lock.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    vec![
        ("rustc".to_owned(), compiler),
        (
            "libc".to_owned(),
            first_lines("ldd", &["--version"], &["ldd"]),
        ),
        (
            "valgrind".to_owned(),
            first_lines("valgrind", &["--version"], &["valgrind"]),
        ),
        ("lock".to_owned(), format!("{lock:016x}")),
    ]
}

/// Returns the lines of a program's output that start with one of `beginnings`.
fn first_lines(program: &str, arguments: &[&str], beginnings: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(arguments).output() else {
        return "absent".to_owned();
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter(|line| {
        beginnings
            .iter()
            .any(|beginning| line.starts_with(beginning))
    });
    lines.collect::<Vec<_>>().join(", ").replace(": ", " ")
}
