//! How many instructions verification costs outside the crypto library, by callgrind: the figures
//! that no noise hides. Prints one line per algorithm; says so where there is no valgrind.
//!
//! `cold` is a whole `validate` of an unseen token, insertion included, without what the signature
//! check costs inside the library. The claims are the same; an RSA signature is 256 letters longer.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    missing_docs,
    reason = "a benchmark"
)]

use std::hint::black_box;
use std::process::Command;

use aws_lc_rs::signature::ParsedPublicKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tower_spiffe::bundle::{FixedBundles, JwtBundleSet};
use tower_spiffe::{Algorithm, Clock, UnixTime, Validator};

#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/verification/signer.rs"]
mod signer;

use signer::{AUDIENCE, NOW, SUBJECT, Signer, bundle};

const ALGORITHMS: [Algorithm; 5] = [
    Algorithm::ES256,
    Algorithm::RS256,
    Algorithm::ES384,
    Algorithm::ES512,
    Algorithm::PS256,
];
const TOKENS: usize = 64;

struct Still;

impl Clock for Still {
    fn now(&self) -> UnixTime {
        UnixTime::from_secs(NOW)
    }

    fn monotonic(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

fn token(signer: &Signer, n: usize) -> String {
    signer.sign(
        &json!({"sub": SUBJECT, "aud": [AUDIENCE], "exp": NOW + 300, "iat": NOW,
                           "jti": format!("{n:022}")}),
    )
}

#[inline(never)]
fn measured(validator: &Validator, token: &str) -> bool {
    validator.validate(black_box(token)).is_ok()
}

#[inline(never)]
fn raw(key: &ParsedPublicKey, message: &[u8], signature: &[u8]) -> bool {
    key.verify_sig(black_box(message), black_box(signature))
        .is_ok()
}

/// What callgrind watches: the same tokens, validated and checked raw.
fn workload(algorithm: Algorithm) {
    let signer = Signer::for_algorithm(algorithm);
    let set = JwtBundleSet::from_iter([bundle("td.test", &[signer.jwk()])]);
    let validator = Validator::builder(FixedBundles::new(set))
        .audience(AUDIENCE)
        .clock(std::sync::Arc::new(Still))
        .build()
        .unwrap();
    // The first one parses an RSA key.
    validator.validate(&token(&signer, TOKENS)).unwrap();
    let key = signer.parsed();
    for n in 0..TOKENS {
        let token = token(&signer, n);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        assert!(raw(&key, signed.as_bytes(), &signature));
        assert!(measured(&validator, &token));
    }
}

/// Instructions per token: of `validate`, and of the check alone.
fn count(algorithm: Algorithm) -> Option<(u64, u64)> {
    let out = std::env::temp_dir().join(format!("algorithms-{}", std::process::id()));
    let status = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--toggle-collect=algorithms::measured",
            "--toggle-collect=algorithms::raw",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().ok()?)
        .arg(algorithm.as_str())
        .stderr(std::process::Stdio::null())
        .status()
        .ok()?;
    assert!(status.success(), "valgrind failed");
    let report = Command::new("callgrind_annotate")
        .args(["--inclusive=yes", "--auto=no", "--threshold=100"])
        .arg(&out)
        .output()
        .ok()?;
    let _ = std::fs::remove_file(&out);
    let report = String::from_utf8_lossy(&report.stdout).into_owned();
    let inclusive = |name: &str| -> u64 {
        // A function has a line for each file that was inlined into it; the whole is the largest.
        let lines = report.lines().filter(|line| line.contains(name));
        let number = |line: &str| {
            line.trim_start()
                .split([' ', '('])
                .next()
                .map(str::to_owned)
        };
        let numbers = lines.filter_map(number);
        let numbers = numbers.filter_map(|number| number.replace(',', "").parse().ok());
        numbers
            .max()
            .unwrap_or_else(|| panic!("no {name} in the report"))
    };
    let tokens = TOKENS as u64;
    Some((
        inclusive("algorithms::measured") / tokens,
        inclusive("algorithms::raw") / tokens,
    ))
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [algorithm] = args.as_slice()
        && let Ok(algorithm) = algorithm.parse()
    {
        return workload(algorithm);
    }
    println!("instructions per unseen token, outside the crypto library (against ES256)");
    let mut first = None;
    for algorithm in ALGORITHMS {
        let Some((all, raw)) = count(algorithm) else {
            println!("no valgrind here: nothing counted");
            return;
        };
        let ours = all - raw;
        let percent = (ours as f64 / *first.get_or_insert(ours) as f64 - 1.0) * 100.0;
        println!("{algorithm} {ours} ({percent:+.1} %)");
    }
}
