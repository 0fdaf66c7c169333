//! How many instructions verification costs outside the crypto library, by callgrind: the figures
//! that no noise hides. Fails where one of the bars is missed; says so where there is no valgrind.
//!
//! Counted is a whole `validate` of an unseen token, insertion into the cache included, without
//! what runs below the calls into aws-lc-rs. Claims and key IDs are the same for all, so that a
//! token is longer by what its signature is: 43 letters for ES384, 91 for ES512, and 256 for RSA
//! keys of 2048 bits. Whatever the algorithm is, a letter of a signature costs some three
//! instructions: to decode it, to hash it (it is part of the cache's key) and to copy it into the
//! cache.
//!
//! So PS256 is judged by what it would cost with a signature of ES256's length: two keys tell the
//! price of a letter, and the letters that it has more are taken off. What it costs with them is
//! told beside it, as is ES256 with a token as long as each (by a longer `jti`, whose letters cost
//! more than a signature's: they are also searched for a dot, checked to be UTF-8 and read as
//! JSON).
//!
//! Most of a letter's price is its decoding. With the SIMD decoder of `base64-simd` 0.8 in place of
//! ours a letter cost 0.6 instructions, all algorithms had fewer (8578 for ES256 instead of 9035),
//! and PS256 as it comes was at +6.5 % instead of +11.9 %: what is left is hash, copy and allocation.
//! Time did not show it: `cargo bench --bench verify -- cold`, four times each in turns, 722 to
//! 797 ns with it and 736 to 840 ns without. Unsafe code on the bytes of strangers, before any
//! signature is checked, is not worth that.
//!
//! | what | bar | rows |
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

use judging::callgrind;
use tower_spiffe_test_support::clock::HandClock;
use tower_spiffe_test_support::signer;

use signer::{AUDIENCE, NOW, SUBJECT, Signer, bundle};

const TOLERANCE: f64 = 0.05;
const TOKENS: usize = 64;
const JTI: usize = 22;

/// What signs, and how long the `jti` of its tokens is.
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
/// Has no bar here; the one to set PS256 beside.
const RS256: Case = case("rsa2048", Algorithm::RS256);
const RS256_LONGER: Case = case("rsa4096", Algorithm::RS256);

impl Case {
    /// With the same key ID for all.
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

    /// ES256 with a token of this one's length, or a letter less.
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

/// What callgrind watches.
fn workload(case: Case) {
    let signer = case.signer();
    let set = JwtBundleSet::from_iter([bundle("td.test", &[signer.jwk()])]);
    let validator = Validator::builder(FixedBundles::new(set))
        .audience(AUDIENCE)
        .clock(HandClock::at(NOW))
        .build()
        .unwrap();
    // The first one parses an RSA key.
    validator.validate(&case.token(&signer, TOKENS)).unwrap();
    for n in 0..TOKENS {
        assert!(measured(&validator, &case.token(&signer, n)));
    }
}

/// Instructions per token, without those below the calls into aws-lc-rs.
fn count(case: Case) -> f64 {
    callgrind::count(&callgrind::Path {
        arguments: &[case.key, case.algorithm.as_str(), &case.jti.to_string()],
        toggle: "algorithms::measured",
        times: TOKENS,
        library: |name| name.contains("aws_lc"),
    })
}

/// One line, and whether the bar is held, where it is one.
fn tell(name: &str, is: f64, to: f64, judged: bool) -> bool {
    let more = is / to - 1.0;
    let held = more.abs() <= TOLERANCE;
    let verdict = match (judged, held) {
        (false, _) => "no bar",
        (true, true) => "held",
        (true, false) => "MISSED",
    };
    let (more, tolerance) = (more * 100.0, TOLERANCE * 100.0);
    println!("{name:<44} {is:>6.0} to {to:>6.0}, {more:>+5.1} %, ± {tolerance:.0} %  {verdict}");
    held || !judged
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
        // Only whether it works is asked.
        [ES256, ES384, ES512, PS256].into_iter().for_each(workload);
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED: no valgrind here, nothing counted");
        return ExitCode::SUCCESS;
    }
    let first = count(ES256);
    println!("instructions for an unseen token outside the crypto library, against ES256's");
    let mut all_held = true;
    for case in [ES384, ES512, PS256, RS256] {
        let name = format!("outside aws-lc/{}", case.algorithm);
        let is = count(case);
        let longer = match case.algorithm {
            Algorithm::PS256 => Some(PS256_LONGER),
            Algorithm::RS256 => Some(RS256_LONGER),
            _ => None,
        };
        all_held &= tell(&name, is, first, longer.is_none());
        if let Some(longer) = longer {
            let letters = |case: Case, than: Case| (case.len() - than.len()) as f64;
            let each = (count(longer) - is) / letters(longer, case);
            let without = is - each * letters(case, ES256);
            let judged = case.algorithm == Algorithm::PS256;
            let at = format!("{name}, at ES256's length");
            all_held &= tell(&at, without, first, judged);
            println!("    a letter of its signature costs {each:.1}");
        }
        let as_long = count(case.es256_as_long());
        let beside = format!("{name}, beside ES256 as long");
        tell(&beside, is, as_long, false);
    }
    ExitCode::from(u8::from(!all_held))
}
