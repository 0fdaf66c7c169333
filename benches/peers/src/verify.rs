//! Verification of a token: new, known, and rejected.

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tower_spiffe::Validator;
use tower_spiffe::bundle::{Algorithm, FixedBundles};
use tower_spiffe::verify::ValidateReason;

use crate::keys::{ALGORITHMS, AUDIENCE, Signer, claims, now};
use crate::measure::{Contest, Effort, Outcome, prepare, time};
use crate::names::{AXUM_JWT_AUTH, JSONWEBTOKEN, JWT_AUTHORIZER, OURS, RAW, RAW_AGAIN, SPIFFE};
use crate::peers::{
    Jsonwebtoken, Raw, RawToken, axum_jwt_auth, decode_by_axum_jwt_auth, jwt_authorizer,
    our_bundles, spiffe_bundles, validator,
};
use crate::table::{ALLOCATIONS, BYTES, OVER_BASE, TIME, Table};

/// The number of tokens per validator. After these a new validator with an empty cache is used.
const TOKENS: usize = 512;

/// Tokens that are in no cache, for each algorithm.
pub fn cold(effort: Effort) -> Vec<Table> {
    fill_first_level();
    let names: Vec<&str> = ALGORITHMS.iter().map(|a| a.as_str()).collect();
    let outcomes: Vec<_> = ALGORITHMS
        .iter()
        .map(|&algorithm| cold_of(effort, algorithm))
        .collect();
    let table = |id, title, of| Table::beside(id, title, &names, &outcomes, of);
    vec![
        table("cold", "A token never seen before", TIME),
        table(
            "cold-above",
            "The same: time in addition to the bare signature check",
            OVER_BASE,
        )
        .without(&[RAW]),
        table(
            "cold-allocations",
            "The same: allocations by Rust code",
            ALLOCATIONS,
        )
        .without(&[RAW_AGAIN])
        .note("The figures do not include memory that aws-lc allocates in C."),
        table(
            "cold-bytes",
            "The same: bytes allocated by Rust code",
            BYTES,
        )
        .without(&[RAW_AGAIN]),
    ]
}

/// Fills this thread's level of the verified cache with tokens in use, as in a server with regular
/// callers. Only a repeated token then evicts one of them.
fn fill_first_level() {
    let signer = Signer::usual();
    let regulars = validator(&our_bundles(&signer));
    let tokens = signer.tokens(2048);
    for token in tokens.iter().chain(&tokens) {
        regulars.validate(token).unwrap();
    }
}

/// Returns a validator with a full cache: each new token evicts another one.
fn validator_with_full_cache(signer: &Signer) -> Validator {
    let validator = Validator::builder(FixedBundles::new(our_bundles(signer)))
        .audience(AUDIENCE)
        // Room for about 80 tokens.
        .cache_bytes(64 << 10)
        .build()
        .unwrap();
    for n in 0..256 {
        let token = signer.token(&claims(TOKENS + n));
        validator.validate(&token).unwrap();
    }
    assert!(validator.cache_stats().evictions > 0);
    validator
}

/// Verifies tokens that are in no cache, for callgrind: the command is in `docs/performance.md`.
pub fn run_child(cache: &str) {
    let signer = Signer::usual();
    let validator = match cache {
        "growing" => validator(&our_bundles(&signer)),
        "full" => validator_with_full_cache(&signer),
        _ => panic!("usage: --child cold growing|full"),
    };
    verify_new(&validator, &signer.tokens(TOKENS));
}

#[inline(never)]
fn verify_new(validator: &Validator, tokens: &[String]) {
    for token in tokens {
        std::hint::black_box(validator.validate(token).unwrap());
    }
}

fn cold_of(effort: Effort, algorithm: Algorithm) -> Vec<Outcome> {
    let signer = Signer::new(algorithm, "C6vs25welZOx6WksNYfbMfiw9l96pMnD");
    let tokens = signer.tokens(TOKENS);
    let raw_tokens: Vec<_> = tokens.iter().map(|token| RawToken::new(token)).collect();
    let raw = Raw::new(&signer);
    let bundles = our_bundles(&signer);
    let theirs = spiffe_bundles(&signer);
    let full = validator_with_full_cache(&signer);

    let mut next = 0;
    let mut contest = Contest::new(effort)
        .at_most(tokens.len())
        .each(RAW, |n| assert!(raw.verify(&raw_tokens[n])))
        .each(RAW_AGAIN, |n| assert!(raw.verify(&raw_tokens[n])))
        .batch(OURS, |count| {
            let validator = prepare(|| validator(&bundles));
            let time = time(count, |n| validator.validate(&tokens[n]).unwrap());
            assert_eq!(validator.cache_stats().misses, count as u64);
            time
        })
        .batch(OURS.with(", its cache full"), |count| {
            let before = full.cache_stats();
            let time = time(count, |_| {
                next = (next + 1) % tokens.len();
                full.validate(&tokens[next]).unwrap()
            });
            let after = full.cache_stats();
            assert_eq!(after.misses - before.misses, count as u64);
            assert!(after.evictions - before.evictions >= count as u64);
            time
        });
    let spiffe = |n: usize| spiffe::JwtSvid::parse_and_validate(&tokens[n], &theirs, &[AUDIENCE]);
    if spiffe(0).is_ok() {
        contest = contest.each(SPIFFE, move |n| spiffe(n).unwrap());
    }
    if let Some(jsonwebtoken) = Jsonwebtoken::new(&signer) {
        contest = contest.each(JSONWEBTOKEN, {
            let tokens = &tokens;
            move |n| jsonwebtoken.verify(&tokens[n]).unwrap()
        });
    }
    if let Some(authorizer) = jwt_authorizer(&signer) {
        let tokens = &tokens;
        contest = contest.each(JWT_AUTHORIZER, move |n| {
            let verdict = authorizer.check_auth(&tokens[n]).now_or_never();
            verdict.expect("the check does not wait").unwrap()
        });
    }
    if let Some(decoder) = axum_jwt_auth(&signer) {
        let tokens = &tokens;
        contest = contest.each(AXUM_JWT_AUTH, move |n| {
            decode_by_axum_jwt_auth(&decoder, &tokens[n]).unwrap()
        });
    }
    contest.run()
}

/// The same token, verified repeatedly.
pub fn repeated(effort: Effort) -> Table {
    let signer = Signer::usual();
    let token = &signer.tokens(1)[0];
    let raw_token = RawToken::new(token);
    let raw = Raw::new(&signer);
    let validator = validator(&our_bundles(&signer));
    let theirs = spiffe_bundles(&signer);
    let jsonwebtoken = Jsonwebtoken::new(&signer).unwrap();
    let authorizer = jwt_authorizer(&signer).unwrap();
    let decoder = axum_jwt_auth(&signer).unwrap();
    let outcomes = Contest::new(effort)
        .each(OURS, |_| validator.validate(token).unwrap())
        .each(RAW, |_| raw.verify(&raw_token))
        .each(RAW_AGAIN, |_| raw.verify(&raw_token))
        .each(SPIFFE, |_| {
            spiffe::JwtSvid::parse_and_validate(token, &theirs, &[AUDIENCE]).unwrap()
        })
        .each(JSONWEBTOKEN, |_| jsonwebtoken.verify(token).unwrap())
        .each(JWT_AUTHORIZER, |_| {
            authorizer
                .check_auth(token)
                .now_or_never()
                .unwrap()
                .unwrap()
        })
        .each(AXUM_JWT_AUTH, |_| {
            decode_by_axum_jwt_auth(&decoder, token).unwrap()
        })
        .run();
    assert!(validator.cache_stats().misses <= 1);
    let title = format!(
        "A token seen before (ES256, {} bytes, one thread)",
        token.len()
    );
    Table::contest("repeated", &title, &outcomes)
}

/// A token that must be rejected, and the expected reason.
pub struct RejectedToken {
    pub title: &'static str,
    pub token: String,
    reason: ValidateReason,
    /// Accepted texts in the error of `spiffe`.
    spiffe: &'static [&'static str],
    /// Accepted texts in the errors of jsonwebtoken and of the crates that use it.
    jsonwebtoken: &'static [&'static str],
}

pub fn rejected_tokens(signer: &Signer) -> Vec<RejectedToken> {
    let with = |name: &str, value: Value| {
        let mut claims = claims(0);
        claims[name] = value;
        signer.token(&claims)
    };
    let other_key = Signer::new(Algorithm::ES256, "another-key-another-key-another-");
    let same_key_id = Signer::usual();
    let good = signer.token(&claims(0));
    let payload = good.split('.').nth(1).unwrap();
    let none = encode(&json!({"alg": "none", "typ": "JWT"}));
    vec![
        RejectedToken {
            title: "expired",
            token: with("exp", json!(now() - 3600)),
            reason: ValidateReason::Expired,
            spiffe: &["ExpiredSignature"],
            jsonwebtoken: &["ExpiredSignature"],
        },
        RejectedToken {
            title: "other audience",
            token: with("aud", json!(["spiffe://prod.example/ledger"])),
            reason: ValidateReason::Audience,
            spiffe: &["InvalidAudience"],
            jsonwebtoken: &["InvalidAudience"],
        },
        RejectedToken {
            title: "unknown key",
            token: other_key.token(&claims(0)),
            reason: ValidateReason::KeyUnknown,
            spiffe: &["AuthorityNotFound"],
            // Only for crates that look up the key.
            jsonwebtoken: &["InvalidKid", "InvalidKeyId"],
        },
        RejectedToken {
            title: "wrong signature",
            token: same_key_id.token(&claims(0)),
            reason: ValidateReason::Signature,
            spiffe: &["InvalidSignature"],
            jsonwebtoken: &["InvalidSignature"],
        },
        RejectedToken {
            title: "`alg: none`",
            token: format!("{none}.{payload}."),
            reason: ValidateReason::Malformed,
            spiffe: &[""],
            jsonwebtoken: &[""],
        },
        RejectedToken {
            title: "no token at all",
            token: "a.b.c".repeat(70),
            reason: ValidateReason::Malformed,
            spiffe: &[""],
            jsonwebtoken: &[""],
        },
    ]
}

impl RejectedToken {
    /// Checks that the token is rejected for the intended reason.
    fn expect(&self, texts: &[&str], error: &dyn std::fmt::Debug) {
        let error = format!("{error:?}");
        let expected = texts.iter().any(|text| error.contains(text));
        assert!(expected, "{}: {error}", self.title);
    }

    pub fn expect_jsonwebtoken(&self, error: &dyn std::fmt::Debug) {
        self.expect(self.jsonwebtoken, error);
    }
}

fn encode(value: &Value) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
}

/// Tokens that must be rejected, and how long that takes.
pub fn rejections(effort: Effort) -> Vec<Table> {
    let signer = Signer::usual();
    let validator = validator(&our_bundles(&signer));
    let uncached = Validator::builder(FixedBundles::new(our_bundles(&signer)))
        .audience(AUDIENCE)
        .no_cache()
        .build()
        .unwrap();
    let theirs = spiffe_bundles(&signer);
    let jsonwebtoken = Jsonwebtoken::new(&signer).unwrap();
    let authorizer = jwt_authorizer(&signer).unwrap();
    let decoder = axum_jwt_auth(&signer).unwrap();

    let cases = rejected_tokens(&signer);
    let titles: Vec<&str> = cases.iter().map(|case| case.title).collect();
    let outcomes: Vec<_> = cases
        .iter()
        .map(|case| {
            let token = &case.token;
            let ours = || validator.validate(token).unwrap_err();
            let spiffe =
                || spiffe::JwtSvid::parse_and_validate(token, &theirs, &[AUDIENCE]).unwrap_err();
            let by_hand = || jsonwebtoken.verify(token).unwrap_err();
            let authorizer = || {
                let verdict = authorizer.check_auth(token).now_or_never();
                verdict.unwrap().err().unwrap()
            };
            let decoder = || decode_by_axum_jwt_auth(&decoder, token).unwrap_err();
            // jsonwebtoken and axum-jwt-auth have one fixed key and do not look it up.
            let needs_lookup = case.reason == ValidateReason::KeyUnknown;
            assert_eq!(ours().reason(), case.reason, "{}", case.title);
            case.expect(case.spiffe, &spiffe());
            case.expect_jsonwebtoken(&authorizer());
            if !needs_lookup {
                case.expect_jsonwebtoken(&by_hand());
                case.expect_jsonwebtoken(&decoder());
            }
            let mut contest = Contest::new(effort)
                .each(OURS, |_| ours())
                .each(OURS.with(", without its cache").job("uncached"), |_| {
                    uncached.validate(token).unwrap_err()
                })
                .each(SPIFFE, |_| spiffe());
            if !needs_lookup {
                contest = contest
                    .each(JSONWEBTOKEN, |_| by_hand())
                    .each(AXUM_JWT_AUTH, |_| decoder());
            }
            contest.each(JWT_AUTHORIZER, |_| authorizer()).run()
        })
        .collect();
    let table = |id, title, of| Table::beside(id, title, &titles, &outcomes, of);
    vec![
        table("rejections", "A rejected token (ES256)", TIME),
        table(
            "rejections-allocations",
            "The same: allocations by Rust code",
            ALLOCATIONS,
        ),
        table(
            "rejections-bytes",
            "The same: bytes allocated by Rust code",
            BYTES,
        ),
    ]
}
