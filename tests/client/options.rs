//! The numbers of the cache that are told, rather than left at their defaults.

use std::time::Duration;

use tower_spiffe::svid_cache::TokenState;
use tower_spiffe::{FetchSvidReason, SvidCacheBuilder};

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
async fn tokens_of_a_key_that_is_gone_are_due_as_soon_as_told() {
    let bench = Bench::built(
        |call| call.fresh(300),
        |builder| builder.refetch_after_key_loss_within(Duration::ZERO),
    );
    let aud = request("a");
    bench.cache.header(&aud).await.unwrap();
    bench.cache.authorities_gone(&|_, key| key == "key-1");
    let state = bench.cache.snapshot_of(&aud).unwrap().state;
    assert_eq!(state, TokenState::Due);
}
