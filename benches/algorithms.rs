//! How many instructions verification costs outside the crypto library, by callgrind: the figures
//! that no noise hides. Fails where one of the bars is missed; says so where there is no valgrind.
//!
//! Counted is a whole `validate` of an unseen token, insertion into the cache included, without
//! what runs below the calls into aws-lc-rs. The claims are the same for all, so that an RSA
//! signature of 2048 bits makes a token 256 letters longer than ES256's, ES384's and ES512's
//! 43 and 91. Each letter must be hashed (the cache's key), compared and copied (into the cache),
//! searched for dots and decoded. So each algorithm stands beside ES256 with a token of its own
//! length, too: with a longer `jti`.
//!
//! | what | bar | rows |
//! | --- | --- | --- |
//! | instructions outside aws-lc, against ES256 | ± 5 % | `outside aws-lc/ES384`, `…/ES512`, `…/PS256`, and the same `…, at equal length` |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    missing_docs,
    reason = "a benchmark"
)]

use std::hint::black_box;
use std::process::{Command, ExitCode};

use serde_json::json;
use tower_spiffe::bundle::{FixedBundles, JwtBundleSet};
use tower_spiffe::{Algorithm, Clock, UnixTime, Validator};

#[path = "judging/callgrind.rs"]
mod callgrind;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/verification/signer.rs"]
mod signer;

use signer::{AUDIENCE, NOW, SUBJECT, Signer, bundle};

/// Those with a bar, and RS256, which is the one to set PS256 beside.
const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::ES384,
    Algorithm::ES512,
    Algorithm::PS256,
    Algorithm::RS256,
];
const TOLERANCE: f64 = 0.05;
const TOKENS: usize = 64;
const JTI: usize = 22;

struct Still;

impl Clock for Still {
    fn now(&self) -> UnixTime {
        UnixTime::from_secs(NOW)
    }

    fn monotonic(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

fn token(signer: &Signer, n: usize, jti: usize) -> String {
    signer.sign(
        &json!({"sub": SUBJECT, "aud": [AUDIENCE], "exp": NOW + 300, "iat": NOW,
                "jti": format!("{n:0jti$}")}),
    )
}

/// The `jti` that makes an ES256 token as long as one of this algorithm.
fn jti_of_equal_length(algorithm: Algorithm) -> usize {
    let len = |algorithm, jti| token(&Signer::for_algorithm(algorithm), 0, jti).len();
    let wanted = len(algorithm, JTI);
    let lens = (JTI..).map(|jti| (jti, len(Algorithm::ES256, jti)));
    lens.take_while(|(_, len)| *len <= wanted)
        .last()
        .map_or(JTI, |(jti, _)| jti)
}

#[inline(never)]
fn measured(validator: &Validator, token: &str) -> bool {
    validator.validate(black_box(token)).is_ok()
}

/// What callgrind watches.
fn workload(algorithm: Algorithm, jti: usize) {
    let signer = Signer::for_algorithm(algorithm);
    let set = JwtBundleSet::from_iter([bundle("td.test", &[signer.jwk()])]);
    let validator = Validator::builder(FixedBundles::new(set))
        .audience(AUDIENCE)
        .clock(std::sync::Arc::new(Still))
        .build()
        .unwrap();
    // The first one parses an RSA key.
    validator.validate(&token(&signer, TOKENS, jti)).unwrap();
    for n in 0..TOKENS {
        assert!(measured(&validator, &token(&signer, n, jti)));
    }
}

/// Instructions per token, without those below the calls into aws-lc-rs.
fn count(algorithm: Algorithm, jti: usize) -> f64 {
    callgrind::count(&callgrind::Path {
        arguments: &[algorithm.as_str(), &jti.to_string()],
        toggle: "algorithms::measured",
        times: TOKENS,
        library: |name| name.contains("aws_lc"),
    })
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [algorithm, jti] = args.as_slice()
        && let (Ok(algorithm), Ok(jti)) = (algorithm.parse(), jti.parse())
    {
        workload(algorithm, jti);
        return ExitCode::SUCCESS;
    }
    if !args.iter().any(|arg| arg == "--bench") {
        // Only whether it works is asked.
        for algorithm in ALGORITHMS {
            workload(algorithm, jti_of_equal_length(algorithm));
        }
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED: no valgrind here, nothing counted");
        return ExitCode::SUCCESS;
    }
    let mut missed = false;
    let first = count(Algorithm::ES256, JTI);
    println!("instructions per unseen token, outside the crypto library; ES256: {first:.0}");
    for algorithm in ALGORITHMS {
        let is = count(algorithm, JTI);
        let equal = count(Algorithm::ES256, jti_of_equal_length(algorithm));
        for (what, to) in [("", first), (", at equal length", equal)] {
            let name = format!("outside aws-lc/{algorithm}{what}");
            let more = is / to - 1.0;
            let verdict = match algorithm {
                Algorithm::RS256 => "no bar",
                _ if more.abs() <= TOLERANCE => "held",
                _ => {
                    missed = true;
                    "MISSED"
                }
            };
            println!(
                "{name:<40} {is:>6.0} to {to:>6.0}, {:+.1} %, ± {:.0} % {verdict}",
                more * 100.0,
                TOLERANCE * 100.0
            );
        }
    }
    ExitCode::from(u8::from(missed))
}
