//! Requests must not pile up in an outage that is longer than a token's lifetime.

use tower_spiffe::token::TokenErrorReason;

use crate::support::{Answer, Bench, millis, request, secs, settle, timed};

/// A token of 60 s; its issuer hangs afterwards. `slow_after` is 5 s, and a call times out after 35 s.
async fn outage() -> Bench {
    let bench = Bench::with(|call| call.fresh(60));
    bench.cache.header(&request("a")).await.unwrap();
    bench.issuer.then(|_| Answer::Hang);
    bench
}

#[tokio::test(start_paused = true)]
async fn e06_slow_fetch_of_expired_token_fails_fast() {
    let bench = outage().await;
    let aud = request("a");
    // Due from 33 s on. This call hangs until 75 s.
    bench.at(secs(40)).await;
    assert!(bench.cache.try_header(&aud).is_some());
    bench.at(secs(60)).await;
    for _ in 0..20 {
        let (result, took) = timed(bench.cache.header(&aud)).await;
        let error = result.unwrap_err();
        assert_eq!(error.reason(), TokenErrorReason::Timeout);
        assert!(error.to_string().contains("not responded for"), "{error}");
        assert!(took <= millis(250), "{took:?}");
    }
    assert_eq!(bench.issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn e06_after_a_timeout_the_next_fetch_fails_fast() {
    let bench = outage().await;
    let aud = request("a");
    bench.at(secs(40)).await;
    bench.cache.try_header(&aud).unwrap();
    // The first call timed out at 75 s; the next one has just started.
    bench.at(secs(85)).await;
    let before = bench.issuer.calls();
    let (result, took) = timed(bench.cache.header(&aud)).await;
    assert_eq!(result.unwrap_err().reason(), TokenErrorReason::Timeout);
    assert_eq!(bench.issuer.calls(), before + 1);
    assert!(took <= millis(250), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn e06_few_requests_are_pending_during_an_outage() {
    let bench = outage().await;
    bench.at(secs(40)).await;
    bench.cache.try_header(&request("a")).unwrap();
    bench.at(secs(60)).await;
    let mut pending = Vec::new();
    let mut most = 0;
    for _ in 0..600 {
        let cache = bench.cache.clone();
        pending.push(tokio::spawn(
            async move { cache.header(&request("a")).await },
        ));
        tokio::time::sleep(millis(100)).await;
        settle().await;
        pending.retain(|task| !task.is_finished());
        most = most.max(pending.len());
    }
    assert!(most <= 3, "{most}");
}

#[tokio::test(start_paused = true)]
async fn e06_response_ends_the_wait_at_once() {
    let bench = Bench::with(|call| call.fresh(60));
    let aud = request("a");
    bench.cache.header(&aud).await.unwrap();
    bench.issuer.then(|call| call.fresh(60).after(secs(30)));
    bench.at(secs(40)).await;
    bench.cache.try_header(&aud).unwrap();
    // The response arrives at 70 s, and waiting requests get the token.
    bench.at(millis(69_900)).await;
    let (result, took) = timed(bench.cache.header(&aud)).await;
    result.unwrap();
    assert!(took <= millis(101), "{took:?}");
    // Later requests wait for an expired token again.
    bench.issuer.then(|call| call.fresh(60).after(secs(2)));
    bench.at(secs(200)).await;
    let (result, took) = timed(bench.cache.header(&aud)).await;
    result.unwrap();
    assert_eq!(took, secs(2));
}

#[tokio::test(start_paused = true)]
async fn e06_requests_wait_for_the_first_token() {
    let bench = Bench::with(|_| Answer::Hang);
    for _ in 0..2 {
        let (result, took) = timed(bench.cache.header(&request("a"))).await;
        assert_eq!(result.unwrap_err().reason(), TokenErrorReason::Timeout);
        assert_eq!(took, secs(5));
    }
}
