//! Whatever the issuer, the callers and the clock do: the invariants of the cache.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use tower_spiffe::token::{FetchSvidReason, SvidRequest, TokenErrorReason};

use crate::support::{Answer, Bench, Call, Token, millis, request, secs, settle, timed};

/// More of them than the cache holds.
const AUDIENCES: usize = 7;
const ENTRIES: usize = 5;

/// What the issuer does with one call.
#[derive(Debug, Clone)]
enum Deed {
    /// A token that began so long ago, of this life.
    Token {
        age: i64,
        life: i64,
    },
    /// The same token as the last time, whoever asks.
    Again,
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
    /// Everyone wants something at once.
    TryAll,
    Refused {
        audience: usize,
    },
    Pin {
        audience: usize,
    },
    Unpin,
    KeepWarm {
        audience: usize,
    },
    KeepCold,
    KeyGone,
    Wall(i64),
}

fn deed() -> impl Strategy<Value = (Deed, Duration)> {
    let reason = prop_oneof![
        3 => Just(FetchSvidReason::Unavailable),
        3 => Just(FetchSvidReason::Timeout),
        1 => Just(FetchSvidReason::Denied),
        1 => Just(FetchSvidReason::InvalidRequest),
        1 => Just(FetchSvidReason::Unacceptable),
        1 => Just(FetchSvidReason::Expired),
        1 => Just(FetchSvidReason::Other),
    ];
    let what = prop_oneof![
        6 => (0..100_i64, 5..400_i64).prop_map(|(age, life)| Deed::Token { age, life }),
        1 => Just(Deed::Again),
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
    let audience = || 0..AUDIENCES;
    prop_oneof![
        4 => (1..2000_u64).prop_map(|ms| Step::Sleep(millis(ms))),
        3 => (1..100_u64).prop_map(|s| Step::Sleep(secs(s))),
        6 => (audience(), 1..5_usize, 1..8000_u64).prop_map(|(audience, callers, ms)| Step::Ask {
            audience,
            callers,
            patience: millis(ms),
        }),
        4 => audience().prop_map(|audience| Step::Try { audience }),
        1 => Just(Step::TryAll),
        2 => audience().prop_map(|audience| Step::Refused { audience }),
        1 => audience().prop_map(|audience| Step::Pin { audience }),
        1 => Just(Step::Unpin),
        1 => audience().prop_map(|audience| Step::KeepWarm { audience }),
        1 => Just(Step::KeepCold),
        1 => Just(Step::KeyGone),
        1 => (-400..400_i64).prop_map(Step::Wall),
    ]
}

/// An issuer that does one deed after the other.
fn by_deeds(deeds: Vec<(Deed, Duration)>) -> impl FnMut(&Call<'_>) -> Answer {
    let mut script = deeds.into_iter().cycle();
    let mut last: HashMap<SvidRequest, Token> = HashMap::new();
    move |call| {
        let (deed, delay) = script.next().unwrap();
        let mut token = |age, life| {
            let token = Token::new(call.request, call.now - age, life);
            last.insert(call.request.clone(), token.clone());
            token
        };
        let answer = match deed {
            Deed::Token { age, life } => Answer::Token(token(age, life)),
            Deed::Again => {
                let again = last.get(call.request).cloned();
                Answer::Token(again.unwrap_or_else(|| Token::new(call.request, call.now, 300)))
            }
            Deed::Fail(reason) => Answer::Fail(reason),
            Deed::Hang => Answer::Hang,
            Deed::Panic => Answer::Panic,
        };
        answer.after(delay)
    }
}

async fn play(deeds: Vec<(Deed, Duration)>, steps: Vec<Step>) {
    let bench = Bench::built(by_deeds(deeds), |builder| builder.max_entries(ENTRIES));
    let audiences: Vec<_> = (0..AUDIENCES)
        .map(|n| request(&format!("aud-{n}")))
        .collect();
    let (mut asking, mut pins, mut warm) = (Vec::new(), VecDeque::new(), Vec::new());
    let mut pinned = 0;
    for step in steps {
        match step {
            Step::Sleep(time) => tokio::time::sleep(time).await,
            Step::Ask {
                audience,
                callers,
                patience,
            } => {
                for caller in 0..callers {
                    let (cache, desk) = (bench.cache.clone(), bench.desk.clone());
                    let aud = audiences[audience].clone();
                    // The first leaves early, the others stay.
                    let patience = if caller == 0 { patience } else { secs(6) };
                    asking.push(tokio::spawn(async move {
                        let asked = tokio::time::timeout(patience, cache.header(&aud)).await;
                        if let Ok(Ok(header)) = &asked {
                            desk.assert_alive(header);
                        }
                        // Whoever waits is answered within the wait.
                        assert!(asked.is_ok() || patience < secs(6), "nobody answered");
                    }));
                }
            }
            Step::Try { audience } => {
                if let Some(header) = bench.cache.try_header(&audiences[audience]) {
                    bench.desk.assert_alive(&header);
                }
            }
            Step::TryAll => {
                for header in audiences
                    .iter()
                    .filter_map(|aud| bench.cache.try_header(aud))
                {
                    bench.desk.assert_alive(&header);
                }
            }
            Step::Refused { audience } => {
                if let Some(header) = bench.cache.try_header(&audiences[audience]) {
                    bench.cache.report_refused(&audiences[audience], &header);
                }
            }
            Step::Pin { audience } => {
                pins.push_back(bench.cache.pin(audiences[audience].clone()));
                pinned += 1;
            }
            Step::Unpin => drop(pins.pop_front()),
            Step::KeepWarm { audience } => {
                let aud = audiences[audience].clone();
                warm.push(bench.cache.keep_warm([aud]).unwrap());
                pinned += 1;
            }
            Step::KeepCold => warm.clear(),
            Step::KeyGone => bench.cache.authorities_gone(&|_, _| true),
            Step::Wall(seconds) => bench.clock.step_wall(seconds),
        }
        for pin in &pins {
            if let Some(header) = pin.try_header() {
                bench.desk.assert_alive(&header);
            }
        }
        let entries = bench.cache.stats().entries;
        assert!(entries <= ENTRIES + pinned.min(AUDIENCES), "{entries}");
    }
    for asked in asking {
        asked.await.unwrap();
    }

    // No terminal state: as soon as the issuer is well, everyone is served.
    bench.desk.then(|call| call.fresh(300));
    drop((pins, warm));
    tokio::time::sleep(secs(75)).await;
    for aud in &audiences {
        let mut served = false;
        for _ in 0..600 {
            if let Ok(header) = bench.cache.header(aud).await {
                bench.desk.assert_alive(&header);
                served = true;
                break;
            }
            tokio::time::sleep(millis(100)).await;
        }
        assert!(served, "{:?}", bench.cache.snapshot_of(aud));
    }
    settle().await;

    // But for the one that is wanted: a closed cache asks and waits no more.
    let calls = bench.desk.calls();
    bench.cache.close();
    for aud in &audiences {
        let (closed, took) = timed(bench.cache.header(aud)).await;
        assert_eq!(closed.unwrap_err().reason(), TokenErrorReason::Closed);
        assert_eq!(took, Duration::ZERO);
    }
    settle().await;
    assert_eq!(bench.desk.calls(), calls);
    assert_eq!(bench.desk.under_way(|state| state.now), 0);
    assert!(
        !bench.desk.under_way(|state| state.doubled),
        "two fetches of a key at once"
    );
}

/// So many schedules: 400, or what `PROPTEST_CASES` says.
fn schedules() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.map_or(400, |cases| {
        cases.parse().expect("PROPTEST_CASES is a number")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: schedules(), ..ProptestConfig::default() })]

    #[test]
    fn no_schedule_breaks_an_invariant(
        deeds in prop::collection::vec(deed(), 1..12),
        steps in prop::collection::vec(step(), 1..60),
        // What the cache leaves to chance is part of the case; only who is evicted is not.
        seed in any::<u64>(),
    ) {
        fastrand::seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(deeds, steps));
    }
}
