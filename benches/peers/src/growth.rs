//! What becomes of the cost when there is more: trust domains, keys, tokens, threads.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::json;
use tower_spiffe::{FixedBundles, JwtBundleSet, Validator};

use crate::keys::{AUDIENCE, Signer, TRUST_DOMAIN};
use crate::measure::{Contest, Effort, prepare, quantile, time};
use crate::peers::{
    Jsonwebtoken, Raw, RawToken, our_bundle, our_bundles, spiffe_bundle, spiffe_bundles, validator,
};
use crate::report::{Cell, Table};
use crate::verify::{JSONWEBTOKEN, OURS, SPIFFE};

/// The key sets of so many trust domains: the first has the issuer's key as its last one.
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

/// With more trust domains, and more keys in each.
pub fn bundles(effort: Effort) -> Table {
    const SIZES: [(usize, usize); 5] = [(1, 1), (1, 10), (200, 1), (200, 10), (2000, 10)];
    let signer = Signer::usual();
    let tokens = signer.tokens(if effort.quick { 16 } else { 512 });
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

    // All sizes in the same rounds, so that they can be compared with one another.
    let mut contest = Contest::new(effort)
        .at_most(tokens.len())
        .each("raw", |n| raw.verify(&raw_tokens[n]));
    for (at, ((ours, theirs), warm)) in sets.iter().zip(&warm).enumerate() {
        contest = contest
            .batch(format!("seen {at}"), |count| {
                time(count, |_| warm.validate(&tokens[0]).unwrap())
            })
            .batch(format!("new {at}"), |count| {
                let validator = prepare(|| validator(ours));
                time(count, |n| validator.validate(&tokens[n]).unwrap())
            })
            .each(format!("spiffe {at}"), |n| {
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
    for (kind, name, above) in [
        ("seen", format!("{OURS}, token seen before"), false),
        (
            "new",
            format!("{OURS}, never seen, above the bare check"),
            true,
        ),
        ("spiffe", format!("{SPIFFE}, above the bare check"), true),
    ] {
        let cells = (0..SIZES.len()).map(|at| {
            let wanted = format!("{kind} {at}");
            let (_, outcome) = outcomes.iter().find(|(name, _)| *name == wanted)?;
            Cell::nanos(if above {
                outcome.over_first
            } else {
                outcome.nanos
            })
        });
        table.row(name, cells.collect());
    }
    table
}

/// With more tokens in use.
pub fn tokens(effort: Effort) -> Table {
    const SIZES: [usize; 5] = [1, 50, 1000, 5000, 20_000];
    let signer = Signer::usual();
    let all = if effort.quick { 100 } else { 20_000 };
    let tokens = signer.tokens(all);
    let validators = SIZES.map(|size| {
        let validator = Validator::builder(FixedBundles::new(our_bundles(&signer)))
            .audience(AUDIENCE)
            .cache_bytes(if size > 5000 { 64 << 20 } else { 8 << 20 })
            .build()
            .unwrap();
        let size = size.min(all);
        for token in &tokens[..size] {
            validator.validate(token).unwrap();
        }
        (size, validator)
    });
    let mut contest = Contest::new(effort);
    for (at, (size, validator)) in validators.iter().enumerate() {
        let tokens = &tokens[..*size];
        let mut next = 0;
        contest = contest.each(SIZES[at].to_string(), move |_| {
            // A stride that has no divisor with any size in common: no order that a cache likes.
            next = (next + 7919) % tokens.len();
            validator.validate(&tokens[next]).unwrap()
        });
    }
    let outcomes = contest.run();
    let titles = SIZES.map(|size| size.to_string());
    let mut table = Table::new(
        "growth-tokens",
        "More tokens in use, each seen before",
        &titles.each_ref().map(String::as_str),
    )
    .note(
        "Up to 5,000 tokens the verified cache has its 8 MiB; for 20,000 it was given 64. The \
         tokens' own text is read as well, from wherever it lies in memory.",
    );
    table.row(
        OURS,
        outcomes
            .iter()
            .map(|(_, outcome)| Cell::nanos(outcome.nanos))
            .collect(),
    );
    table
}

/// With two threads in place of one.
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
    let entrants: [(String, Work<'_>); 5] = [
        ("arithmetic alone (the control)".to_owned(), &spin),
        (format!("{OURS}, one token, seen before"), &hot),
        (format!("{OURS}, 50 tokens, seen before"), &fifty),
        (SPIFFE.to_owned(), &spiffe),
        (JSONWEBTOKEN.to_owned(), &jsonwebtoken),
    ];
    let span = effort.batch * 3;
    let mut rates = vec![[Vec::new(), Vec::new(), Vec::new()]; entrants.len()];
    for _ in 0..effort.rounds {
        for (at, (_, work)) in entrants.iter().enumerate() {
            let one = rate(1, span, *work);
            let two = rate(2, span, *work);
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
    .note(
        "The machine has two cores and other work of its own; the control says how much a second \
         thread can bring at all.",
    );
    for ((name, _), [one, two, ratio]) in entrants.iter().zip(rates) {
        table.row(
            name,
            vec![
                Cell::rate(quantile(one, 0.5)),
                Cell::rate(quantile(two, 0.5)),
                Cell::ratio(quantile(ratio, 0.5)),
            ],
        );
    }
    table
}

/// How often in a second so many threads together do this.
fn rate(threads: usize, span: Duration, work: &(dyn Fn(usize) + Sync)) -> f64 {
    let barrier = Barrier::new(threads);
    let each: Vec<f64> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    // A new thread knows no token yet.
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
