//! The numbers of the cache that are told, rather than left at their defaults.

use std::time::Duration;

use tower_spiffe::token::TokenState;
use tower_spiffe::token::{FetchSvidReason, SvidCacheBuilder};

use crate::support::{Answer, Bench, millis, request, secs};

/// When the calls of a request began that is asked for every 10 ms, from `from` on.
async fn calls(
    script: impl FnMut(&crate::support::Call<'_>) -> Answer + Send + 'static,
    set_up: impl FnOnce(SvidCacheBuilder) -> SvidCacheBuilder,
) -> Vec<Duration> {
    let bench = Bench::built(script, set_up);
    for _ in 0..1000 {
        let _ = bench.cache.try_header(&request("a"));
        tokio::time::sleep(millis(10)).await;
    }
    bench.desk.under_way(|state| state.began.clone())
}

#[tokio::test(start_paused = true)]
async fn the_margins_are_as_large_as_told() {
    let bench = Bench::built(
        |call| call.fresh(100),
        |builder| {
            let builder = builder.soft_margin(secs(60)).soft_margin_share(0.3);
            builder.hard_margin(secs(60)).hard_margin_share(0.2)
        },
    );
    let aud = request("a");
    bench.cache.header(&aud).await.unwrap();
    for (at, expected) in [
        (69, TokenState::Due),
        (71, TokenState::Critical),
        (79, TokenState::Critical),
        (81, TokenState::Expired),
    ] {
        bench.at(secs(at)).await;
        let state = bench.cache.snapshot_of(&aud).unwrap().state;
        assert_eq!(state, expected, "at {at} s");
    }
}

#[tokio::test(start_paused = true)]
async fn delays_grow_and_scatter_as_told() {
    let fail = |_: &crate::support::Call<'_>| Answer::Fail(FetchSvidReason::Unacceptable);
    let began = calls(fail, |builder| {
        let builder = builder.backoff_growth(1.0, 3.0).backoff_jitter(0.0);
        builder.backoff_without_token(millis(100), secs(60))
    })
    .await;
    // After 100, 300, 900, 2700 and 8100 ms.
    let expected = [0, 100, 400, 1300, 4000].map(millis);
    assert_eq!(began.len(), expected.len(), "{began:?}");
    for (began, expected) in began.iter().zip(expected) {
        assert!(
            *began >= expected && *began <= expected + millis(50),
            "{began:?}"
        );
    }
    // What makes no sense is as by default, and no delay shrinks.
    let began = calls(fail, |builder| {
        let builder = builder.backoff_growth(f64::NAN, 0.1).backoff_jitter(0.0);
        builder.backoff_without_token(secs(1), secs(60))
    })
    .await;
    assert_eq!(began.len(), 10, "{began:?}");
}

#[tokio::test(start_paused = true)]
async fn tokens_of_a_removed_key_are_critical_at_once() {
    let bench = Bench::new();
    let aud = request("a");
    bench.cache.header(&aud).await.unwrap();
    bench.cache.authorities_gone(&|_, key| key == "key-1");
    let state = bench.cache.snapshot_of(&aud).unwrap().state;
    assert_eq!(state, TokenState::Critical);
}

/// The option spreads what no request asks for: here over no time at all.
#[tokio::test(start_paused = true)]
async fn warm_tokens_of_a_removed_key_are_spread() {
    for (within, most) in [(0, 200), (60_000, 60_200)] {
        let bench = Bench::built(
            |call| call.fresh(3600),
            |builder| builder.refetch_after_key_loss_within(Duration::from_millis(within)),
        );
        let _warm = bench
            .cache
            .keep_warm((0..20).map(|n| request(&format!("aud-{n}"))));
        bench.at(Duration::from_secs(1)).await;
        let before = bench.desk.under_way(|it| it.began.len());
        assert_eq!(before, 20);
        bench.cache.authorities_gone(&|_, key| key == "key-1");
        bench.at(Duration::from_secs(90)).await;
        let began = bench.desk.under_way(|it| it.began[20..].to_vec());
        assert_eq!(began.len(), 20, "{within}");
        let spread = *began.last().unwrap() - began[0];
        assert!(
            spread <= Duration::from_millis(most),
            "{within}: {spread:?}"
        );
        assert!(
            within == 0 || spread >= Duration::from_secs(10),
            "{spread:?}"
        );
    }
}
