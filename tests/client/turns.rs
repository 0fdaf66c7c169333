//! Rule 12 with audiences that never get a response: they must not use all probes.

use tower_spiffe::token::{FetchSvidReason, SvidRequest};

use crate::support::{Answer, Bench, Call, millis, request};

/// The answer for audiences that are not served.
type Lost = fn() -> Answer;

fn hangs() -> Answer {
    Answer::Hang
}

fn denied() -> Answer {
    Answer::Fail(FetchSvidReason::Unavailable).after(millis(20))
}

fn served(call: &Call<'_>, lost: Lost) -> Answer {
    if call.request.audiences().any(|it| it.starts_with("lost")) {
        lost()
    } else {
        call.fresh(300)
    }
}

fn requests(name: &str, count: usize) -> Vec<SvidRequest> {
    (0..count)
        .map(|n| request(&format!("{name}-{n}")))
        .collect()
}

/// Requests each of `often` 20 times per second, and each of `seldom` once per second. Returns how
/// often one of `seldom` had no token in the last `counted` seconds.
async fn failures(
    bench: &Bench,
    often: &[SvidRequest],
    seldom: &[SvidRequest],
    seconds: u64,
    counted: u64,
) -> usize {
    let mut failed = 0;
    for second in 0..seconds {
        for tick in 0..20 {
            for one in often {
                bench.cache.try_header(one);
            }
            if tick == 0 {
                let none = |one: &&SvidRequest| bench.cache.try_header(one).is_none();
                let none = seldom.iter().filter(none).count();
                if second >= seconds - counted {
                    failed += none;
                }
            }
            tokio::time::sleep(millis(50)).await;
        }
    }
    failed
}

#[tokio::test(start_paused = true)]
async fn rule_12_failing_audience_does_not_take_every_probe() {
    for lost in [hangs as Lost, denied] {
        let bench = Bench::with(move |call| served(call, lost));
        let (bad, good) = (requests("lost", 4), requests("good", 3));
        for one in &good {
            bench.cache.header(one).await.unwrap();
        }
        assert_eq!(failures(&bench, &bad, &good, 1200, 1200).await, 0);
        assert!(bench.cache.stats().breaker_opened > 1);
        assert!(!bench.issuer.under_way(|state| state.doubled));
    }
}

/// After an outage all audiences have failed, and all had a token before. The audience with the fewest
/// failures is first.
#[tokio::test(start_paused = true)]
async fn rule_12_after_an_outage_each_audience_has_its_turn() {
    for lost in [hangs as Lost, denied] {
        let bench = Bench::new();
        let (bad, good) = (requests("lost", 4), requests("good", 3));
        for one in bad.iter().chain(&good) {
            bench.cache.header(one).await.unwrap();
        }
        bench.issuer.then(move |_| lost());
        let away = failures(&bench, &bad, &good, 400, 10).await;
        assert_eq!(away, 30, "every token has expired");
        bench.issuer.then(move |call| served(call, lost));
        assert_eq!(failures(&bench, &bad, &good, 900, 600).await, 0);
    }
}

/// An audience that never had a token comes after those that had one.
#[tokio::test(start_paused = true)]
async fn rule_12_new_audiences_do_not_take_every_probe() {
    let bench = Bench::with(|call| served(call, hangs));
    let good = request("good");
    bench.cache.header(&good).await.unwrap();
    let mut new = 0;
    for second in 0..1200 {
        for _ in 0..20 {
            new += 1;
            bench.cache.try_header(&request(&format!("lost-{new}")));
            tokio::time::sleep(millis(50)).await;
        }
        let state = bench.cache.snapshot_of(&good);
        assert!(
            bench.cache.try_header(&good).is_some(),
            "at {second} s: {state:?}"
        );
    }
}
