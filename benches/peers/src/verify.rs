//! A token against the keys: never seen before, seen before, and refused.

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tower_spiffe::{Algorithm, ValidateReason};

use crate::keys::{ALGORITHMS, AUDIENCE, Signer, claims, now};
use crate::measure::{Contest, Effort, Outcome, prepare, time};
use crate::peers::{
    Jsonwebtoken, Raw, RawToken, jwt_authorizer, our_bundles, spiffe_bundles, validator,
};
use crate::report::{Cell, Table};

pub const OURS: &str = "**tower-spiffe**";
pub const RAW: &str = "aws-lc-rs alone (the limit)";
pub const SPIFFE: &str = "spiffe 0.19 `parse_and_validate`";
pub const JSONWEBTOKEN: &str = "jsonwebtoken 11.1, key prebuilt [^claims]";
pub const JWT_AUTHORIZER: &str = "jwt-authorizer 0.15 [^ring]";

/// So many tokens are new to a validator before it is replaced.
const TOKENS: usize = 512;

/// Tokens that none of them has seen, for each algorithm.
pub fn cold(effort: Effort) -> Vec<Table> {
    let names: Vec<&str> = ALGORITHMS.iter().map(|a| a.as_str()).collect();
    let mut times = Table::new("cold", "A token never seen before", &names);
    let mut above = Table::new(
        "cold-above",
        "The same, above the bare signature check of the same round",
        &names,
    );
    let mut memory = Table::new(
        "cold-memory",
        "The same: allocations by Rust code, and their bytes",
        &["ES256", "bytes", "RS256", "bytes "],
    )
    .note("What aws-lc allocates in C is in no figure of this table.");

    let outcomes: Vec<_> = ALGORITHMS
        .iter()
        .map(|&algorithm| cold_of(effort, algorithm))
        .collect();
    for name in [RAW, OURS, SPIFFE, JSONWEBTOKEN, JWT_AUTHORIZER] {
        let of = |at: usize| -> Option<Outcome> {
            let (_, outcome) = outcomes[at].iter().find(|(other, _)| other == name)?;
            Some(*outcome)
        };
        let each = |cell: fn(Outcome) -> Option<Cell>| {
            (0..ALGORITHMS.len()).map(|at| cell(of(at)?)).collect()
        };
        times.row(name, each(|outcome| Cell::nanos(outcome.nanos)));
        if name != RAW {
            above.row(name, each(|outcome| Cell::nanos(outcome.over_first)));
        }
        let (es256, rs256) = (of(0), of(3));
        memory.row(
            name,
            vec![
                es256.and_then(|outcome| Cell::count(outcome.allocations)),
                es256.and_then(|outcome| Cell::bytes(outcome.bytes)),
                rs256.and_then(|outcome| Cell::count(outcome.allocations)),
                rs256.and_then(|outcome| Cell::bytes(outcome.bytes)),
            ],
        );
    }
    vec![times, above, memory]
}

fn cold_of(effort: Effort, algorithm: Algorithm) -> Vec<(String, Outcome)> {
    let signer = Signer::new(algorithm, "C6vs25welZOx6WksNYfbMfiw9l96pMnD");
    let tokens = signer.tokens(if effort.quick { 16 } else { TOKENS });
    let raw_tokens: Vec<_> = tokens.iter().map(|token| RawToken::new(token)).collect();
    let raw = Raw::new(&signer);
    let bundles = our_bundles(&signer);
    let theirs = spiffe_bundles(&signer);

    let mut contest = Contest::new(effort)
        .at_most(tokens.len())
        .each(RAW, |n| assert!(raw.verify(&raw_tokens[n])))
        .batch(OURS, |count| {
            let validator = prepare(|| validator(&bundles));
            let time = time(count, |n| validator.validate(&tokens[n]).unwrap());
            assert_eq!(validator.cache_stats().misses, count as u64);
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
            verdict.expect("it waits for nothing").unwrap()
        });
    }
    contest.run()
}

/// One token, again and again.
pub fn repeated(effort: Effort) -> Table {
    let signer = Signer::usual();
    let token = &signer.tokens(1)[0];
    let raw_token = RawToken::new(token);
    let raw = Raw::new(&signer);
    let validator = validator(&our_bundles(&signer));
    let theirs = spiffe_bundles(&signer);
    let jsonwebtoken = Jsonwebtoken::new(&signer).unwrap();
    let authorizer = jwt_authorizer(&signer).unwrap();
    let outcomes = Contest::new(effort)
        .each(OURS, |_| validator.validate(token).unwrap())
        .each(RAW, |_| raw.verify(&raw_token))
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
        .run();
    let title = format!(
        "A token seen before (ES256, {} bytes, one thread)",
        token.len()
    );
    Table::contest("repeated", &title, outcomes)
}

/// A token that is refused, and why.
pub struct Refused {
    pub title: &'static str,
    pub token: String,
    reason: ValidateReason,
}

pub fn refused(signer: &Signer) -> Vec<Refused> {
    let with = |name: &str, value: Value| {
        let mut claims = claims(0);
        claims[name] = value;
        signer.token(&claims)
    };
    let stranger = Signer::new(Algorithm::ES256, "another-key-another-key-another-");
    let forger = Signer::usual();
    let good = signer.token(&claims(0));
    let payload = good.split('.').nth(1).unwrap();
    let refused = |title, token: String, reason| Refused {
        title,
        token,
        reason,
    };
    vec![
        refused(
            "expired",
            with("exp", json!(now() - 3600)),
            ValidateReason::Expired,
        ),
        refused(
            "other audience",
            with("aud", json!(["spiffe://prod.example/ledger"])),
            ValidateReason::Audience,
        ),
        refused(
            "unknown key",
            stranger.token(&claims(0)),
            ValidateReason::KeyUnknown,
        ),
        refused(
            "wrong signature",
            forger.token(&claims(0)),
            ValidateReason::Signature,
        ),
        refused(
            "`alg: none`",
            format!(
                "{}.{payload}.",
                encode(&json!({"alg": "none", "typ": "JWT"}))
            ),
            ValidateReason::Malformed,
        ),
        refused(
            "no token at all",
            "a.b.c".repeat(70),
            ValidateReason::Malformed,
        ),
    ]
}

fn encode(value: &Value) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
}

/// Tokens that must not pass, and how long it takes to say so.
pub fn refusals(effort: Effort) -> Vec<Table> {
    let signer = Signer::usual();
    let validator = validator(&our_bundles(&signer));
    let theirs = spiffe_bundles(&signer);
    let jsonwebtoken = Jsonwebtoken::new(&signer).unwrap();
    let authorizer = jwt_authorizer(&signer).unwrap();

    let cases = refused(&signer);
    let titles: Vec<&str> = cases.iter().map(|case| case.title).collect();
    let mut times = Table::new("refusals", "A token that is refused (ES256)", &titles);
    let mut allocations = Table::new(
        "refusals-memory",
        "The same: allocations by Rust code",
        &titles,
    );
    let outcomes: Vec<_> = cases
        .iter()
        .map(|case| {
            let token = &case.token;
            assert_eq!(
                validator.validate(token).unwrap_err().reason(),
                case.reason,
                "{}",
                case.title
            );
            let mut contest = Contest::new(effort)
                .each(OURS, |_| validator.validate(token).unwrap_err())
                .each(SPIFFE, |_| {
                    spiffe::JwtSvid::parse_and_validate(token, &theirs, &[AUDIENCE]).unwrap_err()
                });
            // It looks for no key: it was given one.
            if case.reason != ValidateReason::KeyUnknown {
                contest = contest.each(JSONWEBTOKEN, |_| jsonwebtoken.verify(token).unwrap_err());
            }
            contest
                .each(JWT_AUTHORIZER, |_| {
                    let verdict = authorizer.check_auth(token).now_or_never();
                    verdict.unwrap().err().unwrap()
                })
                .run()
        })
        .collect();
    for name in [OURS, SPIFFE, JSONWEBTOKEN, JWT_AUTHORIZER] {
        let row = |cell: fn(Outcome) -> Option<Cell>| {
            outcomes
                .iter()
                .map(|case| cell(case.iter().find(|(other, _)| other == name)?.1))
                .collect()
        };
        times.row(name, row(|outcome| Cell::nanos(outcome.nanos)));
        allocations.row(name, row(|outcome| Cell::count(outcome.allocations)));
    }
    vec![times, allocations]
}
