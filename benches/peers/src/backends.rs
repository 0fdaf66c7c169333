//! `spiffe` on aws-lc, as everywhere here, beside `spiffe` on RustCrypto, its default.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::keys::{ALGORITHMS, AUDIENCE, Signer, TRUST_DOMAIN};
use crate::measure::{Contest, Effort, Outcome};
use crate::names::{RAW, Who};
use crate::peers::{Raw, RawToken, spiffe_bundles};
use crate::table::{TIME, Table};

const AWS_LC: Who = Who::peer("spiffe 0.19 on aws-lc, as in all other tables");
const RUST_CRYPTO: Who = Who::peer("spiffe 0.19 on RustCrypto, a process of its own");

pub fn run(effort: Effort) -> Table {
    let program = built();
    let names: Vec<&str> = ALGORITHMS.iter().map(|a| a.as_str()).collect();
    let outcomes: Vec<_> = ALGORITHMS
        .iter()
        .map(|&algorithm| {
            let signer = Signer::new(algorithm, "C6vs25welZOx6WksNYfbMfiw9l96pMnD");
            contest(effort, &signer, &program)
        })
        .collect();
    Table::beside(
        "backends",
        "What the backend makes of it: a token never seen before",
        &names,
        &outcomes,
        TIME,
    )
}

fn contest(effort: Effort, signer: &Signer, program: &Path) -> Vec<Outcome> {
    let tokens = signer.tokens(if effort.quick { 16 } else { 256 });
    let raw = Raw::new(signer);
    let raw_tokens: Vec<_> = tokens.iter().map(|token| RawToken::new(token)).collect();
    let bundles = spiffe_bundles(signer);
    let verify = |n: usize| spiffe::JwtSvid::parse_and_validate(&tokens[n], &bundles, &[AUDIENCE]);
    let mut contest = Contest::new(effort)
        .at_most(tokens.len())
        .each(RAW, |n| assert!(raw.verify(&raw_tokens[n])));
    if verify(0).is_ok() {
        contest = contest.each(AWS_LC, |n| verify(n).unwrap());
    }
    if let Some(mut other) = Other::start(program, signer, &tokens) {
        contest = contest.batch(RUST_CRYPTO, move |count| other.verify(count));
    }
    contest.run()
}

/// The program, built anew where it has to be.
fn built() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = here.join("target/rustcrypto");
    let status = Command::new("cargo")
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--manifest-path",
        ])
        .arg(here.join("rustcrypto/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .unwrap();
    assert!(status.success(), "spiffe on RustCrypto does not build");
    target.join("release/tower-spiffe-peers-rustcrypto")
}

/// The process that verifies with it.
struct Other {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Other {
    /// `None` where it does not know the algorithm.
    fn start(program: &Path, signer: &Signer, tokens: &[String]) -> Option<Self> {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut other = Self { child, lines };
        let tokens = tokens.join("\n");
        let jwks = signer.jwks();
        let answer = other.ask(&format!("{TRUST_DOMAIN}\n{AUDIENCE}\n{jwks}\n{tokens}\n"));
        (answer == "yes").then_some(other)
    }

    fn ask(&mut self, question: &str) -> String {
        let stdin = self.child.stdin.as_mut().expect("it listens");
        writeln!(stdin, "{question}").unwrap();
        self.lines.next().expect("an answer").unwrap()
    }

    fn verify(&mut self, count: usize) -> Duration {
        Duration::from_nanos(self.ask(&count.to_string()).parse().unwrap())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
