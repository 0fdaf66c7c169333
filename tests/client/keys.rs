//! Rule 9 from end to end: an agent's keys go, and the headers of a source follow.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::{FakeAgent, PausedClock};
use tower_spiffe::token::SvidRequest;
use tower_spiffe::{JwtSource, JwtSvid, SvidCache};

use crate::support::{Answer, Bench, START, Token, millis, request, secs};

/// An agent and a source on paused time; and the token for one audience.
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

/// The key of what is sent, asked for every 100 ms until it is `wanted`; and after how long.
async fn signed_by(cache: &SvidCache, aud: &SvidRequest, wanted: &str) -> Option<Duration> {
    let began = tokio::time::Instant::now();
    while began.elapsed() < secs(30) {
        let header = cache.try_header(aud).expect("a token all along");
        if kid(&header) == wanted {
            return Some(began.elapsed());
        }
        tokio::time::sleep(millis(100)).await;
    }
    None
}

#[tokio::test(start_paused = true)]
async fn rule_09_when_an_agents_key_is_gone_headers_are_signed_by_the_new_one_within_5_s() {
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
async fn rule_09_a_key_of_a_federated_domain_that_is_gone_has_nothing_refreshed() {
    let (agent, source, cache, aud) = deployment().await;
    let other = agent.federate("other.test").unwrap();
    let gone = other.signing_key_id();
    let domain = other.trust_domain().clone();
    let has = |key: &str| {
        let bundle = source.try_bundle_for_trust_domain(&domain);
        bundle.is_some_and(|bundle| bundle.authority(key).is_some())
    };
    for expected in [true, false] {
        for _ in 0..100 {
            if has(&gone) == expected {
                break;
            }
            tokio::time::sleep(millis(20)).await;
        }
        assert_eq!(has(&gone), expected);
        other.rotate_now();
        other.revoke(&gone);
    }
    let before = cache.stats().fetches;
    for _ in 0..100 {
        cache.try_header(&aud).unwrap();
        tokio::time::sleep(millis(100)).await;
    }
    assert_eq!(cache.stats().fetches, before);
}

#[tokio::test(start_paused = true)]
async fn rule_09_a_key_that_goes_during_a_withdrawal_is_gone_all_the_same() {
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
async fn rule_09_a_withdrawal_that_takes_no_key_has_nothing_refreshed() {
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

async fn until(mut come: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if come() {
            return;
        }
        tokio::time::sleep(millis(20)).await;
    }
    panic!("it never came");
}

/// A service that knows of the key's end refuses the token, and the issuer, which does not yet,
/// gives the same one again: it is asked again all the same.
#[tokio::test(start_paused = true)]
async fn rule_09_a_key_that_is_gone_is_so_after_a_refusal_too() {
    let bench = Bench::new();
    let aud = request("a");
    let first = bench.cache.header(&aud).await.unwrap();
    let mut stale = Token::new(&aud, START, 3600);
    stale.kid = "old";
    let again = stale.clone();
    bench.desk.then(move |_| Answer::Token(again.clone()));
    bench.cache.report_refused(&aud, &first);
    let sent = bench.cache.header(&aud).await.unwrap();
    assert_eq!(kid(&sent), "old");

    bench.cache.authorities_gone(&|_, key| key == "old");
    bench.at(secs(20)).await;
    assert!(bench.cache.report_refused(&aud, &sent));
    assert_eq!(bench.cache.header(&aud).await.unwrap(), sent);
    assert_eq!(bench.cache.stats().unchanged, 1);
    bench.desk.then(|call| call.fresh(3600));
    let mut renewed = false;
    for _ in 0..70 {
        tokio::time::sleep(millis(100)).await;
        renewed |= kid(&bench.cache.header(&aud).await.unwrap()) != "old";
    }
    assert!(renewed, "{:?}", bench.cache.snapshot_of(&aud));
}
