//! The cache changes no result, for any history. Bundles and clocks change at random;
//! a validator with a cache and one without must agree.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tower_spiffe::Validator;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::{BundlesUnavailable, JwtBundleSet};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::verify::ValidatorBuilder;

use crate::signer::{AUDIENCE, NOW, Signer, bundle, claims, claims_with};
use crate::support::{HandClock, Swappable};

/// Two keys with one name, one key with two algorithms, and one key that is never published.
static SIGNERS: LazyLock<[Signer; 5]> = LazyLock::new(|| {
    [
        Signer::new("p256", Algorithm::ES256).with_key_id("a"),
        Signer::new("p256-b", Algorithm::ES256).with_key_id("a"),
        Signer::new("rsa2048", Algorithm::RS256).with_key_id("r"),
        Signer::new("rsa2048", Algorithm::PS256).with_key_id("r"),
        Signer::new("evil-p256", Algorithm::ES256).with_key_id("a"),
    ]
});

static TOKENS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut without_iat = claims_with("exp", json!(NOW + 1000));
    without_iat.as_object_mut().unwrap().remove("iat");
    let said = [
        claims(),
        without_iat,
        claims_with("sub", json!("spiffe://other.test/web")),
        claims_with("nbf", json!(NOW + 60)),
        claims_with("exp", json!(1e300)),
        claims_with("exp", json!(i64::MAX)),
        claims_with("exp", json!(NOW as f64 + 299.5)),
        claims_with("iat", json!(NOW + 1000)),
        claims_with("exp", json!(-1)),
        claims_with("aud", json!("other")),
    ];
    let plain = SIGNERS.iter().flat_map(|signer| {
        let sign = |claims| signer.sign(claims);
        said.iter().map(sign).collect::<Vec<_>>()
    });
    // An unknown header field, which one of the validators allows.
    let with_field = SIGNERS[..2].iter().map(|signer| {
        let mut header = signer.header();
        header["cty"] = json!("x");
        signer.sign_texts(&header.to_string(), &claims().to_string())
    });
    with_field.chain(plain).collect()
});

/// The JWKs that can be published.
static ELEMENTS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let with = |at: usize, name: &str, value: Value| {
        let mut jwk = SIGNERS[at].jwk();
        jwk[name] = value;
        jwk
    };
    vec![
        SIGNERS[0].jwk(),
        SIGNERS[1].jwk(),
        with(0, "use", json!("jwt-svid")),
        with(0, "use", json!("x509-svid")),
        with(0, "key_ops", json!(["sign"])),
        SIGNERS[2].jwk(),
        with(2, "alg", json!("RS256")),
        with(2, "alg", json!("PS256")),
        with(2, "kid", json!("a")),
    ]
});

#[derive(Debug, Clone)]
enum Step {
    /// The elements of both trust domains; parsed from scratch, or as an update.
    Publish(Vec<usize>, Option<Vec<usize>>, bool),
    BundlesUnavailable(BundlesUnavailable),
    Clock(UnixTime),
    Ask(usize),
}

/// Times around the start and end of the tokens, with each leeway.
static MOMENTS: [i64; 18] = [
    -1000, -60, -1, 0, 1, 49, 50, 60, 290, 299, 300, 309, 310, 600, 1009, 1010, 1300, 5000,
];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let keys = || prop::collection::vec(0..ELEMENTS.len(), 0..4);
    let publish = (keys(), prop::option::of(keys()), any::<bool>());
    let near = (prop::sample::select(&MOMENTS[..]), 0..1_000_000_000_u32);
    let near = near.prop_map(|(at, nanos)| UnixTime::new(NOW + at, nanos));
    let exact = prop::sample::select(&MOMENTS[..]).prop_map(|at| UnixTime::from_secs(NOW + at));
    let far = prop::sample::select(vec![UnixTime::MIN, UnixTime::MAX, UnixTime::from_secs(-1)]);
    let why = vec![BundlesUnavailable::Stale, BundlesUnavailable::Withdrawn];
    let step = prop_oneof![
        2 => publish.prop_map(|(one, other, anew)| Step::Publish(one, other, anew)),
        1 => prop::sample::select(why).prop_map(Step::BundlesUnavailable),
        2 => prop_oneof![4 => near, 4 => exact, 1 => far].prop_map(Step::Clock),
        8 => (0..TOKENS.len()).prop_map(Step::Ask),
        // Some tokens are used often.
        8 => (0..4_usize).prop_map(Step::Ask),
    ];
    prop::collection::vec(step, 1..80)
}

/// A validator with a cache, and one without.
struct Pair(Validator, Validator);

impl Pair {
    fn new(
        source: &Swappable,
        clock: &Arc<HandClock>,
        configure: impl Fn(ValidatorBuilder) -> ValidatorBuilder,
    ) -> Self {
        let builder = || {
            let builder = Validator::builder(source.clone()).audience(AUDIENCE);
            configure(builder.clock(clock.clone()))
        };
        let cold = builder().no_cache().build().unwrap();
        Self(builder().build().unwrap(), cold)
    }

    fn agree(&self, token: &str) {
        let Self(warm, cold) = self;
        let said = |validator: &Validator| {
            validator.validate(token).map(|svid| {
                let id = svid.spiffe_id().clone();
                let (exp, key) = (svid.expires_at(), svid.key_id().to_owned());
                (id, exp, key, svid.claims_json().to_owned())
            })
        };
        // Compare whole errors. Use a new thread, because headers are cached per thread.
        let (first, again) = (said(warm), said(warm));
        let expected = std::thread::scope(|scope| scope.spawn(|| said(cold)).join().unwrap());
        assert_eq!(first, expected);
        assert_eq!(again, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a22_no_history_changes_a_result(steps in steps()) {
        let source = Swappable::new(JwtBundleSet::default());
        let clock = HandClock::at(NOW);
        let pairs = [
            Pair::new(&source, &clock, |builder| builder),
            Pair::new(&source, &clock, |builder| {
                let lifetime = Some(Duration::from_secs(600));
                builder.leeway(Duration::ZERO).max_lifetime(lifetime).cache_bytes(4096)
            }),
            Pair::new(&source, &clock, |builder| {
                let algorithms = [Algorithm::ES256, Algorithm::PS256];
                builder.allow_unknown_headers(true).algorithms(algorithms)
            }),
        ];
        let mut set = JwtBundleSet::default();
        for step in steps {
            match step {
                Step::Publish(one, other, anew) => {
                    let published = [("td.test", Some(one)), ("other.test", other)];
                    let bundles = published.into_iter().filter_map(|(name, keys)| {
                        let keys: Vec<_> = keys?.into_iter().map(|at| ELEMENTS[at].clone()).collect();
                        let read = bundle(name, &keys);
                        Some(match set.get(name) {
                            Some(before) if !anew => tower_spiffe::testing::internals::share_authorities(read, before),
                            _ => read,
                        })
                    });
                    set = bundles.collect();
                    source.set(Ok(set.clone()));
                }
                Step::BundlesUnavailable(why) => source.set(Err(why)),
                Step::Clock(now) => clock.set(now),
                Step::Ask(token) => pairs.iter().for_each(|pair| pair.agree(&TOKENS[token])),
            }
        }
    }
}
