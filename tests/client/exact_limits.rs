//! The limits of an entry of the token cache, to the nanosecond.

use std::time::Duration;

use tower_spiffe::token::{FetchSvidReason, TokenErrorReason};

use crate::support::{Answer, Bench, request, secs, settle};

const NANO: Duration = Duration::from_nanos(1);

#[tokio::test(start_paused = true)]
async fn rule_08_next_forced_fetch_is_after_10_s() {
    let bench = Bench::with(|call| call.fresh(3000));
    let aud = request("a");
    let first = bench.cache.header(&aud).await.unwrap();
    assert!(bench.cache.report_refused(&aud, &first));
    let second = bench.cache.header(&aud).await.unwrap();
    assert_ne!(first, second);
    tokio::time::advance(secs(10) - NANO).await;
    assert!(!bench.cache.report_refused(&aud, &second));
    assert_eq!(bench.cache.header(&aud).await.unwrap(), second);
    tokio::time::advance(NANO).await;
    assert!(bench.cache.report_refused(&aud, &second));
    assert_ne!(bench.cache.header(&aud).await.unwrap(), second);
    assert_eq!(bench.issuer.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn error_counts_down_to_the_next_call() {
    let bench = Bench::with(|_| Answer::Fail(FetchSvidReason::InvalidRequest));
    let aud = request("a");
    let left = async || {
        let error = bench.cache.header(&aud).await.unwrap_err();
        error.retry_after().unwrap()
    };
    let delay = left().await;
    assert!(delay > secs(1), "{delay:?}");
    let step = delay / 4;
    for passed in 1..4 {
        tokio::time::advance(step).await;
        assert_eq!(left().await, delay - step * passed);
    }
    tokio::time::advance(step - NANO).await;
    assert_eq!((left().await, bench.issuer.calls()), (NANO, 1));
    tokio::time::advance(NANO).await;
    bench.issuer.then(|call| call.fresh(300));
    settle().await;
    bench.cache.header(&aud).await.unwrap();
    assert_eq!(bench.issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn rule_11_pinned_entries_are_never_evicted() {
    let bench = Bench::built(
        |call| match call.request.audiences().next() {
            Some("hang") => Answer::Hang,
            _ => call.fresh(3000),
        },
        |builder| builder.max_entries(1),
    );
    let pins: Vec<_> = (0..3)
        .map(|n| bench.cache.pin(request(&format!("pinned-{n}"))))
        .collect();
    for pin in &pins {
        pin.header().await.unwrap();
    }
    // The only other entry has a fetch in progress, so it cannot be evicted.
    assert_eq!(bench.cache.try_header(&request("hang")), None);
    settle().await;
    let error = bench.cache.header(&request("more")).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Full);
    for pin in &pins {
        let kept = bench.cache.snapshot_of(pin.request()).unwrap();
        assert!(kept.pinned && kept.generation == 1, "{kept:?}");
    }
    assert_eq!(bench.cache.stats().evicted, 0);
}

#[tokio::test(start_paused = true)]
async fn rule_11_used_entries_are_not_evicted() {
    let bench = Bench::built(|call| call.fresh(3000), |builder| builder.max_entries(100));
    let hot: Vec<_> = (0..3).map(|n| request(&format!("hot-{n}"))).collect();
    for n in 0..400 {
        for aud in &hot {
            bench.cache.header(aud).await.unwrap();
        }
        let cold = request(&format!("cold-{n}"));
        bench.cache.header(&cold).await.unwrap();
        tokio::time::sleep(secs(2)).await;
    }
    assert!(bench.cache.stats().evicted >= 300);
    assert_eq!(bench.issuer.calls(), 3 + 400);
}
