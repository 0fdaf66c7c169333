//! The key that signed a cached token is removed: the next request waits for a new token, once.

use std::sync::Arc;

use http::HeaderValue;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::{FakeAgent, PausedClock};
use tower_spiffe::token::FetchSvidReason;
use tower_spiffe::{JwtSvid, SvidCache};

use tower_spiffe::testing::internals;

use crate::support::{Answer, Bench, START, Token, millis, request, secs, settle, timed};

fn kid(header: &HeaderValue) -> String {
    let token = &header.to_str().unwrap()["Bearer ".len()..];
    let svid = JwtSvid::parse_unverified(token, "").unwrap();
    svid.key_id().unwrap().to_owned()
}

/// Returns a cache and its token, whose key was just removed.
async fn removed() -> (Bench, HeaderValue) {
    let bench = Bench::with(|call| call.fresh(3600));
    let old = bench.cache.header(&request("a")).await.unwrap();
    internals::remove_authorities(&bench.cache, &|trust_domain, key| {
        trust_domain == "x" && key == "key-1"
    });
    (bench, old)
}

#[tokio::test(start_paused = true)]
async fn e09_next_request_waits_for_a_new_token() {
    let (bench, old) = removed().await;
    bench
        .issuer
        .then(|call| call.fresh(3600).after(millis(200)));
    let (new, took) = timed(bench.cache.header(&request("a"))).await;
    assert_ne!(new.unwrap(), old);
    assert_eq!(took, millis(200));
    // The new key has the same name, and is not treated as removed.
    assert_eq!(timed(bench.cache.header(&request("a"))).await.1, secs(0));
    assert_eq!(bench.issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn e09_wait_is_bounded_and_happens_once() {
    let (bench, old) = removed().await;
    bench.issuer.then(|_| Answer::Hang);
    let (sent, took) = timed(bench.cache.header(&request("a"))).await;
    assert_eq!((sent.unwrap(), took), (old.clone(), millis(250)));
    for _ in 0..600 {
        let (sent, took) = timed(bench.cache.header(&request("a"))).await;
        assert_eq!((sent.unwrap(), took), (old.clone(), secs(0)));
        tokio::time::sleep(millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn e09_old_token_again_is_sent_without_more_waits() {
    let bench = Bench::new();
    let aud = request("a");
    let same = Token::new(&aud, START, 3600);
    bench
        .issuer
        .then(move |_| Answer::Token(same.clone()).after(millis(20)));
    let old = bench.cache.header(&aud).await.unwrap();
    internals::remove_authorities(&bench.cache, &|_, key| key == "key-1");
    let (sent, took) = timed(bench.cache.header(&aud)).await;
    assert_eq!((sent.unwrap(), took), (old.clone(), millis(20)));
    for _ in 0..300 {
        let (sent, took) = timed(bench.cache.header(&aud)).await;
        assert_eq!((sent.unwrap(), took), (old.clone(), secs(0)));
        tokio::time::sleep(millis(100)).await;
    }
    // It is refreshed in the background until another token arrives.
    bench.issuer.then(|call| call.fresh(3600));
    for _ in 0..400 {
        bench.cache.header(&aud).await.unwrap();
        tokio::time::sleep(millis(100)).await;
    }
    assert_ne!(bench.cache.header(&aud).await.unwrap(), old);
    // After the next removal, one request waits again.
    bench
        .issuer
        .then(|call| call.fresh(3600).after(millis(100)));
    internals::remove_authorities(&bench.cache, &|_, key| key == "key-1");
    assert_eq!(timed(bench.cache.header(&aud)).await.1, millis(100));
}

#[tokio::test(start_paused = true)]
async fn e09_failed_refresh_sends_the_old_token() {
    let (bench, old) = removed().await;
    bench
        .issuer
        .then(|_| Answer::Fail(FetchSvidReason::Unavailable));
    for _ in 0..100 {
        let (sent, took) = timed(bench.cache.header(&request("a"))).await;
        assert_eq!((sent.unwrap(), took), (old.clone(), secs(0)));
        tokio::time::sleep(millis(100)).await;
    }
}

/// A fetch that began before the removal may return a token of the removed key; another one follows.
#[tokio::test(start_paused = true)]
async fn e09_fetch_from_before_the_removal_is_not_enough() {
    let bench = Bench::with(|call| call.fresh(300));
    let aud = request("a");
    bench.cache.header(&aud).await.unwrap();
    bench.issuer.then(|call| {
        let mut token = Token::new(call.request, call.now, 300);
        token.kid = if call.number == 2 { "key-1" } else { "key-2" };
        Answer::Token(token).after(millis(100))
    });
    bench.at(secs(200)).await;
    bench.cache.try_header(&aud).unwrap();
    settle().await;
    internals::remove_authorities(&bench.cache, &|_, key| key == "key-1");
    let (sent, took) = timed(bench.cache.header(&aud)).await;
    assert_eq!((kid(&sent.unwrap()).as_str(), took), ("key-2", millis(200)));
}

#[tokio::test(start_paused = true)]
async fn e09_other_keys_cause_no_wait() {
    let bench = Bench::with(|call| call.fresh(3600));
    let old = bench.cache.header(&request("a")).await.unwrap();
    internals::remove_authorities(&bench.cache, &|trust_domain, _| trust_domain == "other");
    internals::remove_authorities(&bench.cache, &|_, key| key == "key-2");
    bench.issuer.then(|_| Answer::Hang);
    let (sent, took) = timed(bench.cache.header(&request("a"))).await;
    assert_eq!((sent.unwrap(), took), (old, secs(0)));
}

#[tokio::test(start_paused = true)]
async fn e09_no_request_carries_the_removed_key() {
    let clock = PausedClock::new(UnixTime::from_secs(START));
    let agent = FakeAgent::builder("x");
    let agent = agent
        .clock(Arc::new(clock))
        .start_in_memory()
        .await
        .unwrap();
    let source = agent.source().await.unwrap();
    let cache = SvidCache::from(&source);
    let aud = request("a");
    cache.header(&aud).await.unwrap();
    let old = agent.issuer().signing_key_id();
    agent.rotate().await;
    let mut updates = source.updated();
    agent.taint(&old);
    agent.issuer().revoke(&old);
    updates.changed().await.unwrap();
    // The cache learns of the removal right after the bundle has changed.
    settle().await;
    let sent = cache.header(&aud).await.unwrap();
    assert_eq!(kid(&sent), agent.issuer().signing_key_id());
}
