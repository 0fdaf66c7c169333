//! The cost of verification, each figure relative to another of the same run.
//!
//! `cargo bench --bench verify` measures the rows of this table, prints each with its limit, and fails
//! if a limit is missed; `-- hit` selects rows by name. Allocations are counted by a test:
//! `tests/allocations`.
//!
//! | what | limit | rows |
//! | --- | --- | --- |
//! | a new token with its insertion into the cache, minus the signature check with a parsed key | 1.0 µs | `cold/ES256 minus raw`, `cold/RS256 minus raw` |
//! | a known token | 120 ns | `hit/350-byte token` |
//! | the speed-up of two threads with known tokens, relative to two threads that only compute | 0.9 × | `hit/two threads, one hot token`, `hit/two threads, 50 tokens` |
//! | a rejection before the signature check | 0.8 µs | `rejected before the signature/expired`, `…/another audience`, `…/unknown key`, `…/malformed`, `…/too long` |
//! | a malformed token of 1 MiB, relative to one of 8 KiB and 1 byte | 1.1 × | `rejected before the signature/malformed, 1 MiB` |
//! | a known token with bundles polled over https, relative to the bundles of an agent | 1.1 × | `https/hit` |
//! | the same, with an agent and an https source merged | 1.5 ×, 120 ns | `https/hit, merged`, `https/hit, merged, time` |
//! | a new token with merged sources, relative to the agent alone, both minus the signature check | 1.1 × | `https/cold minus raw, merged` |
//! | 200 trust domains with 10 keys each, relative to one trust domain with one key | 1.1 × | `200 trust domains × 10 keys/hit`, `…/cold minus raw` |
//!
//! `algorithms` has the other algorithms, `server` has the layer.
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
use std::process::ExitCode;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::Criterion;
use serde_json::{Value, json};
use tower_spiffe::bundle::{Algorithm, BundleSource, FixedBundles, JwtBundleSet};
use tower_spiffe::source::{HttpsBundles, MergedBundles};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{JwtSource, TrustDomain, Validator};

use tower_spiffe_test_support::signer;

use limits::{
    Limit, Limits, Round, difference, each, group, in_turns, medians_in_turns, nanos, repeat,
    two_threads,
};
use signer::{AUDIENCE, SUBJECT, Signer, bundle};

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_secs()).unwrap()
}

/// Claims for an ES256 token of 350 bytes.
fn claims(audience: &str, expires_at: i64, n: usize) -> Value {
    json!({"sub": SUBJECT, "aud": [audience], "exp": expires_at, "iat": now(),
           "jti": format!("{n:048}")})
}

/// Tokens that differ in one claim.
fn tokens(signer: &Signer, count: usize) -> Vec<String> {
    (0..count)
        .map(|n| signer.sign(&claims(AUDIENCE, now() + 3600, n)))
        .collect()
}

fn validator(set: &JwtBundleSet) -> Validator {
    Validator::builder(FixedBundles::new(set.clone()))
        .audience(AUDIENCE)
        .build()
        .unwrap()
}

fn one_key(signer: &Signer) -> JwtBundleSet {
    JwtBundleSet::from_iter([bundle("td.test", &[signer.jwk()])])
}

/// Tokens, with the input of the signature check.
struct Cold {
    tokens: Vec<String>,
    checks: Vec<(usize, Vec<u8>)>,
    key: ParsedPublicKey,
}

impl Cold {
    fn new(signer: &Signer) -> Self {
        Self::of(tokens(signer, 512), signer.parsed())
    }

    fn of(tokens: Vec<String>, key: ParsedPublicKey) -> Self {
        let check = |token: &String| {
            let (signed, signature) = token.rsplit_once('.').unwrap();
            (signed.len(), URL_SAFE_NO_PAD.decode(signature).unwrap())
        };
        Self {
            checks: tokens.iter().map(check).collect(),
            key,
            tokens,
        }
    }

    fn raw(&self, n: usize) -> f64 {
        let (signed, signature) = &self.checks[n];
        let signed = &self.tokens[n].as_bytes()[..*signed];
        nanos(|| black_box(self.key.verify_sig(black_box(signed), black_box(signature))).unwrap())
    }

    /// Returns the time of a validation, without the drop of its result: in a service the cache keeps the
    /// result.
    fn validate(&self, validator: &Validator, n: usize) -> f64 {
        let mut svid = None;
        let time = nanos(|| svid = Some(black_box(validator.validate(black_box(&self.tokens[n])))));
        drop(svid.unwrap().unwrap());
        time
    }

    /// Returns the time of `validate` minus the signature check, for each of two sets. Each token is new
    /// to its validator.
    fn minus_raw(&self, sets: [&JwtBundleSet; 2]) -> [f64; 2] {
        self.minus_raw_of(sets.map(validator))
    }

    fn minus_raw_of(&self, [a, b]: [Validator; 2]) -> [f64; 2] {
        let [raw, a, b] = in_turns(
            self.tokens.len(),
            [
                &mut |n| self.raw(n),
                &mut |n| self.validate(&a, n),
                &mut |n| self.validate(&b, n),
            ],
        );
        [difference(&raw, &a), difference(&raw, &b)]
    }
}

fn cold(criterion: &mut Criterion, limits: &mut Limits) {
    let mut group = group(criterion, "cold");
    for algorithm in [Algorithm::ES256, Algorithm::RS256] {
        let signer = Signer::for_algorithm(algorithm);
        let (cold, set) = (Cold::new(&signer), one_key(&signer));
        let name = format!("{algorithm} minus raw");
        limits.row(&mut group, ("cold", &name), Limit::Nanos(1000.0), || {
            let [one, other] = cold.minus_raw([&set, &set]);
            Round::of_nanos((one + other) / 2.0)
        });
    }
}

fn hit(criterion: &mut Criterion, limits: &mut Limits) {
    let mut group = group(criterion, "hit");
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let tokens = tokens(&signer, 50);
    assert!(tokens[0].len().abs_diff(350) <= 1, "{}", tokens[0].len());
    let validator = validator(&one_key(&signer));
    for token in &tokens {
        validator.validate(token).unwrap();
    }
    let row = ("hit", "350-byte token");
    limits.row(&mut group, row, Limit::Nanos(120.0), || {
        Round::of_nanos(each(50_000, || {
            drop(validator.validate(black_box(&tokens[0])).unwrap());
        }))
    });
    for (name, count) in [
        ("two threads, one hot token", 1),
        ("two threads, 50 tokens", 50),
    ] {
        let tokens = &tokens[..count];
        let hits = |_, end| {
            repeat(end, |n| {
                drop(validator.validate(&tokens[n % count]).unwrap())
            })
        };
        limits.row(&mut group, ("hit", name), Limit::AtLeast(0.9), || {
            two_threads(&hits)
        });
    }
}

fn size(criterion: &mut Criterion, limits: &mut Limits) {
    const NAME: &str = "200 trust domains × 10 keys";
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let small = one_key(&signer);
    let named = |n| Signer::new("p256-b", Algorithm::ES256).with_key_id(&format!("k{n}"));
    let mut keys: Vec<_> = (0..9).map(|n| named(n).jwk()).collect();
    keys.push(signer.jwk());
    let others = (0..199).map(|n| bundle(&format!("td{n}.test"), &keys));
    let large = others.chain([bundle("td.test", &keys)]).collect();

    let cold = Cold::new(&signer);
    let mut group = group(criterion, NAME);
    let hits = [&small, &large].map(|set| {
        let (validator, token) = (validator(set), &cold.tokens[0]);
        move |_| {
            each(2000, || {
                drop(validator.validate(black_box(token)).unwrap());
            })
        }
    });
    let [mut one, mut many] = hits;
    limits.row(&mut group, (NAME, "hit"), Limit::AtMost(1.1), || {
        let [one, many] = medians_in_turns(50, [&mut one, &mut many]);
        Round {
            nanos: many,
            figure: many / one,
        }
    });
    limits.row(
        &mut group,
        (NAME, "cold minus raw"),
        Limit::AtMost(1.1),
        || {
            let [one, many] = cold.minus_raw([&small, &large]);
            Round {
                nanos: many,
                figure: many / one,
            }
        },
    );
}

/// An agent, and an endpoint that publishes the agent's keys.
struct Sources {
    runtime: tokio::runtime::Runtime,
    agent: FakeAgent,
    source: JwtSource,
    polled: HttpsBundles,
}

impl Sources {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (agent, source, polled) = runtime.block_on(async {
            let agent = FakeAgent::start_in_memory("td.test").await.unwrap();
            let source = agent.source().await.unwrap();
            let jwks = String::from_utf8(agent.issuer().jwks()).unwrap();
            let domain = TrustDomain::parse("td.test").unwrap();
            let polled = HttpsBundles::jwks_url(domain, "https://td.test/keys")
                .client(move |_: http::Request<()>| {
                    let response = http::Response::new(jwks.clone());
                    std::future::ready(Ok::<_, std::convert::Infallible>(response))
                })
                .build()
                .await
                .unwrap();
            (agent, source, polled)
        });
        Self {
            runtime,
            agent,
            source,
            polled,
        }
    }

    /// Merges the agent and the polled source, which owns td.test.
    fn merged(&self) -> MergedBundles {
        let domain = TrustDomain::parse("td.test").unwrap();
        MergedBundles::builder()
            .default_member("agent", self.source.clone())
            .member("polled", self.polled.clone(), [domain])
            .build()
            .unwrap()
    }

    fn tokens(&self, count: usize) -> Vec<String> {
        let issuer = self.agent.issuer();
        let token = |n: usize| {
            let token = issuer
                .token(SUBJECT, AUDIENCE)
                .claim("jti", format!("{n:048}"));
            token
                .expires_in(std::time::Duration::from_secs(3600))
                .sign()
        };
        (0..count).map(token).collect()
    }
}

fn on(source: impl BundleSource) -> Validator {
    let validator = Validator::builder(source).audience(AUDIENCE);
    validator.build().unwrap()
}

fn https(criterion: &mut Criterion, limits: &mut Limits) {
    const NAME: &str = "https";
    let sources = Sources::new();
    let _runtime = sources.runtime.enter();
    let token = sources.tokens(1).remove(0);
    let mut group = group(criterion, NAME);
    let hits = |validator: Validator| {
        let token = &token;
        validator.validate(token).unwrap();
        move |_| {
            each(2000, || {
                drop(validator.validate(black_box(token)).unwrap());
            })
        }
    };
    let mut agent = hits(on(sources.source.clone()));
    let mut polled = hits(on(sources.polled.clone()));
    let mut merged = hits(on(sources.merged()));
    for (name, other, most) in [
        ("hit", &mut polled as &mut dyn FnMut(usize) -> f64, 1.1),
        ("hit, merged", &mut merged, 1.5),
    ] {
        limits.row(&mut group, (NAME, name), Limit::AtMost(most), || {
            let [agent, other] = medians_in_turns(50, [&mut agent, &mut *other]);
            Round {
                nanos: other,
                figure: other / agent,
            }
        });
    }
    let row = (NAME, "hit, merged, time");
    limits.row(&mut group, row, Limit::Nanos(120.0), || {
        let [merged] = medians_in_turns(50, [&mut merged]);
        Round::of_nanos(merged)
    });
    let cold = Cold::of(
        sources.tokens(512),
        parsed_key(&sources.agent.issuer().jwks()),
    );
    let row = (NAME, "cold minus raw, merged");
    limits.row(&mut group, row, Limit::AtMost(1.1), || {
        let validators = [on(sources.source.clone()), on(sources.merged())];
        let [agent, merged] = cold.minus_raw_of(validators);
        Round {
            nanos: merged,
            figure: merged / agent,
        }
    });
}

/// Parses the only key of a JWK Set, a P-256 key.
fn parsed_key(jwks: &[u8]) -> ParsedPublicKey {
    let jwks: Value = serde_json::from_slice(jwks).unwrap();
    let part = |name: &str| {
        let text = jwks["keys"][0][name].as_str().unwrap();
        URL_SAFE_NO_PAD.decode(text).unwrap()
    };
    let point = [&[4][..], &part("x"), &part("y")].concat();
    ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).unwrap()
}

fn rejections(criterion: &mut Criterion, limits: &mut Limits) {
    const NAME: &str = "rejected before the signature";
    let signer = Signer::for_algorithm(Algorithm::ES256);
    let validator = validator(&one_key(&signer));
    let good = signer.sign(&claims(AUDIENCE, now() + 3600, 0));
    let (signed, _) = good.rsplit_once('.').unwrap();
    let unknown = Signer::for_algorithm(Algorithm::ES256).with_key_id("another");
    let other = "spiffe://td.test/another";
    let malformed = |len: usize| "eyJ".repeat(len / 3 + 1)[..len].to_owned();
    let reject = |token: &str, times| {
        each(times, || {
            drop(validator.validate(black_box(token)).unwrap_err());
        })
    };
    let mut group = group(criterion, NAME);
    for (name, token) in [
        ("expired", signer.sign(&claims(AUDIENCE, now() - 3600, 0))),
        (
            "another audience",
            signer.sign(&claims(other, now() + 3600, 0)),
        ),
        (
            "unknown key",
            unknown.sign(&claims(AUDIENCE, now() + 3600, 0)),
        ),
        ("malformed", signed.to_owned()),
        ("too long", malformed(8193)),
    ] {
        limits.row(&mut group, (NAME, name), Limit::Nanos(800.0), || {
            Round::of_nanos(reject(&token, 20_000))
        });
    }
    let (long, longest) = (malformed(8193), malformed(1 << 20));
    let row = (NAME, "malformed, 1 MiB");
    limits.row(&mut group, row, Limit::AtMost(1.1), || {
        let [long, longest] = medians_in_turns(
            50,
            [&mut |_| reject(&long, 2000), &mut |_| {
                reject(&longest, 2000)
            }],
        );
        Round {
            nanos: longest,
            figure: longest / long,
        }
    });
}

fn main() -> ExitCode {
    let mut criterion = Criterion::default().configure_from_args();
    let mut limits = Limits::new();
    for rows in [hit, rejections, cold, size, https] {
        rows(&mut criterion, &mut limits);
    }
    criterion.final_summary();
    limits.finish()
}
