//! How the cost grows with trust domains, keys, audiences, tokens and threads.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::json;
use tower_spiffe::Validator;
use tower_spiffe::bundle::{FixedBundles, JwtBundleSet};

use crate::inject::stride;
use crate::keys::{AUDIENCE, Signer, TRUST_DOMAIN, claims};
use crate::measure::{Contest, Effort, Outcome, Spread, prepare, shuffled, time};
use crate::names::{JSONWEBTOKEN, OURS, RAW, SPIFFE, Who};
use crate::peers::{
    Jsonwebtoken, Raw, RawToken, our_bundle, our_bundles, spiffe_bundle, spiffe_bundles, validator,
};
use crate::table::{ALLOCATIONS, Better, Cell, OVER_BASE, Of, TIME, Table};

/// Returns the key sets of these trust domains. The last key of the first set is the issuer's.
pub fn key_sets(signer: &Signer, trust_domains: usize, keys: usize) -> Vec<(String, String)> {
    (0..trust_domains)
        .map(|domain| {
            let mut set: Vec<_> = (1..keys)
                .map(|key| signer.jwk_named(&format!("{domain:016x}{key:016x}")))
                .collect();
            let (name, last) = match domain {
                0 => (TRUST_DOMAIN.to_owned(), signer.jwk()),
                _ => (
                    format!("td{domain}.example"),
                    signer.jwk_named(&format!("{domain:032x}")),
                ),
            };
            set.push(last);
            (name, json!({ "keys": set }).to_string())
        })
        .collect()
}

/// Adds one row per entrant and one column per size. The name of an outcome ends with the index of
/// its size.
fn by_size(table: &mut Table, outcomes: &[Outcome], sizes: usize, rows: &[(&Who, Who, Of)]) {
    for (measured, shown, of) in rows {
        let cells = (0..sizes).map(|at| {
            let who = measured.with(&format!(" {at}"));
            of(outcomes.iter().find(|outcome| outcome.who == who)?)
        });
        table.row(shown.clone(), cells.collect());
    }
}

const ABOVE: &str = ", above the bare check";

/// The cost with more trust domains and more keys in each.
pub fn bundles(effort: Effort) -> Table {
    const SIZES: [(usize, usize); 5] = [(1, 1), (1, 10), (200, 1), (200, 10), (2000, 10)];
    let signer = Signer::usual();
    let tokens = signer.tokens(512);
    let raw_tokens: Vec<_> = tokens.iter().map(|token| RawToken::new(token)).collect();
    let raw = Raw::new(&signer);
    let sets: Vec<_> = SIZES
        .iter()
        .map(|&(domains, keys)| {
            let sets = key_sets(&signer, domains, keys);
            let ours: JwtBundleSet = sets
                .iter()
                .map(|(name, set)| our_bundle(name, set))
                .collect();
            let mut theirs = spiffe::JwtBundleSet::new();
            for (name, set) in &sets {
                theirs.add_bundle(spiffe_bundle(name, set));
            }
            (ours, theirs)
        })
        .collect();
    let warm: Vec<_> = sets.iter().map(|(ours, _)| validator(ours)).collect();
    let seen = OURS.with(", token seen before");
    let new = OURS.with(", never seen").job("new");

    // All sizes run in the same rounds, so that they can be compared.
    let mut contest = Contest::new(effort)
        .at_most(tokens.len())
        .each(RAW, |n| raw.verify(&raw_tokens[n]));
    for (at, ((ours, theirs), warm)) in sets.iter().zip(&warm).enumerate() {
        let this = format!(" {at}");
        contest = contest
            .batch(seen.with(&this), |count| {
                time(count, |_| warm.validate(&tokens[0]).unwrap())
            })
            .batch(new.with(&this), |count| {
                let validator = prepare(|| validator(ours));
                time(count, |n| validator.validate(&tokens[n]).unwrap())
            })
            .each(SPIFFE.with(&this), |n| {
                spiffe::JwtSvid::parse_and_validate(&tokens[n], theirs, &[AUDIENCE]).unwrap()
            });
    }
    let outcomes = contest.run();
    let titles = SIZES.map(|(domains, keys)| format!("{domains} × {keys}"));
    let mut table = Table::new(
        "growth-bundles",
        "More trust domains × more keys in each (ES256)",
        &titles.each_ref().map(String::as_str),
    );
    let rows = [
        (&seen, seen.clone().job("seen"), TIME),
        (&new, new.with(ABOVE), OVER_BASE),
        (&SPIFFE, SPIFFE.with(ABOVE).job("new"), OVER_BASE),
    ];
    by_size(&mut table, &outcomes, SIZES.len(), &rows);
    table
}

/// Returns this number of audiences. The last one matches.
fn audiences(count: usize) -> Vec<String> {
    let others = (1..count).map(|n| format!("spiffe://prod.example/other{n}"));
    others.chain([AUDIENCE.to_owned()]).collect()
}

/// The cost with more accepted audiences and more audiences in a token.
pub fn server_audiences(effort: Effort) -> Table {
    // Accepted × in the token.
    const SIZES: [(usize, usize); 5] = [(1, 1), (10, 1), (100, 1), (1, 10), (1, 30)];
    let signer = Signer::usual();
    let raw = Raw::new(&signer);
    let theirs = spiffe_bundles(&signer);
    struct Size {
        accepted: Vec<String>,
        tokens: Vec<String>,
        raw_tokens: Vec<RawToken>,
        warm: Validator,
        jsonwebtoken: Jsonwebtoken,
    }
    let validator_of = |accepted: &[String]| {
        Validator::builder(FixedBundles::new(our_bundles(&signer)))
            .audiences(accepted)
            .build()
            .unwrap()
    };
    let sizes = SIZES.map(|(accepted, named)| {
        let accepted = audiences(accepted);
        let tokens: Vec<_> = (0..512)
            .map(|n| {
                let mut claims = claims(n);
                claims["aud"] = json!(audiences(named));
                signer.token(&claims)
            })
            .collect();
        let names: Vec<&str> = accepted.iter().map(String::as_str).collect();
        Size {
            raw_tokens: tokens.iter().map(|token| RawToken::new(token)).collect(),
            warm: validator_of(&accepted),
            jsonwebtoken: Jsonwebtoken::with_audiences(&signer, &names).unwrap(),
            accepted,
            tokens,
        }
    });
    let seen = OURS.with(", token seen before");
    let new = OURS.with(", never seen").job("new");
    let mut contest = Contest::new(effort);
    for (at, size) in sizes.iter().enumerate() {
        let this = format!(" {at}");
        let tokens = &size.tokens;
        // Longer tokens take longer to hash, so the baseline verifies the same tokens.
        contest = contest
            .at_most(tokens.len())
            .each(RAW.with(&this), |n| raw.verify(&size.raw_tokens[n]))
            .against_last()
            .batch(new.with(&this), |count| {
                let validator = prepare(|| validator_of(&size.accepted));
                time(count, |n| validator.validate(&tokens[n]).unwrap())
            })
            .each(SPIFFE.with(&this), |n| {
                let accepted = &size.accepted;
                spiffe::JwtSvid::parse_and_validate(&tokens[n], &theirs, accepted).unwrap()
            })
            .each(JSONWEBTOKEN.with(&this), |n| {
                size.jsonwebtoken.verify(&tokens[n]).unwrap()
            })
            .each(seen.with(&this), |_| {
                size.warm.validate(&tokens[0]).unwrap()
            });
    }
    let outcomes = contest.run();
    let titles = SIZES.map(|(accepted, named)| format!("{accepted} × {named}"));
    let mut table = Table::new(
        "growth-server-audiences",
        "Audiences that a server accepts × audiences that a token names (ES256)",
        &titles.each_ref().map(String::as_str),
    )
    .note(
        "The last audience of each list matches. `spiffe` rejects tokens with more than 32 \
           audiences.",
    );
    let rows = [
        (&seen, seen.clone().job("seen"), TIME),
        (&new, new.with(ABOVE), OVER_BASE),
        (&SPIFFE, SPIFFE.with(ABOVE).job("new"), OVER_BASE),
        (
            &JSONWEBTOKEN,
            JSONWEBTOKEN.with(ABOVE).job("new"),
            OVER_BASE,
        ),
        (&new, new.with(", allocations").job("memory"), ALLOCATIONS),
        (
            &SPIFFE,
            SPIFFE.with(", allocations").job("memory"),
            ALLOCATIONS,
        ),
        (
            &JSONWEBTOKEN,
            JSONWEBTOKEN.with(", allocations").job("memory"),
            ALLOCATIONS,
        ),
    ];
    by_size(&mut table, &outcomes, SIZES.len(), &rows);
    table
}

/// The default size of the verified cache.
const DEFAULT_BYTES: usize = 8 << 20;

/// The cost with more tokens in use.
pub fn tokens(effort: Effort) -> Table {
    // The number of tokens, and the size of the cache in bytes.
    const SIZES: [(usize, usize); 7] = [
        (1, DEFAULT_BYTES),
        (50, DEFAULT_BYTES),
        (250, DEFAULT_BYTES),
        (1000, DEFAULT_BYTES),
        (5000, DEFAULT_BYTES),
        (20_000, 64 << 20),
        (20_000, DEFAULT_BYTES),
    ];
    let signer = Signer::usual();
    let all = if effort.quick { 300 } else { 20_000 };
    let tokens = signer.tokens(all);
    let validators = SIZES.map(|(size, bytes)| {
        let validator = Validator::builder(FixedBundles::new(our_bundles(&signer)))
            .audience(AUDIENCE)
            .cache_bytes(bytes)
            .build()
            .unwrap();
        let size = size.min(all);
        for token in &tokens[..size] {
            validator.validate(token).unwrap();
        }
        (size, validator)
    });
    let before: Vec<_> = validators.iter().map(|(_, v)| v.cache_stats()).collect();
    let mut contest = Contest::new(effort);
    for (at, (size, validator)) in validators.iter().enumerate() {
        let mut next = stride(*size);
        let tokens = &tokens;
        contest = contest.each(OURS.with(&format!(" {at}")), move |_| {
            validator.validate(&tokens[next()]).unwrap()
        });
    }
    let outcomes = contest.run();
    let titles = SIZES.map(|(size, bytes)| match bytes {
        DEFAULT_BYTES => size.to_string(),
        _ => format!("{size}, cache of 64 MiB"),
    });
    let mut table = Table::new(
        "growth-tokens",
        "More tokens in use, each seen before, each in turn (ES256)",
        &titles.each_ref().map(String::as_str),
    )
    .note(
        "Each thread caches 256 tokens. Other tokens are read from the cache that all threads \
         share. Its size is 8 MiB if the column names no other, which holds about 8500 of these \
         tokens. With more tokens in use, some are verified again. The time includes reading the \
         text of the token from memory.",
    );
    by_size(&mut table, &outcomes, SIZES.len(), &[(&OURS, OURS, TIME)]);
    let found =
        validators
            .iter()
            .zip(before)
            .zip(SIZES)
            .map(|(((_, v), before), (size, bytes))| {
                let after = v.cache_stats();
                let missed = (after.misses - before.misses) as f64;
                assert!(
                    missed == 0.0 || size > 5000 && bytes == DEFAULT_BYTES,
                    "{size}: {missed} missed"
                );
                Cell::share(1.0 - missed / (missed + (after.hits - before.hits) as f64))
            });
    let found: Vec<_> = found.collect();
    table.row(OURS.with(", found in the cache").job("found"), found);
    table
}

/// The throughput of two threads compared with one.
pub fn threads(effort: Effort) -> Table {
    let signer = Signer::usual();
    let tokens = signer.tokens(50);
    let validator = validator(&our_bundles(&signer));
    let theirs = spiffe_bundles(&signer);
    let jsonwebtoken = Jsonwebtoken::new(&signer).unwrap();
    for token in &tokens {
        validator.validate(token).unwrap();
    }
    let spin = |n: usize| {
        let mut x = n as u64 | 1;
        for _ in 0..50 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        std::hint::black_box(x);
    };
    let hot = |_: usize| drop(validator.validate(&tokens[0]).unwrap());
    let fifty = |n: usize| drop(validator.validate(&tokens[n % 50]).unwrap());
    let spiffe = |n: usize| {
        drop(spiffe::JwtSvid::parse_and_validate(&tokens[n % 50], &theirs, &[AUDIENCE]).unwrap());
    };
    let jsonwebtoken = |n: usize| drop(jsonwebtoken.verify(&tokens[n % 50]).unwrap());
    type Work<'a> = &'a (dyn Fn(usize) + Sync);
    let control = Who::limit("arithmetic alone (the control)");
    let entrants: [(Who, Work<'_>); 5] = [
        (control, &spin),
        (OURS.with(", one token, seen before"), &hot),
        (OURS.with(", 50 tokens, seen before"), &fifty),
        (SPIFFE, &spiffe),
        (JSONWEBTOKEN, &jsonwebtoken),
    ];
    let span = effort.batch * 3;
    let mut rates = vec![[Vec::new(), Vec::new(), Vec::new()]; entrants.len()];
    for round in 0..effort.rounds {
        for at in shuffled(entrants.len(), round) {
            // The order of one and two threads changes between rounds.
            let mut both = [0.0; 2];
            for threads in shuffled(2, round) {
                both[threads] = rate(threads + 1, span, entrants[at].1);
            }
            let [one, two] = both;
            for (all, value) in rates[at].iter_mut().zip([one, two, two / one]) {
                all.push(value);
            }
        }
    }
    let mut table = Table::new(
        "growth-threads",
        "Two threads (ES256)",
        &["one thread", "two threads", "ratio"],
    )
    .better("one thread", Better::More)
    .better("two threads", Better::More)
    .better("ratio", Better::More)
    .note(
        "The machine has two cores and does other work too. The control shows how much a second \
         thread can add at most.",
    );
    for ((who, _), [one, two, ratio]) in entrants.iter().zip(rates) {
        table.row(
            who.clone(),
            vec![
                Cell::rate(Spread::of(&one)),
                Cell::rate(Spread::of(&two)),
                Cell::ratio(Spread::of(&ratio)),
            ],
        );
    }
    table
}

/// Returns how often per second these threads together do the work.
fn rate(threads: usize, span: Duration, work: &(dyn Fn(usize) + Sync)) -> f64 {
    let barrier = Barrier::new(threads);
    let each: Vec<f64> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    // Fills the cache of the new thread.
                    (0..200).for_each(work);
                    barrier.wait();
                    let start = Instant::now();
                    let mut done = 0;
                    while start.elapsed() < span {
                        (done..done + 100).for_each(work);
                        done += 100;
                    }
                    done as f64 / start.elapsed().as_secs_f64()
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap())
            .collect()
    });
    each.iter().sum()
}
