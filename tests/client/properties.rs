//! Whatever the issuer, the callers and the clock do: the invariants of the cache.

use std::time::Duration;

use http::HeaderValue;
use proptest::prelude::*;
use tower_spiffe::{Clock, FetchSvidReason, JwtSvid, UnixTime};

use crate::support::{Answer, Bench, Token, millis, request, secs, settle};

/// What the issuer does with one call.
#[derive(Debug, Clone)]
enum Deed {
    /// A token that began so long ago, of this life.
    Token {
        age: i64,
        life: i64,
    },
    Fail(FetchSvidReason),
    Hang,
    Panic,
}

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// Time goes on.
    Sleep(Duration),
    /// Callers ask, for this audience; some give up.
    Ask {
        audience: usize,
        callers: usize,
        patience: Duration,
    },
    Try {
        audience: usize,
    },
    Refused {
        audience: usize,
    },
    KeyGone,
    Wall(i64),
}

fn deed() -> impl Strategy<Value = (Deed, Duration)> {
    let reason = prop_oneof![
        Just(FetchSvidReason::Unavailable),
        Just(FetchSvidReason::Timeout),
        Just(FetchSvidReason::Denied),
        Just(FetchSvidReason::Unacceptable),
        Just(FetchSvidReason::Other),
    ];
    let what = prop_oneof![
        6 => (0..100_i64, 5..400_i64).prop_map(|(age, life)| Deed::Token { age, life }),
        3 => reason.prop_map(Deed::Fail),
        1 => Just(Deed::Hang),
        1 => Just(Deed::Panic),
    ];
    let delay = prop_oneof![
        4 => Just(Duration::ZERO),
        3 => (1..400_u64).prop_map(millis),
        1 => (1..34_u64).prop_map(secs),
    ];
    (what, delay)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..2000_u64).prop_map(|ms| Step::Sleep(millis(ms))),
        3 => (1..100_u64).prop_map(|s| Step::Sleep(secs(s))),
        6 => (0..3_usize, 1..5_usize, 1..8000_u64).prop_map(|(audience, callers, ms)| Step::Ask {
            audience,
            callers,
            patience: millis(ms),
        }),
        4 => (0..3_usize).prop_map(|audience| Step::Try { audience }),
        2 => (0..3_usize).prop_map(|audience| Step::Refused { audience }),
        1 => Just(Step::KeyGone),
        1 => (-400..400_i64).prop_map(Step::Wall),
    ]
}

/// A token that is sent is one that neither clock calls expired.
fn never_expired(header: &HeaderValue, now: UnixTime) {
    let token = header.to_str().unwrap().strip_prefix("Bearer ").unwrap();
    let svid = JwtSvid::parse_unverified(token, "").unwrap();
    assert!(
        svid.expires_at() > now,
        "expired at {}, sent at {now}",
        svid.expires_at()
    );
}

async fn play(deeds: Vec<(Deed, Duration)>, steps: Vec<Step>) {
    let mut script = deeds.into_iter().cycle();
    let bench = Bench::with(move |call| {
        let (deed, delay) = script.next().unwrap();
        let answer = match deed {
            Deed::Token { age, life } => {
                Answer::Token(Token::new(call.request, call.now - age, life))
            }
            Deed::Fail(reason) => Answer::Fail(reason),
            Deed::Hang => Answer::Hang,
            Deed::Panic => Answer::Panic,
        };
        answer.after(delay)
    });
    let audiences: Vec<_> = (0..3).map(|n| request(&format!("aud-{n}"))).collect();
    let mut asking = Vec::new();
    for step in steps {
        match step {
            Step::Sleep(time) => tokio::time::sleep(time).await,
            Step::Ask {
                audience,
                callers,
                patience,
            } => {
                for caller in 0..callers {
                    let (cache, clock) = (bench.cache.clone(), bench.clock.clone());
                    let aud = audiences[audience].clone();
                    // The first leaves early, the others stay.
                    let patience = if caller == 0 { patience } else { secs(6) };
                    asking.push(tokio::spawn(async move {
                        let asked = tokio::time::timeout(patience, cache.header(&aud)).await;
                        if let Ok(Ok(header)) = &asked {
                            never_expired(header, clock.now());
                        }
                        // Whoever waits is answered within the wait.
                        assert!(asked.is_ok() || patience < secs(6), "nobody answered");
                    }));
                }
            }
            Step::Try { audience } => {
                if let Some(header) = bench.cache.try_header(&audiences[audience]) {
                    never_expired(&header, bench.clock.now());
                }
            }
            Step::Refused { audience } => {
                if let Some(header) = bench.cache.try_header(&audiences[audience]) {
                    bench.cache.report_refused(&audiences[audience], &header);
                }
            }
            Step::KeyGone => bench.cache.authorities_gone(&|_, _| true),
            Step::Wall(seconds) => bench.clock.step_wall(seconds),
        }
    }
    for asked in asking {
        asked.await.unwrap();
    }
    assert!(
        !bench.desk.under_way(|state| state.doubled),
        "two fetches of a key at once"
    );

    // No terminal state: as soon as the issuer is well, everyone is served.
    bench.desk.then(|call| call.fresh(300));
    tokio::time::sleep(secs(75)).await;
    for aud in &audiences {
        let mut served = false;
        for _ in 0..600 {
            if let Ok(header) = bench.cache.header(aud).await {
                never_expired(&header, bench.clock.now());
                served = true;
                break;
            }
            tokio::time::sleep(millis(100)).await;
        }
        assert!(served, "{:?}", bench.cache.snapshot_of(aud));
    }
    settle().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_schedule_breaks_an_invariant(
        deeds in prop::collection::vec(deed(), 1..12),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        std::panic::set_hook(Box::new(|info| {
            // The scripted panics are part of the play.
            if !info.to_string().contains("as scripted") {
                eprintln!("{info}");
            }
        }));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(deeds, steps));
    }
}
