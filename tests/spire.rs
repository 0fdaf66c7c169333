//! Recordings of a real SPIRE during rotation, taint, revocation, outage and withdrawal: its tokens are
//! checked against its bundles, and the embedded Workload API replays its bundle stream.
//!
//! The recordings are in `tests/data/spire`. The tokens have expired, and the keys no longer exist.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::time::Duration;

use serde::Deserialize;
use std::collections::BTreeMap;
use tower_spiffe::bundle::{BundlesUnavailable, JwtBundle, JwtBundleSet};
use tower_spiffe::source::JwtSourceErrorReason;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::token::GrpcCode;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::{JwtSource, TrustDomain, Validator};
use tower_spiffe_test_support::bundles::Bundles;
use tower_spiffe_test_support::clock::HandClock;
use tower_spiffe_test_support::wait::soon;

const RUN: &str = include_str!("data/spire/run.jsonl");
const BUNDLES: &str = include_str!("data/spire/bundles.jsonl");
const LEEWAY: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Spoken {
    Event {},
    Refusal {},
    Svid {
        at: i64,
        audience: Vec<String>,
        spiffe_id: String,
        token: String,
    },
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Streamed {
    Bundles {
        at: i64,
        bundles: BTreeMap<String, String>,
    },
    StreamEnd {
        code: i32,
        message: String,
    },
}

fn lines<T: for<'de> Deserialize<'de>>(text: &str) -> Vec<T> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn set_of(bundles: &BTreeMap<String, String>) -> JwtBundleSet {
    bundles
        .iter()
        .map(|(td, jwks)| {
            let td: TrustDomain = td.parse().unwrap();
            let bundle = JwtBundle::from_jwks(td, jwks.as_bytes()).unwrap();
            assert!(
                bundle.ignored().is_empty(),
                "every key of SPIRE's is one that we can use"
            );
            bundle
        })
        .collect()
}

#[test]
fn spire_tokens_verify_only_at_their_time() {
    let sets: Vec<(i64, JwtBundleSet)> = lines::<Streamed>(BUNDLES)
        .iter()
        .filter_map(|line| match line {
            Streamed::Bundles { at, bundles } => Some((*at, set_of(bundles))),
            Streamed::StreamEnd { .. } => None,
        })
        .collect();
    let (mut tokens, mut revoked) = (0, 0);
    for line in lines::<Spoken>(RUN) {
        let Spoken::Svid {
            at,
            audience,
            spiffe_id,
            token,
        } = line
        else {
            continue;
        };
        tokens += 1;
        let (bundles, clock) = (Bundles::of([]), HandClock::at(0));
        let validator = |audience: &str| {
            Validator::builder(bundles.clone())
                .audience(audience)
                .leeway(LEEWAY)
                .clock(clock.clone())
                .build()
                .unwrap()
        };
        let set = |set: &JwtBundleSet, now: i64| {
            bundles.answer(Ok(set.clone()));
            clock.set_elapsed(Duration::from_secs(now.unsigned_abs()));
        };
        let ours = validator(&audience[0]);
        let current = sets.iter().rposition(|(since, _)| *since <= at).unwrap();

        // At its time, with the bundles of that time, without and with the cache.
        set(&sets[current].1, at);
        for _ in 0..2 {
            let svid = ours.validate(&token).unwrap();
            assert_eq!(svid.spiffe_id().as_str(), spiffe_id);
            assert!(svid.audiences().eq(audience.iter().map(String::as_str)));
        }
        let svid = ours.validate(&token).unwrap();

        // For another audience.
        let other = validator("spiffe://example.org/other");
        assert_eq!(
            other.validate(&token).unwrap_err().reason(),
            ValidateReason::Audience
        );

        // If its key is removed later, it is rejected from the first message without the key, cached or
        // not.
        let kid = svid.key_id().to_owned();
        let without = sets[current..].iter().find(|(_, set)| {
            set.get("example.org")
                .is_none_or(|bundle| bundle.authority(&kid).is_none())
        });
        if let Some((_, shrunk)) = without {
            revoked += 1;
            set(shrunk, at);
            for validator in [&ours, &validator(&audience[0])] {
                assert_eq!(
                    validator.validate(&token).unwrap_err().reason(),
                    ValidateReason::KeyUnknown
                );
            }
            set(&sets[current].1, at);
            ours.validate(&token).unwrap();
        }

        // The last second of the leeway, and the first after it.
        let end = svid.expires_at().saturating_add(LEEWAY).secs();
        set(&sets[current].1, end - 1);
        ours.validate(&token).unwrap();
        set(&sets[current].1, end);
        for validator in [&ours, &validator(&audience[0])] {
            assert_eq!(
                validator.validate(&token).unwrap_err().reason(),
                ValidateReason::Expired
            );
        }
    }
    assert_eq!(
        tokens,
        RUN.lines()
            .filter(|l| l.contains("\"kind\": \"svid\""))
            .count()
    );
    assert!(
        tokens > 30 && revoked > 10,
        "{tokens} tokens, {revoked} of a key that leaves"
    );
}

#[tokio::test]
async fn replayed_spire_stream_reports_each_change_once() {
    let agent = FakeAgent::start("example.org").await.unwrap();
    let replay = agent.replay();
    let mut lines = lines::<Streamed>(BUNDLES).into_iter();
    let Some(Streamed::Bundles { bundles: first, .. }) = lines.next() else {
        panic!("the recording begins with a set");
    };
    let building = JwtSource::builder()
        .endpoint(agent.endpoint())
        .reconnect_backoff(Duration::from_millis(1), Duration::from_millis(20))
        .build();
    let (source, ()) = soon("the first set", async {
        tokio::join!(building, replay.send(first.clone()))
    })
    .await;
    let source = source.unwrap();

    let mut updates = source.updated();
    let began = updates.last();
    let mut known = set_of(&first);
    let (mut changes, mut equal, mut withdrawals, mut restorations) = (0, 0, 0, 0);
    for line in lines {
        let before = updates.last();
        let withdrawn = source.state().withdrawn.is_some();
        match line {
            Streamed::Bundles { bundles, .. } => {
                soon("a reader for this set", replay.send(bundles.clone())).await;
                let set = set_of(&bundles);
                if set == known && !withdrawn {
                    equal += 1;
                    continue;
                }
                if set == known {
                    restorations += 1;
                } else {
                    changes += 1;
                }
                known = set;
                assert_eq!(
                    soon("the change", updates.changed()).await.unwrap(),
                    before + 1
                );
                assert_eq!(source.bundle_set().unwrap(), known);
            }
            Streamed::StreamEnd { code, message } => {
                let code = GrpcCode::from_i32(code);
                soon("a stream to end", replay.end(code, &message)).await;
                if code != GrpcCode::PermissionDenied {
                    continue;
                }
                withdrawals += 1;
                assert_eq!(
                    soon("the change", updates.changed()).await.unwrap(),
                    before + 1
                );
                let error = source.bundle_set().unwrap_err();
                assert_eq!(
                    error.reason(),
                    JwtSourceErrorReason::BundlesUnavailable(BundlesUnavailable::Withdrawn)
                );
            }
        }
    }
    // The fifth equal set is the one after the withdrawal.
    assert_eq!((changes, equal, withdrawals, restorations), (7, 4, 1, 1));
    // Each change is reported once. Equal sets and broken connections are not reported.
    assert_eq!(source.updated().last(), began + 9);
    source.shutdown().await;
}
