//! Invariants of the cache, for random issuers, callers and clocks.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use tower_spiffe::token::{FetchSvidReason, SvidRequest, TokenErrorReason};

use tower_spiffe::testing::internals;

use crate::support::{Answer, Bench, Call, Token, millis, request, secs, settle, timed};

/// More than the cache holds.
const AUDIENCES: usize = 7;
const ENTRIES: usize = 5;

/// What the issuer does with one call.
#[derive(Debug, Clone)]
enum Action {
    /// A token of this age and lifetime.
    Token {
        age: i64,
        life: i64,
    },
    /// The same token as before, for any request.
    Again,
    Fail(FetchSvidReason),
    Hang,
    Panic,
}

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// Advances the time.
    Sleep(Duration),
    /// Callers request this audience; some give up.
    Ask {
        audience: usize,
        callers: usize,
        patience: Duration,
    },
    Try {
        audience: usize,
    },
    /// Requests every audience at once.
    TryAll,
    Rejected {
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
    KeyRemoved,
    Wall(i64),
}

fn action() -> impl Strategy<Value = (Action, Duration)> {
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
        6 => (0..100_i64, 5..400_i64).prop_map(|(age, life)| Action::Token { age, life }),
        1 => Just(Action::Again),
        3 => reason.prop_map(Action::Fail),
        1 => Just(Action::Hang),
        1 => Just(Action::Panic),
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
        2 => audience().prop_map(|audience| Step::Rejected { audience }),
        1 => audience().prop_map(|audience| Step::Pin { audience }),
        1 => Just(Step::Unpin),
        1 => audience().prop_map(|audience| Step::KeepWarm { audience }),
        1 => Just(Step::KeepCold),
        1 => Just(Step::KeyRemoved),
        1 => (-400..400_i64).prop_map(Step::Wall),
    ]
}

/// Returns an issuer that does these actions in order.
fn by_actions(actions: Vec<(Action, Duration)>) -> impl FnMut(&Call<'_>) -> Answer {
    let mut script = actions.into_iter().cycle();
    let mut last: HashMap<SvidRequest, Token> = HashMap::new();
    move |call| {
        let (action, delay) = script.next().unwrap();
        let mut token = |age, life| {
            let token = Token::new(call.request, call.now - age, life);
            last.insert(call.request.clone(), token.clone());
            token
        };
        let answer = match action {
            Action::Token { age, life } => Answer::Token(token(age, life)),
            Action::Again => {
                let again = last.get(call.request).cloned();
                Answer::Token(again.unwrap_or_else(|| Token::new(call.request, call.now, 300)))
            }
            Action::Fail(reason) => Answer::Fail(reason),
            Action::Hang => Answer::Hang,
            Action::Panic => Answer::Panic,
        };
        answer.after(delay)
    }
}

async fn play(actions: Vec<(Action, Duration)>, steps: Vec<Step>) {
    let bench = Bench::built(by_actions(actions), |builder| builder.max_entries(ENTRIES));
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
                    let (cache, issuer) = (bench.cache.clone(), bench.issuer.clone());
                    let aud = audiences[audience].clone();
                    // The first caller leaves early, the others wait.
                    let patience = if caller == 0 { patience } else { secs(6) };
                    asking.push(tokio::spawn(async move {
                        let asked = tokio::time::timeout(patience, cache.header(&aud)).await;
                        if let Ok(Ok(header)) = &asked {
                            issuer.assert_alive(header);
                        }
                        // A waiting caller gets a result within 6 s.
                        assert!(asked.is_ok() || patience < secs(6), "no result within 6 s");
                    }));
                }
            }
            Step::Try { audience } => {
                if let Some(header) = bench.cache.try_header(&audiences[audience]) {
                    bench.issuer.assert_alive(&header);
                }
            }
            Step::TryAll => {
                for header in audiences
                    .iter()
                    .filter_map(|aud| bench.cache.try_header(aud))
                {
                    bench.issuer.assert_alive(&header);
                }
            }
            Step::Rejected { audience } => {
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
            Step::KeyRemoved => internals::remove_authorities(&bench.cache, &|_, _| true),
            Step::Wall(seconds) => bench.clock.step_wall(seconds),
        }
        for pin in &pins {
            if let Some(header) = pin.try_header() {
                bench.issuer.assert_alive(&header);
            }
        }
        let entries = bench.cache.stats().entries;
        assert!(entries <= ENTRIES + pinned.min(AUDIENCES), "{entries}");
    }
    for asked in asking {
        asked.await.unwrap();
    }

    // No terminal state: when the issuer works, every request succeeds.
    bench.issuer.then(|call| call.fresh(300));
    drop((pins, warm));
    tokio::time::sleep(secs(75)).await;
    for aud in &audiences {
        let mut served = false;
        for _ in 0..600 {
            if let Ok(header) = bench.cache.header(aud).await {
                bench.issuer.assert_alive(&header);
                served = true;
                break;
            }
            tokio::time::sleep(millis(100)).await;
        }
        assert!(served, "{:?}", bench.cache.snapshot_of(aud));
    }
    settle().await;

    // A closed cache sends no requests, and calls return at once.
    let calls = bench.issuer.calls();
    bench.cache.close();
    for aud in &audiences {
        let (closed, took) = timed(bench.cache.header(aud)).await;
        assert_eq!(closed.unwrap_err().reason(), TokenErrorReason::Closed);
        assert_eq!(took, Duration::ZERO);
    }
    settle().await;
    assert_eq!(bench.issuer.calls(), calls);
    assert_eq!(bench.issuer.under_way(|state| state.now), 0);
    assert!(
        !bench.issuer.under_way(|state| state.doubled),
        "two concurrent fetches for one request"
    );
}

/// The number of schedules: 400, or `PROPTEST_CASES`.
fn schedules() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.map_or(400, |cases| {
        cases.parse().expect("PROPTEST_CASES is a number")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: schedules(), ..ProptestConfig::default() })]

    #[test]
    fn any_schedule_keeps_the_invariants(
        actions in prop::collection::vec(action(), 1..12),
        steps in prop::collection::vec(step(), 1..60),
        // The randomness of the cache is part of the case, except for evictions.
        seed in any::<u64>(),
    ) {
        fastrand::seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(actions, steps));
    }
}
