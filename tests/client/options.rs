//! The options of the cache.

use std::time::Duration;

use tower_spiffe::token::{FetchSvidReason, SvidCacheBuilder, TokenErrorReason, TokenState};

use tower_spiffe::testing::internals;

use crate::support::{Answer, Bench, millis, request, secs};

/// Returns the start times of fetches after `from`, with a request every 10 ms.
async fn calls(
    script: impl FnMut(&crate::support::Call<'_>) -> Answer + Send + 'static,
    set_up: impl FnOnce(SvidCacheBuilder) -> SvidCacheBuilder,
) -> Vec<Duration> {
    let bench = Bench::built(script, set_up);
    for _ in 0..1000 {
        let _ = bench.cache.try_header(&request("a"));
        tokio::time::sleep(millis(10)).await;
    }
    bench.issuer.under_way(|state| state.began.clone())
}

#[tokio::test(start_paused = true)]
async fn retry_bounds_the_delay_of_each_failure() {
    use FetchSvidReason as R;
    for reason in [
        R::Unacceptable,
        R::Unavailable,
        R::Denied,
        R::InvalidRequest,
    ] {
        let fail = move |_: &crate::support::Call<'_>| Answer::Fail(reason);
        let began = calls(fail, |builder| builder.retry(secs(1), secs(1))).await;
        // Jitter shortens a delay by up to 20 %, and never extends it.
        assert!((10..=13).contains(&began.len()), "{reason:?}: {began:?}");
        // The maximum is at least the minimum.
        let began = calls(fail, |builder| builder.retry(secs(60), millis(1))).await;
        assert_eq!(began.len(), 1, "{reason:?}: {began:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fetch_timeout_ends_a_call() {
    let bench = Bench::built(|_| Answer::Hang, |builder| builder.fetch_timeout(secs(2)));
    let began = tokio::time::Instant::now();
    let error = bench.cache.header(&request("a")).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Timeout);
    assert!(began.elapsed() <= millis(2100), "{:?}", began.elapsed());
}

/// One of four calls is reserved for requests that wait.
#[tokio::test(start_paused = true)]
async fn concurrency_limits_calls_at_once() {
    for calls in [1, 4] {
        let bench = Bench::built(|_| Answer::Hang, |builder| builder.concurrency(calls));
        let cache = bench.cache.clone();
        let waiting = (0..20).map(|n| {
            let (cache, request) = (cache.clone(), request(&format!("a{n}")));
            tokio::spawn(async move { cache.header(&request).await })
        });
        let waiting: Vec<_> = waiting.collect();
        bench.at(secs(1)).await;
        let began = bench.issuer.under_way(|state| state.began.len());
        assert_eq!(began, calls);
        waiting.iter().for_each(|task| task.abort());
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_of_removed_keys_are_critical_immediately() {
    let bench = Bench::new();
    let aud = request("a");
    bench.cache.header(&aud).await.unwrap();
    internals::remove_authorities(&bench.cache, &|_, key| key == "key-1");
    let state = bench.cache.snapshot_of(&aud).unwrap().state;
    assert_eq!(state, TokenState::Critical);
}

#[tokio::test(start_paused = true)]
async fn warm_tokens_of_a_removed_key_are_spread() {
    let bench = Bench::with(|call| call.fresh(3600));
    let _warm = bench
        .cache
        .keep_warm((0..20).map(|n| request(&format!("aud-{n}"))));
    bench.at(secs(1)).await;
    let before = bench.issuer.under_way(|it| it.began.len());
    assert_eq!(before, 20);
    internals::remove_authorities(&bench.cache, &|_, key| key == "key-1");
    bench.at(secs(30)).await;
    let began = bench.issuer.under_way(|it| it.began[20..].to_vec());
    assert_eq!(began.len(), 20);
    let spread = *began.last().unwrap() - began[0];
    assert!(spread >= secs(1) && spread <= millis(5200), "{spread:?}");
}
