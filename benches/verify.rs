//! What verification costs, each figure against something measured in the same run.
//!
//! `cold_minus_raw/*` is the median, over interleaved pairs, of a whole `validate` of an unseen
//! token (cache on, insertion included) minus the bare signature check with a parsed key.
//! `scaling` prints how much two threads do in the time of one, for hits and for a control that
//! only computes.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    missing_docs,
    reason = "a benchmark"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use tower_spiffe::bundle::{FixedBundles, JwtBundleSet};
use tower_spiffe::{Algorithm, Validator};

#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/verification/signer.rs"]
mod signer;

use signer::{AUDIENCE, SUBJECT, Signer, bundle};

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_secs()).unwrap()
}

/// Claims of which an ES256 token gets about 350 bytes.
fn claims(audience: &str, expires_at: i64, n: usize) -> Value {
    json!({"sub": SUBJECT, "aud": [audience], "exp": expires_at, "iat": now(),
           "jti": format!("{n:022}")})
}

/// Tokens that differ in one claim.
fn tokens(signer: &Signer, count: usize) -> Vec<String> {
    (0..count)
        .map(|n| signer.sign(&claims(AUDIENCE, now() + 3600, n)))
        .collect()
}

fn validator(set: JwtBundleSet) -> Validator {
    Validator::builder(FixedBundles::new(set))
        .audience(AUDIENCE)
        .build()
        .unwrap()
}

fn one_key(signer: &Signer) -> JwtBundleSet {
    JwtBundleSet::from_iter([bundle("td.test", &[signer.jwk()])])
}

/// The median of `validate` minus raw, over pairs; each token is unseen by its validator.
fn cold_minus_raw(signer: &Signer, tokens: &[String], set: &JwtBundleSet) -> Duration {
    const PAIRS: usize = 1024;
    let key = signer.parsed();
    let raw: Vec<(&[u8], Vec<u8>)> = tokens
        .iter()
        .map(|token| {
            let (signed, signature) = token.rsplit_once('.').unwrap();
            let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            (signed.as_bytes(), signature)
        })
        .collect();
    let mut differences = Vec::with_capacity(PAIRS);
    while differences.len() < PAIRS {
        let validator = validator(set.clone());
        for (n, (token, (signed, signature))) in tokens.iter().zip(&raw).enumerate() {
            let time_raw = || {
                let start = Instant::now();
                black_box(key.verify_sig(black_box(signed), black_box(signature))).unwrap();
                start.elapsed().as_nanos() as i64
            };
            let time_cold = || {
                let start = Instant::now();
                let svid = black_box(validator.validate(black_box(token)));
                let time = start.elapsed().as_nanos() as i64;
                drop(svid.unwrap());
                time
            };
            // Either goes first in turn.
            let (raw, cold) = if n % 2 == 0 {
                let raw = time_raw();
                (raw, time_cold())
            } else {
                let cold = time_cold();
                (time_raw(), cold)
            };
            differences.push(cold - raw);
        }
    }
    differences.sort_unstable();
    Duration::from_nanos(differences[differences.len() / 2].max(0).unsigned_abs())
}

fn cold(c: &mut Criterion) {
    let mut group = c.benchmark_group("cold_minus_raw");
    group.sample_size(10);
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(3));
    for algorithm in [
        Algorithm::ES256,
        Algorithm::RS256,
        Algorithm::ES384,
        Algorithm::ES512,
        Algorithm::PS256,
    ] {
        let signer = Signer::for_algorithm(algorithm);
        let tokens = tokens(&signer, 512);
        let set = one_key(&signer);
        group.bench_function(algorithm.as_str(), |b| {
            b.iter_custom(|n| cold_minus_raw(&signer, &tokens, &set) * u32::try_from(n).unwrap());
        });
    }
    group.finish();
}

fn hit(c: &mut Criterion) {
    let mut group = c.benchmark_group("hit");
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let tokens = tokens(&signer, 50);
    println!("hit: a token of {} bytes", tokens[0].len());
    let validator = validator(one_key(&signer));
    for token in &tokens {
        validator.validate(token).unwrap();
    }
    group.bench_function("one_hot_token", |b| {
        b.iter(|| validator.validate(black_box(&tokens[0])).unwrap());
    });
    group.bench_function("fifty_tokens", |b| {
        let mut n = 0;
        b.iter(|| {
            n = (n + 1) % tokens.len();
            validator.validate(black_box(&tokens[n])).unwrap()
        });
    });
    group.finish();
}

fn size(c: &mut Criterion) {
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let small = one_key(&signer);
    let named = |n| Signer::new("p256-b", Algorithm::ES256).with_key_id(&format!("k{n}"));
    let mut keys: Vec<_> = (0..9).map(|n| named(n).jwk()).collect();
    keys.push(signer.jwk());
    let mut large: Vec<_> = (0..199)
        .map(|n| bundle(&format!("td{n}.test"), &keys))
        .collect();
    large.push(bundle("td.test", &keys));
    let large = JwtBundleSet::from_iter(large);
    let tokens = tokens(&signer, 512);
    let mut group = c.benchmark_group("size");
    for (name, set) in [("1x1", &small), ("200x10", &large)] {
        let validator = validator(set.clone());
        group.bench_function(format!("hit/{name}"), |b| {
            b.iter(|| validator.validate(black_box(&tokens[0])).unwrap());
        });
        group.sample_size(10);
        group.bench_function(format!("cold_minus_raw/{name}"), |b| {
            b.iter_custom(|n| cold_minus_raw(&signer, &tokens, set) * u32::try_from(n).unwrap());
        });
    }
    group.finish();
}

fn early(c: &mut Criterion) {
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let validator = validator(one_key(&signer));
    let good = signer.sign(&claims(AUDIENCE, now() + 3600, 0));
    let (signed, _) = good.rsplit_once('.').unwrap();
    let unknown_key = Signer::for_algorithm(Algorithm::ES256).with_key_id("another");
    let rubbish = |len: usize| "eyJ".repeat(len / 3 + 1)[..len].to_owned();
    let cases = [
        ("expired", signer.sign(&claims(AUDIENCE, now() - 3600, 0))),
        (
            "audience",
            signer.sign(&claims("spiffe://td.test/anothe", now() + 3600, 0)),
        ),
        (
            "key_unknown",
            unknown_key.sign(&claims(AUDIENCE, now() + 3600, 0)),
        ),
        ("malformed", signed.to_owned()),
        ("malformed_8_KiB", rubbish(8192)),
        ("too_long_8_KiB_and_1", rubbish(8193)),
        ("too_long_1_MiB", rubbish(1 << 20)),
    ];
    let mut group = c.benchmark_group("refused_before_the_signature");
    for (name, token) in &cases {
        group.bench_function(*name, |b| {
            b.iter(|| validator.validate(black_box(token)).unwrap_err());
        });
    }
    group.finish();
}

/// How much two threads do against one, in a fixed time; the median of several rounds.
fn two_to_one(work: &(dyn Fn(usize, Instant) -> u64 + Sync)) -> f64 {
    let spell = Duration::from_millis(300);
    let run = |threads: usize| -> u64 {
        std::thread::scope(|scope| {
            let end = Instant::now() + spell;
            let threads: Vec<_> = (0..threads)
                .map(|n| scope.spawn(move || work(n, end)))
                .collect();
            let done = threads.into_iter().map(|thread| thread.join().unwrap());
            done.sum()
        })
    };
    let mut ratios: Vec<f64> = (0..7)
        .map(|_| {
            let one = run(1) as f64;
            run(2) as f64 / one
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

fn scaling(_: &mut Criterion) {
    // Not criterion's: run when all are, or when it is asked for by name.
    let mut filters = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    if filters.next().is_some_and(|filter| filter != "scaling") {
        return;
    }
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let tokens = tokens(&signer, 50);
    let validator = validator(one_key(&signer));
    let hits = |count: usize| {
        let (validator, tokens) = (&validator, &tokens[..count]);
        move |_: usize, end: Instant| {
            let mut done = 0;
            while Instant::now() < end {
                for n in 0..1000 {
                    let token = black_box(&tokens[n % tokens.len()]);
                    black_box(validator.validate(token).unwrap());
                }
                done += 1000;
            }
            done
        }
    };
    let control = |seed: usize, end: Instant| {
        let mut done = 0;
        let mut state = seed as u64;
        while Instant::now() < end {
            for _ in 0..100_000 {
                let next = state.wrapping_mul(6_364_136_223_846_793_005);
                state = black_box(next.wrapping_add(1));
            }
            done += 100_000;
        }
        done
    };
    // The control stands on both sides: the machine's mood is told with the figures.
    let before = two_to_one(&control);
    let one = two_to_one(&hits(1));
    let fifty = two_to_one(&hits(50));
    let after = two_to_one(&control);
    println!(
        "scaling on two threads: control {before:.2} and {after:.2}, \
         one hot token {one:.2}, fifty tokens {fifty:.2}"
    );
}

criterion_group!(benches, hit, early, scaling, cold, size);
criterion_main!(benches);
