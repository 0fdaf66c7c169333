//! The cache of verified tokens: bounded, scan-resistant, counted, and never a bypass.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use tower_spiffe::Validator;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::{
    BundleAnswer, BundleSource, BundlesUnavailable, JwtBundle, JwtBundleSet,
};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::metrics::{MetricsRecorder, Verification};
use tower_spiffe::testing::internals::share_authorities;
use tower_spiffe::verify::ValidateReason;

use crate::signer::{NOW, Signer, bundle, claims_with};
use crate::support::{Fixture, Swappable, es256, keys_of};

fn numbered(signer: &Signer, n: usize) -> String {
    signer.sign(&claims_with("jti", json!(n)))
}

#[test]
fn second_validation_is_a_counted_hit() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let token = signer.token();
    for _ in 0..3 {
        fixture.warm.validate(&token).unwrap();
        fixture.cold.validate(&token).unwrap();
    }
    fixture.warm.validate("not a token").unwrap_err();
    let stats = fixture.warm.cache_stats();
    assert_eq!((stats.hits, stats.misses, stats.entries), (2, 2, 1));
    assert!(stats.bytes > token.len() as u64);
    assert_eq!(fixture.cold.cache_stats(), Default::default());
}

#[test]
fn a_clone_and_another_thread_share_the_cache() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let token = signer.token();
    fixture.warm.validate(&token).unwrap();
    let (validator, seen) = (fixture.warm.clone(), token.clone());
    std::thread::spawn(move || validator.validate(&seen).unwrap())
        .join()
        .unwrap();
    assert_eq!(fixture.warm.cache_stats().hits, 1);
}

#[test]
fn rejections_are_not_cached() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    for n in 0..100 {
        let token = signer.sign(&claims_with("exp", json!(NOW - 1000 - n)));
        fixture.warm.validate(&token).unwrap_err();
    }
    assert_eq!(fixture.warm.cache_stats().entries, 0);
}

#[test]
fn expired_entry_is_removed() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let (short, long) = (
        signer.sign(&claims_with("exp", json!(NOW + 5))),
        signer.token(),
    );
    for token in [&short, &long] {
        fixture.warm.validate(token).unwrap();
        fixture.warm.validate(token).unwrap();
    }
    let before = fixture.warm.cache_stats();
    assert_eq!((before.hits, before.misses, before.entries), (2, 2, 2));

    // The leeway is 10 s.
    fixture.clock.set(UnixTime::from_secs(NOW + 15));
    for _ in 0..2 {
        let error = fixture.warm.validate(&short).unwrap_err();
        assert_eq!(error.reason(), ValidateReason::Expired);
    }
    let after = fixture.warm.cache_stats();
    assert_eq!((after.hits, after.misses, after.entries), (2, 4, 1));
    // Nor is it cached per thread: with the clock set back, it is verified again.
    fixture.clock.set(UnixTime::from_secs(NOW));
    fixture.warm.validate(&short).unwrap();
    assert_eq!(fixture.warm.cache_stats().misses, 5);
}

#[test]
fn entry_that_is_not_yet_valid_is_kept() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let token = signer.sign(&claims_with("nbf", json!(NOW)));
    fixture.warm.validate(&token).unwrap();
    fixture.clock.set(UnixTime::from_secs(NOW - 11));
    let error = fixture.warm.validate(&token).unwrap_err();
    assert_eq!(error.reason(), ValidateReason::NotYetValid);
    let stats = fixture.warm.cache_stats();
    assert_eq!((stats.hits, stats.misses, stats.entries), (0, 2, 1));
    // The clock that was set back advances again.
    fixture.clock.set(UnixTime::from_secs(NOW));
    fixture.warm.validate(&token).unwrap();
    assert_eq!(fixture.warm.cache_stats().hits, 1);
}

#[test]
fn cache_is_bounded_and_keeps_frequent_tokens() {
    let signer = es256();
    let small = Fixture::with(keys_of(&[&signer]), |builder| {
        builder.cache_bytes(128 * 1024)
    });
    let regulars: Vec<String> = (0..20).map(|n| numbered(&signer, n)).collect();
    // Two threads, so that the shared level is used as well as the per-thread level.
    let use_regulars = || {
        for token in &regulars {
            small.warm.validate(token).unwrap();
            let (validator, token) = (&small.warm, token);
            std::thread::scope(|scope| {
                scope.spawn(move || validator.validate(token).unwrap());
            });
        }
    };
    use_regulars();
    use_regulars();
    for round in 0..20 {
        for n in 0..100 {
            small
                .warm
                .validate(&numbered(&signer, 1000 + round * 100 + n))
                .unwrap();
            assert!(small.warm.cache_stats().bytes <= 128 * 1024);
        }
        use_regulars();
    }
    let stats = small.warm.cache_stats();
    assert!(stats.evictions > 1000, "{stats:?}");
    // A new thread has an empty first level, so its hits come from the shared level.
    let before = stats.hits;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for token in &regulars {
                small.warm.validate(token).unwrap();
            }
        });
    });
    let found = small.warm.cache_stats().hits - before;
    assert!(found >= 18, "{found} of 20 regulars survived");
}

#[test]
fn token_larger_than_the_cache_is_verified() {
    let signer = es256();
    let tiny = Fixture::with(keys_of(&[&signer]), |builder| builder.cache_bytes(1024));
    let long = signer.sign(&claims_with("fill", json!("x".repeat(4000))));
    for _ in 0..3 {
        tiny.accepts(&long);
    }
    assert_eq!(tiny.warm.cache_stats().entries, 0);
}

/// Returns the bytes that this work allocates on this thread and does not free.
fn held(work: impl FnOnce()) -> i64 {
    allocation_counter::measure(work).bytes_current
}

#[test]
fn a_small_cache_is_small_on_every_thread() {
    let signer = es256();
    let source = Swappable::new(keys_of(&[&signer]));
    let tokens: Vec<String> = (0..600).map(|n| numbered(&signer, n)).collect();
    let build = |bytes: usize| {
        let builder = Validator::builder(source.clone()).audience(crate::signer::AUDIENCE);
        let clock = crate::support::HandClock::at(NOW);
        builder.clock(clock).cache_bytes(bytes).build().unwrap()
    };
    let fill = |validator: &Validator| {
        for token in &tokens {
            // A second use may evict another token from the per-thread level.
            validator.validate(token).unwrap();
            validator.validate(token).unwrap();
        }
    };
    let small = build(16 * 1024);
    let bytes = held(|| fill(&small));
    assert!(bytes <= 48 * 1024, "{bytes} bytes for a cache of 16 KiB");

    // The documented size of the per-thread level.
    let large = build(8 * 1024 * 1024);
    let bytes = held(|| fill(&large));
    let shared = i64::try_from(large.cache_stats().bytes).unwrap();
    assert!(
        bytes <= shared + 640 * 1024,
        "{bytes} bytes, {shared} bytes shared"
    );
}

#[test]
fn dropped_validator_frees_its_memory() {
    let signer = es256();
    let source = Swappable::new(keys_of(&[&signer]));
    let tokens: Vec<String> = (0..256).map(|n| numbered(&signer, n)).collect();
    let use_one = || {
        let builder = Validator::builder(source.clone()).audience(crate::signer::AUDIENCE);
        let clock = crate::support::HandClock::at(NOW);
        let validator = builder.clock(clock).build().unwrap();
        for token in &tokens {
            validator.validate(token).unwrap();
        }
        validator.validate(&tokens[0]).unwrap();
    };
    // The next verification of a new token clears the entries of dropped validators. Without it their
    // number, and so the result, would depend on the hash seeds.
    let clear = || {
        let other = Validator::builder(source.clone())
            .audience(crate::signer::AUDIENCE)
            .clock(crate::support::HandClock::at(NOW))
            .build()
            .unwrap();
        other.validate(&tokens[0]).unwrap();
    };
    // The per-thread table is allocated once.
    use_one();
    clear();
    for validators in [2, 20] {
        let bytes = held(|| {
            (0..validators).for_each(|_| use_one());
            clear();
        });
        assert!(bytes <= 1024, "{bytes} bytes after {validators} validators");
    }
}

#[test]
fn update_keeps_entries_of_unchanged_keys() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let token = signer.token();
    fixture.accepts(&token);
    let misses = fixture.warm.cache_stats().misses;
    // The same key, parsed again, next to another key; shared with the previous bundle or not.
    let other = Signer::new("p256-b", Algorithm::ES256);
    let anew = bundle("td.test", &[other.jwk(), signer.jwk()]);
    let shared = share_authorities(anew.clone(), &bundle("td.test", &[signer.jwk()]));
    for bundle in [anew, shared] {
        fixture.source.set(Ok(JwtBundleSet::from_iter([bundle])));
        fixture.accepts(&token);
    }
    assert_eq!(fixture.warm.cache_stats().misses, misses);
}

#[test]
fn only_equal_keys_are_shared() {
    let (signer, other) = (es256(), Signer::new("p256-b", Algorithm::ES256));
    let before = bundle("td.test", &[signer.jwk(), other.jwk()]);
    let mut restricted = other.jwk();
    restricted["alg"] = json!("ES384");
    let after = bundle("td.test", &[restricted, signer.jwk()]);
    assert_ne!(before, after);
    let after = share_authorities(after, &before);
    let same = |kid: &str| {
        Arc::ptr_eq(
            before.authority(kid).unwrap(),
            after.authority(kid).unwrap(),
        )
    };
    assert!(same("p256") && !same("p256-b"));
    // Keys of another trust domain are not shared.
    let foreign = share_authorities(bundle("other.test", &[signer.jwk()]), &before);
    assert!(!Arc::ptr_eq(
        before.authority("p256").unwrap(),
        foreign.authority("p256").unwrap()
    ));
    // Order and ignored keys do not matter.
    let turned = bundle("td.test", &[json!(7), other.jwk(), signer.jwk()]);
    assert_eq!(before, turned);
    assert_ne!(before, bundle("other.test", &[signer.jwk(), other.jwk()]));
}

#[test]
fn debug_output_contains_no_token() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let token = signer.token();
    let svid = fixture.accepts(&token);
    let shown = format!(
        "{svid:?} {:?} {:?}",
        fixture.warm,
        fixture.warm.validate(&token)
    );
    let error = format!("{:?}", fixture.cold.validate(&format!("{token}x")));
    for part in token.split('.') {
        assert!(!shown.contains(&part[..16]) && !error.contains(&part[..16]));
    }
    let own = tower_spiffe::JwtSvid::parse_unverified(&token, "hint").unwrap();
    assert_eq!(
        (own.token(), own.hint(), own.key_id()),
        (token.as_str(), "hint", Some("p256"))
    );
    assert_eq!(own.spiffe_id(), svid.spiffe_id());
    let shown = format!("{own:?} {own}");
    assert!(token.split('.').all(|part| !shown.contains(&part[..16])));
}

#[derive(Default)]
struct Labels(Mutex<Vec<(String, bool, String)>>);

impl MetricsRecorder for Labels {
    fn record_verification(&self, verification: &Verification<'_>) {
        let label = verification.trust_domain.to_owned();
        self.0
            .lock()
            .unwrap()
            .push((verification.outcome.to_owned(), verification.cached, label));
    }
}

#[test]
fn labels_contain_only_known_trust_domains() {
    let signer = es256();
    let labels = Arc::new(Labels::default());
    let fixture = Fixture::with(keys_of(&[&signer]), |builder| {
        builder.metrics(labels.clone())
    });
    let foreign = signer.sign(&claims_with("sub", json!("spiffe://attacker.test/web")));
    let expired = signer.sign(&claims_with("exp", json!(0)));
    let token = signer.token();
    for token in [&token, &token, &foreign, &expired, "not a token"] {
        let _ = fixture.warm.validate(token);
    }
    let seen = std::mem::take(&mut *labels.0.lock().unwrap());
    let seen: Vec<_> = seen
        .iter()
        .map(|(o, c, l)| (o.as_str(), *c, l.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            ("ok", false, "td.test"),
            ("ok", true, "td.test"),
            ("trust-domain-unknown", false, "unknown"),
            ("expired", false, "td.test"),
            ("malformed-token", false, "unknown"),
        ]
    );
}

/// A source that publishes generations of keys: `kid` p256 is one key in even generations, and
/// another key in odd generations.
struct Rotating {
    generation: AtomicU64,
    bundles: [Arc<JwtBundle>; 2],
}

impl BundleSource for Rotating {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        Ok(self.generation.load(Ordering::Acquire))
    }

    fn bundle(&self, _: &str) -> BundleAnswer {
        let generation = self.generation.load(Ordering::Acquire);
        BundleAnswer::Ready(self.bundles[usize::try_from(generation % 2).unwrap()].clone())
    }
}

#[test]
fn a22_no_hit_outlives_its_key_under_load() {
    let signers = [
        es256(),
        Signer::new("p256-b", Algorithm::ES256).with_key_id("p256"),
    ];
    let bundles = [0, 1].map(|n| Arc::new(bundle("td.test", &[signers[n].jwk()])));
    let source = Arc::new(Rotating {
        generation: AtomicU64::new(0),
        bundles,
    });
    let validator = Validator::builder(source.clone())
        .audience(crate::signer::AUDIENCE)
        .clock(crate::support::HandClock::at(NOW))
        .build()
        .unwrap();
    let tokens = [signers[0].token(), signers[1].token()];
    let done = AtomicBool::new(false);
    let verdicts = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for (n, token) in tokens.iter().enumerate() {
                        let before = source.generation.load(Ordering::SeqCst);
                        let verdict = validator.validate(token);
                        let after = source.generation.load(Ordering::SeqCst);
                        // If no change happened during validation, the result must match the generation.
                        if before == after {
                            let good = before % 2 == n as u64;
                            assert_eq!(verdict.is_ok(), good, "token {n} in generation {before}");
                            verdicts.fetch_add(1, Ordering::Relaxed);
                        }
                        if let Err(error) = verdict {
                            assert_eq!(error.reason(), ValidateReason::Signature);
                        }
                    }
                }
            });
        }
        let mut turns = 0;
        while turns < 200 || verdicts.load(Ordering::Relaxed) < 2_000 {
            source.generation.fetch_add(1, Ordering::SeqCst);
            turns += 1;
            for _ in 0..turns % 8 {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(validator.cache_stats().hits > 0);
}

#[test]
fn source_may_call_its_validator() {
    struct Nested(Validator, String, Arc<JwtBundle>);
    impl BundleSource for Nested {
        fn revision(&self) -> Result<u64, BundlesUnavailable> {
            self.0.validate(&self.1).unwrap();
            Ok(0)
        }
        fn bundle(&self, _: &str) -> BundleAnswer {
            self.0.validate(&self.1).unwrap();
            BundleAnswer::Ready(self.2.clone())
        }
    }
    let signer = es256();
    let inner = Fixture::new(&[&signer]);
    let source = Nested(
        inner.warm.clone(),
        signer.token(),
        Arc::new(bundle("td.test", &[signer.jwk()])),
    );
    let outer = Validator::builder(source)
        .audience(crate::signer::AUDIENCE)
        .clock(inner.clock.clone())
        .build()
        .unwrap();
    for _ in 0..3 {
        outer.validate(&signer.token()).unwrap();
    }
}

/// Headers are cached per thread. A cached header must not change a result.
#[test]
fn a_known_header_changes_no_result() {
    let signer = es256();
    let usual = Fixture::new(&[&signer]);
    usual.accepts(&signer.token());
    // The same header with other claims, with another signature, and with another key of that
    // name.
    let expired = signer.sign(&claims_with("exp", json!(NOW - 1000)));
    usual.rejects(&expired, ValidateReason::Expired);
    let (signed, _) = expired.rsplit_once('.').unwrap();
    let (_, signature) = signer.token().rsplit_once('.').map(own).unwrap();
    usual.rejects(&format!("{signed}.{signature}"), ValidateReason::Expired);
    let altered = signer.sign(&claims_with("jti", json!(1)));
    let (signed, _) = altered.rsplit_once('.').unwrap();
    usual.rejects(&format!("{signed}.{signature}"), ValidateReason::Signature);
    let namesake = Signer::new("p256-b", Algorithm::ES256).with_key_id(&signer.key_id);
    let other_key = Fixture::new(&[&namesake]);
    other_key.rejects(&signer.token(), ValidateReason::Signature);
    let none = Fixture::with(keys_of(&[&signer]), |builder| {
        builder.algorithms([Algorithm::RS256])
    });
    none.rejects(&signer.token(), ValidateReason::Algorithm);

    // A header that a lax validator accepted is still rejected by a strict one.
    let mut header = signer.header();
    header["more"] = json!(1);
    let token = signer.sign_texts(
        &header.to_string(),
        &claims_with("jti", json!(2)).to_string(),
    );
    let lax = Fixture::with(keys_of(&[&signer]), |builder| {
        builder.allow_unknown_headers(true)
    });
    for _ in 0..2 {
        usual.rejects(&token, ValidateReason::Header);
        lax.accepts(&token);
    }
}

fn own((signed, signature): (&str, &str)) -> (String, String) {
    (signed.to_owned(), signature.to_owned())
}
