//! Counts the allocations of verification and of the client layer, which timing cannot measure on a
//! busy machine.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "tests may"
)]

use allocation_counter::measure;
use serde_json::json;
use tower_spiffe::Validator;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::{FixedBundles, JwtBundleSet};
use tower_spiffe::source::{HttpsBundles, MemoryBundles, MergedBundles};
use tower_spiffe::verify::ValidateReason;

mod client;
mod policy_file;
mod rejections;

use tower_spiffe_test_support::signer::{AUDIENCE, SUBJECT, Signer, bundle};

/// Later than the machine's clock.
const EXPIRY: i64 = 4_000_000_000;

fn token(signer: &Signer, n: usize) -> String {
    signer.sign(
        &json!({"sub": SUBJECT, "aud": [AUDIENCE], "exp": EXPIRY, "iat": 1,
                        "jti": format!("{n:022}")}),
    )
}

fn validator(signer: &Signer) -> Validator {
    let set = JwtBundleSet::from_iter([bundle("td.test", &[signer.jwk()])]);
    Validator::builder(FixedBundles::new(set))
        .audience(AUDIENCE)
        .build()
        .unwrap()
}

#[test]
fn new_token_costs_at_most_ten_allocations() {
    for algorithm in [
        Algorithm::ES256,
        Algorithm::RS256,
        Algorithm::ES384,
        Algorithm::ES512,
        Algorithm::PS256,
    ] {
        let signer = Signer::for_algorithm(algorithm);
        let validator = validator(&signer);
        // The first token parses an RSA key and allocates the table of the thread; later ones grow the cache.
        let tokens: Vec<String> = (0..200).map(|n| token(&signer, n)).collect();
        for token in &tokens[..100] {
            validator.validate(token).unwrap();
        }
        let mut counts: Vec<u64> = tokens[100..]
            .iter()
            .map(|token| measure(|| drop(validator.validate(token).unwrap())).count_total)
            .collect();
        counts.sort_unstable();
        let (median, most) = (counts[50], counts[99]);
        assert!(
            median <= 8 && most <= 10,
            "{algorithm}: {median}, at most {most}"
        );

        let hot = &tokens[199];
        validator.validate(hot).unwrap();
        let hits = measure(|| {
            for _ in 0..2000 {
                validator.validate(hot).unwrap();
            }
        });
        assert_eq!(hits.count_total, 0, "{algorithm}");
        assert!(validator.cache_stats().hits >= 2000);
    }
}

#[test]
fn hits_of_a_merged_source_allocate_nothing() {
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let set = JwtBundleSet::from_iter([bundle("td.test", &[signer.jwk()])]);
    let other = tower_spiffe::TrustDomain::parse("other.test").unwrap();
    let merged = MergedBundles::builder()
        .default_member("agent", MemoryBundles::new(set))
        .member("partner", MemoryBundles::default(), [other])
        .build()
        .unwrap();
    let validator = Validator::builder(merged).audience(AUDIENCE);
    let validator = validator.build().unwrap();
    let token = token(&signer, 1);
    for _ in 0..3 {
        validator.validate(&token).unwrap();
    }
    let hits = measure(|| {
        for _ in 0..2000 {
            validator.validate(&token).unwrap();
        }
    });
    assert_eq!(hits.count_total, 0);
}

#[test]
fn h13_hits_with_a_polled_member_allocate_nothing() {
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let jwks = json!({"keys": [signer.jwk()]}).to_string();
    let domain = || tower_spiffe::TrustDomain::parse("td.test").unwrap();
    let polled = HttpsBundles::jwks_url(domain(), "https://td.test/keys")
        .client(move |_: http::Request<()>| {
            let response = http::Response::new(jwks.clone());
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        })
        .max_staleness(std::time::Duration::from_secs(3600));
    let polled = runtime.block_on(polled.build()).unwrap();
    let merged = MergedBundles::builder()
        .default_member("memory", MemoryBundles::new(JwtBundleSet::default()))
        .member("polled", polled.clone(), [domain()])
        .build()
        .unwrap();
    let token = token(&signer, 1);
    let check = |validator: Validator| {
        for _ in 0..3 {
            validator.validate(&token).unwrap();
        }
        let hits = measure(|| {
            for _ in 0..2000 {
                validator.validate(&token).unwrap();
            }
        });
        assert_eq!(hits.count_total, 0);
        assert!(validator.cache_stats().hits >= 2000);
    };
    check(
        Validator::builder(polled)
            .audience(AUDIENCE)
            .build()
            .unwrap(),
    );
    check(
        Validator::builder(merged)
            .audience(AUDIENCE)
            .build()
            .unwrap(),
    );
}

#[test]
fn a08_too_long_token_allocates_nothing() {
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let validator = validator(&signer);
    for invalid in [".".repeat(1 << 20), "A".repeat(8193), "eyJ".repeat(1 << 18)] {
        let count = measure(|| {
            let error = validator.validate(&invalid).unwrap_err();
            assert_eq!(error.reason(), ValidateReason::TooLong);
        });
        assert_eq!(count.count_total, 0);
    }
}

#[test]
fn a08_rejection_allocations_are_bounded() {
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let validator = validator(&signer);
    let fill = "x".repeat(5000);
    let long = signer.sign(&json!({"sub": SUBJECT, "aud": ["x"], "exp": EXPIRY, "fill": fill}));
    let many: Vec<u8> = vec![7; 2000];
    let many = signer.sign(&json!({"sub": SUBJECT, "aud": ["x"], "exp": EXPIRY, "many": many}));
    let audiences = vec!["x"; 1200];
    let audiences = signer.sign(&json!({"sub": SUBJECT, "aud": audiences, "exp": EXPIRY}));
    for token in [long, many, audiences] {
        let _ = validator.validate(&token);
        let count = measure(|| drop(validator.validate(&token).unwrap_err()));
        assert!(count.bytes_max <= 16 * token.len() as u64, "{count:?}");
    }
}
