//! Rule 9 end to end: an agent removes keys, and a source sends tokens of other keys.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::{FakeAgent, PausedClock};
use tower_spiffe::token::SvidRequest;
use tower_spiffe::{JwtSource, JwtSvid, SvidCache};

use tower_spiffe::testing::internals;

use crate::support::{Answer, Bench, START, Token, millis, request, secs};

/// Returns an agent and a source on paused time, its cache, and a request.
async fn deployment() -> (FakeAgent, JwtSource, SvidCache, SvidRequest) {
    let clock = PausedClock::new(UnixTime::from_secs(START));
    let agent = FakeAgent::builder("x")
        .clock(Arc::new(clock))
        .start_in_memory()
        .await
        .unwrap();
    let source = agent.source().await.unwrap();
    let cache = SvidCache::from(&source);
    let aud = request("a");
    cache.header(&aud).await.unwrap();
    (agent, source, cache, aud)
}

fn kid(header: &HeaderValue) -> String {
    let token = &header.to_str().unwrap()["Bearer ".len()..];
    let svid = JwtSvid::parse_unverified(token, "").unwrap();
    svid.key_id().unwrap().to_owned()
}

/// Requests a token every 100 ms until it is signed by `wanted`; returns the elapsed time.
async fn signed_by(cache: &SvidCache, aud: &SvidRequest, wanted: &str) -> Option<Duration> {
    let began = tokio::time::Instant::now();
    while began.elapsed() < secs(30) {
        let header = cache.try_header(aud).expect("a token at any time");
        if kid(&header) == wanted {
            return Some(began.elapsed());
        }
        tokio::time::sleep(millis(100)).await;
    }
    None
}

#[tokio::test(start_paused = true)]
async fn rule_09_removed_key_is_replaced_within_5_s() {
    let (agent, _source, cache, aud) = deployment().await;
    let old = agent.issuer().signing_key_id();
    agent.rotate().await;
    let new = agent.issuer().signing_key_id();
    assert_eq!(kid(&cache.try_header(&aud).unwrap()), old);
    agent.taint(&old);
    agent.issuer().revoke(&old);
    let took = signed_by(&cache, &aud, &new).await.expect("the new key");
    assert!(took <= millis(5300), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn rule_09_federated_key_removal_refreshes_nothing() {
    let (agent, source, cache, aud) = deployment().await;
    let other = agent.federate("other.test").unwrap();
    let revoked = other.signing_key_id();
    let domain = other.trust_domain().clone();
    let has = |key: &str| {
        let bundle = source.try_bundle_for_trust_domain(&domain);
        bundle.is_some_and(|bundle| bundle.authority(key).is_some())
    };
    for expected in [true, false] {
        for _ in 0..100 {
            if has(&revoked) == expected {
                break;
            }
            tokio::time::sleep(millis(20)).await;
        }
        assert_eq!(has(&revoked), expected);
        other.rotate_now();
        other.revoke(&revoked);
    }
    let before = cache.stats().fetches;
    for _ in 0..100 {
        cache.try_header(&aud).unwrap();
        tokio::time::sleep(millis(100)).await;
    }
    assert_eq!(cache.stats().fetches, before);
}

#[tokio::test(start_paused = true)]
async fn rule_09_key_removed_during_a_withdrawal_is_noticed() {
    let (agent, source, cache, aud) = deployment().await;
    let old = agent.issuer().signing_key_id();
    agent.withdraw();
    until(|| source.bundle_set().is_err()).await;
    let new = agent.issuer().prepare(Algorithm::ES256);
    agent.issuer().activate(&new);
    agent.taint(&old);
    agent.issuer().revoke(&old);
    agent.restore();
    until(|| source.bundle_set().is_ok()).await;
    assert_eq!(kid(&cache.try_header(&aud).unwrap()), old);
    let took = signed_by(&cache, &aud, &new).await.expect("the new key");
    assert!(took <= millis(5300), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn rule_09_withdrawal_without_key_removal_refreshes_nothing() {
    let (agent, source, cache, aud) = deployment().await;
    agent.withdraw();
    until(|| source.bundle_set().is_err()).await;
    agent.restore();
    until(|| source.bundle_set().is_ok()).await;
    let before = cache.stats().fetches;
    for _ in 0..100 {
        cache.try_header(&aud).unwrap();
        tokio::time::sleep(millis(100)).await;
    }
    assert_eq!(cache.stats().fetches, before);
}

async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        tokio::time::sleep(millis(20)).await;
    }
    panic!("the condition was never true");
}

/// A service that knows of the removal rejects the token. The issuer returns the same token, because
/// it does not know yet. The token is refreshed again.
#[tokio::test(start_paused = true)]
async fn rule_09_removed_key_is_noticed_after_a_rejection() {
    let bench = Bench::new();
    let aud = request("a");
    let first = bench.cache.header(&aud).await.unwrap();
    let mut stale = Token::new(&aud, START, 3600);
    stale.kid = "old";
    let again = stale.clone();
    bench.issuer.then(move |_| Answer::Token(again.clone()));
    bench.cache.report_refused(&aud, &first);
    let sent = bench.cache.header(&aud).await.unwrap();
    assert_eq!(kid(&sent), "old");

    internals::remove_authorities(&bench.cache, &|_, key| key == "old");
    bench.at(secs(20)).await;
    assert!(bench.cache.report_refused(&aud, &sent));
    assert_eq!(bench.cache.header(&aud).await.unwrap(), sent);
    assert_eq!(bench.cache.stats().unchanged, 1);
    bench.issuer.then(|call| call.fresh(3600));
    let mut renewed = false;
    for _ in 0..70 {
        tokio::time::sleep(millis(100)).await;
        renewed |= kid(&bench.cache.header(&aud).await.unwrap()) != "old";
    }
    assert!(renewed, "{:?}", bench.cache.snapshot_of(&aud));
}
