//! Runs the fuzz checks on the corpora.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::path::{Path, PathBuf};

use tower_spiffe_fuzz_checks as checks;

/// Prints the path of the input if its check panics.
struct Input(PathBuf);

impl Drop for Input {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input is {}", self.0.display());
        }
    }
}

fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&corpus).unwrap() {
        let input = Input(entry.unwrap().path());
        check(&std::fs::read(&input.0).unwrap());
        inputs += 1;
    }
    assert!(inputs > 10, "{} inputs in {}", inputs, corpus.display());
}

macro_rules! corpora {
    ($($target:ident)*) => {$(
        #[test]
        fn $target() {
            replay(stringify!($target), checks::$target);
        }
    )*};
}

corpora!(endpoint jwks bundle_map bundle_message bundle_stream token header_line spiffe_id https_response policy_file);
