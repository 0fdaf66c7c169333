//! Counts the instructions of verification outside the crypto library with callgrind, which has less
//! noise than a clock. Fails if a limit is missed. Without valgrind it prints that it is skipped.
//!
//! A count is one `validate` of a new token, with its insertion into the cache, and without the
//! calls into aws-lc-rs. All tokens have the same claims and key ID, so their lengths differ only by
//! the signature: ES384 has 43 characters more than ES256, ES512 has 91 more, and RSA with 2048 bits
//! has 256 more. A character of a signature costs about three instructions with every algorithm: it
//! is decoded, hashed (for the key of the cache) and copied into the cache.
//!
//! For this reason the limit of PS256 applies to a signature of ES256's length: the cost of a character
//! is measured with two key sizes, and subtracted for each extra character. The full count is printed
//! too, and the count of ES256 with a token of the same length. That token has a longer `jti`; its
//! characters cost more, because they are also searched for a dot, checked as UTF-8 and parsed as
//! JSON.
//!
//! Most of the cost of a character is decoding. With the SIMD decoder of `base64-simd` 0.8 a character
//! cost 0.6 instructions, all algorithms had lower counts (ES256: 8578 instead of 9035), and PS256 was at
//! +6.5 % instead of +11.9 %. The rest is hash, copy and allocation. The time did not change: four runs
//! each of `cargo bench --bench verify -- cold`, alternating, took 722 to 797 ns with it and 736 to
//! 840 ns without it. This gain does not justify unsafe code on untrusted bytes.
//!
//! | what | limit | rows |
//! | --- | --- | --- |
//! | instructions outside aws-lc, against ES256 | ± 5 % | `outside aws-lc/ES384`, `…/ES512`, `…/PS256, at ES256's length` |
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
use tower_spiffe::Validator;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::{FixedBundles, JwtBundleSet};

use limits::callgrind;
use tower_spiffe_test_support::clock::HandClock;
use tower_spiffe_test_support::signer;

use signer::{AUDIENCE, NOW, SUBJECT, Signer, bundle};

const TOLERANCE: f64 = 0.05;
const TOKENS: usize = 64;
const JTI: usize = 22;

/// The key, and the length of the `jti` of its tokens.
#[derive(Clone, Copy)]
struct Case {
    key: &'static str,
    algorithm: Algorithm,
    jti: usize,
}

const fn case(key: &'static str, algorithm: Algorithm) -> Case {
    let jti = JTI;
    Case {
        key,
        algorithm,
        jti,
    }
}

const ES256: Case = case("p256", Algorithm::ES256);
const ES384: Case = case("p384", Algorithm::ES384);
const ES512: Case = case("p521", Algorithm::ES512);
const PS256: Case = case("rsa2048", Algorithm::PS256);
const PS256_LONGER: Case = case("rsa4096", Algorithm::PS256);
/// Without a limit; for comparison with PS256.
const RS256: Case = case("rsa2048", Algorithm::RS256);
const RS256_LONGER: Case = case("rsa4096", Algorithm::RS256);

impl Case {
    /// Returns a signer; all have the same key ID.
    fn signer(self) -> Signer {
        Signer::new(self.key, self.algorithm).with_key_id("key")
    }

    fn token(self, signer: &Signer, n: usize) -> String {
        let jti = self.jti;
        signer.sign(
            &json!({"sub": SUBJECT, "aud": [AUDIENCE], "exp": NOW + 300, "iat": NOW,
                    "jti": format!("{n:0jti$}")}),
        )
    }

    fn len(self) -> usize {
        self.token(&self.signer(), 0).len()
    }

    /// Returns ES256 with a token of the same length, or one character less.
    fn es256_as_long(self) -> Self {
        let len = self.len();
        let longer = (JTI..).map(|jti| Self { jti, ..ES256 });
        longer.take_while(|case| case.len() <= len).last().unwrap()
    }
}

#[inline(never)]
fn measured(validator: &Validator, token: &str) -> bool {
    validator.validate(black_box(token)).is_ok()
}

/// The program that callgrind runs.
fn workload(case: Case) {
    let signer = case.signer();
    let set = JwtBundleSet::from_iter([bundle("td.test", &[signer.jwk()])]);
    let validator = Validator::builder(FixedBundles::new(set))
        .audience(AUDIENCE)
        .clock(HandClock::at(NOW))
        .build()
        .unwrap();
    // The first validation parses an RSA key.
    validator.validate(&case.token(&signer, TOKENS)).unwrap();
    for n in 0..TOKENS {
        assert!(measured(&validator, &case.token(&signer, n)));
    }
}

/// Returns the instructions per token, without the calls into aws-lc-rs.
fn count(case: Case) -> f64 {
    callgrind::count(&callgrind::Path {
        arguments: &[case.key, case.algorithm.as_str(), &case.jti.to_string()],
        toggle: "algorithms::measured",
        times: TOKENS,
        library: |name| name.contains("aws_lc"),
    })
}

/// Prints one line. Returns false if there is a limit and it is missed.
fn report(name: &str, is: f64, to: f64, has_limit: bool) -> bool {
    let more = is / to - 1.0;
    let held = more.abs() <= TOLERANCE;
    let outcome = match (has_limit, held) {
        (false, _) => "no limit",
        (true, true) => "held",
        (true, false) => "MISSED",
    };
    let (more, tolerance) = (more * 100.0, TOLERANCE * 100.0);
    println!("{name:<44} {is:>6.0} to {to:>6.0}, {more:>+5.1} %, ± {tolerance:.0} %  {outcome}");
    held || !has_limit
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [key, algorithm, jti] = args.as_slice()
        && let (Ok(algorithm), Ok(jti)) = (algorithm.parse(), jti.parse())
    {
        let key = [ES256, ES384, ES512, PS256, PS256_LONGER]
            .map(|case| case.key)
            .into_iter()
            .find(|known| known == key);
        let key = key.unwrap();
        workload(Case {
            key,
            algorithm,
            jti,
        });
        return ExitCode::SUCCESS;
    }
    if !args.iter().any(|arg| arg == "--bench") {
        // A test of the benches, without counts.
        [ES256, ES384, ES512, PS256].into_iter().for_each(workload);
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED: valgrind is not installed");
        return ExitCode::SUCCESS;
    }
    let first = count(ES256);
    println!("instructions for a new token outside the crypto library, relative to ES256");
    let mut all_held = true;
    for case in [ES384, ES512, PS256, RS256] {
        let name = format!("outside aws-lc/{}", case.algorithm);
        let is = count(case);
        let longer = match case.algorithm {
            Algorithm::PS256 => Some(PS256_LONGER),
            Algorithm::RS256 => Some(RS256_LONGER),
            _ => None,
        };
        all_held &= report(&name, is, first, longer.is_none());
        if let Some(longer) = longer {
            let characters = |case: Case, than: Case| (case.len() - than.len()) as f64;
            let each = (count(longer) - is) / characters(longer, case);
            let without = is - each * characters(case, ES256);
            let has_limit = case.algorithm == Algorithm::PS256;
            let at = format!("{name}, at ES256's length");
            all_held &= report(&at, without, first, has_limit);
            println!("    a character of its signature costs {each:.1}");
        }
        let as_long = count(case.es256_as_long());
        let beside = format!("{name}, relative to ES256 of the same length");
        report(&beside, is, as_long, false);
    }
    ExitCode::from(u8::from(!all_held))
}
