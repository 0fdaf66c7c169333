//! `spiffe` on aws-lc, as in all other tables, and on RustCrypto, its default backend.

use std::path::Path;

use crate::keys::{ALGORITHMS, AUDIENCE, Signer, TRUST_DOMAIN};
use crate::measure::{Contest, Effort, Outcome};
use crate::names::{RAW, Who};
use crate::peers::{Raw, RawToken, spiffe_bundles};
use crate::process::{self, Process};
use crate::table::{TIME, Table};

const AWS_LC: Who = Who::peer("spiffe 0.19 on aws-lc, as in all other tables");
const RUST_CRYPTO: Who = Who::peer("spiffe 0.19 on RustCrypto, a process of its own");

pub fn run(effort: Effort) -> Table {
    let program = process::build("rustcrypto").expect("spiffe on RustCrypto builds");
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
        "Verification of a new token by backend",
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
    let (jwks, all) = (signer.jwks(), tokens.join("\n"));
    // It does not start if it does not support the algorithm.
    let lines = format!("{TRUST_DOMAIN}\n{AUDIENCE}\n{jwks}\n{all}\n");
    if let Some(mut other) = Process::start(program, &lines) {
        contest = contest.batch(RUST_CRYPTO, move |count| other.time(&count.to_string()));
    }
    contest.run()
}
