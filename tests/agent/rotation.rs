//! Key rotation.

use std::time::Duration;

use tower_spiffe::bundle::Algorithm;
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault};

use crate::issuer::part;
use crate::support::*;

const LIFE: Duration = Duration::from_secs(300);

fn kid(token: &str) -> String {
    part(token, 0)["kid"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn rotation_publishes_signs_then_retires() {
    let (_clock, agent) = paused_agent().await;
    let client = dial_in_memory(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    let old = next_key_ids(&mut stream, TD).await.remove(0);

    let (new, seen) = tokio::join!(agent.rotate(), async {
        let seen = next_key_ids(&mut stream, TD).await;
        // The key is published, but does not sign yet.
        (
            seen,
            kid(&client.token("while it is prepared").await.unwrap()),
        )
    });
    assert_eq!(seen, (vec![old.clone(), new.clone()], old.clone()));
    assert_eq!(kid(&client.token("after").await.unwrap()), new);

    tokio::time::advance(LIFE - Duration::from_secs(1)).await;
    assert_eq!(agent.issuer().key_ids(), [old, new.clone()]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(next_key_ids(&mut stream, TD).await, [new]);
}

#[tokio::test(start_paused = true)]
async fn rotation_waits_for_reading_streams_only() {
    let (_clock, agent) = paused_agent().await;
    let client = dial_in_memory(&agent).await;
    let mut reading = client.bundles().await.unwrap();
    next_key_ids(&mut reading, TD).await;
    // A stream on a dead connection.
    let dead = dial_in_memory(&agent).await;
    let mut stuck = dead.bundles().await.unwrap();
    next_key_ids(&mut stuck, TD).await;
    agent.half_open();
    let alive = dial_in_memory(&agent).await;
    let mut stream = alive.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;

    let began = tokio::time::Instant::now();
    let new = agent.rotate().await;
    assert!(began.elapsed() <= Duration::from_secs(11));
    assert!(next_key_ids(&mut stream, TD).await.contains(&new));
    assert_eq!(agent.issuer().signing_key_id(), new);
}

#[tokio::test]
async fn rotation_without_streams_does_not_wait() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let rotated = tokio::time::timeout(Duration::from_secs(2), agent.rotate());
    assert!(rotated.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn rotate_now_signs_at_once() {
    let (_clock, agent) = paused_agent().await;
    let old = agent.issuer().signing_key_id();
    let new = agent.rotate_now();
    assert_eq!(kid(&agent.token("spiffe://example.org/web", AUD)), new);
    assert_eq!(agent.issuer().key_ids(), [old, new.clone()]);
    tokio::time::sleep(LIFE + Duration::from_secs(1)).await;
    assert_eq!(agent.issuer().key_ids(), [new]);
}

#[tokio::test(start_paused = true)]
async fn old_key_outlives_the_longest_token() {
    let (_clock, agent) = paused_agent().await;
    agent
        .register("spiffe://example.org/long", "", 4 * LIFE)
        .unwrap();
    agent.rotate().await;
    tokio::time::sleep(3 * LIFE).await;
    assert_eq!(agent.issuer().key_ids().len(), 2);
    tokio::time::sleep(LIFE + Duration::from_secs(1)).await;
    assert_eq!(agent.issuer().key_ids().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn rotation_may_change_the_algorithm() {
    let (_clock, agent) = paused_agent().await;
    for algorithm in [Algorithm::ES384, Algorithm::RS256, Algorithm::ES512] {
        let kid = agent.rotate_to(algorithm).await;
        let header = part(&agent.token("spiffe://example.org/web", AUD), 0);
        assert_eq!(header["alg"], algorithm.as_str());
        assert_eq!(header["kid"], kid.as_str());
    }
    // The next rotation keeps the algorithm.
    agent.rotate().await;
    assert_eq!(agent.issuer().algorithm(), Algorithm::ES512);
}

#[tokio::test(start_paused = true)]
async fn schedule_rotates_until_stopped() {
    let (_clock, agent) = paused_agent().await;
    let mut seen = vec![agent.issuer().signing_key_id()];
    agent.rotate_every(Duration::from_secs(60));
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(61)).await;
        let kid = agent.issuer().signing_key_id();
        assert!(!seen.contains(&kid));
        seen.push(kid);
    }
    agent.stop_rotating();
    tokio::time::sleep(2 * LIFE).await;
    assert_eq!(agent.issuer().key_ids(), seen[5..]);
}

#[tokio::test(start_paused = true)]
async fn taint_drops_tokens_and_keeps_the_key() {
    let (_clock, agent) = paused_agent().await;
    let client = dial_in_memory(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    let old_kid = agent.issuer().signing_key_id();
    let old = client.token(AUD).await.unwrap();
    let new_kid = agent.rotate().await;
    let mut both = next_key_ids(&mut stream, TD).await;
    // The agent's cache still returns the old key's token ...
    assert_eq!(client.token(AUD).await.unwrap(), old);
    agent.taint(&old_kid);
    // ... until now. The set is sent again in another order.
    assert_eq!(kid(&client.token(AUD).await.unwrap()), new_kid);
    both.reverse();
    assert_eq!(next_key_ids(&mut stream, TD).await, both);
    assert!(client.validate(AUD, &old).await.is_ok());

    agent.issuer().revoke(&old_kid);
    assert_eq!(next_key_ids(&mut stream, TD).await, [new_kid]);
    assert!(client.validate(AUD, &old).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rotation_all_sources_have_the_key() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let sources = [agent.source().await.unwrap(), agent.source().await.unwrap()];
    let trust_domain = TD.parse().unwrap();
    for _ in 0..20 {
        let kid = agent.rotate().await;
        for source in &sources {
            let bundle = source.bundle_for_trust_domain(&trust_domain).unwrap();
            assert!(bundle.authority(&kid).is_some());
        }
    }
    // A closed source is not waited for. An unavailable one is waited for only briefly.
    let [closed, unavailable] = sources;
    closed.shutdown().await;
    agent.stop().await;
    let began = tokio::time::Instant::now();
    agent.rotate().await;
    agent.start_again().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(8));
    drop(unavailable);
}

/// A rotation that is cancelled while it waits for an open stream.
async fn cancel_rotation(agent: &FakeAgent) {
    agent.fail_call(
        AgentCall::FetchJwtBundles,
        Fault::Slow(Duration::from_secs(5)),
    );
    let rotation = tokio::time::timeout(Duration::from_secs(2), agent.rotate());
    assert!(rotation.await.is_err());
    agent.recover();
}

#[tokio::test(start_paused = true)]
async fn cancelled_rotation_removes_its_key() {
    let (_clock, agent) = paused_agent().await;
    let client = dial_in_memory(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    let before = next_key_ids(&mut stream, TD).await;
    cancel_rotation(&agent).await;
    assert_eq!(agent.issuer().key_ids(), before);
    assert_eq!(agent.issuer().signing_key_id(), before[0]);
}

#[tokio::test(start_paused = true)]
async fn next_rotation_waits_after_a_cancelled_one() {
    let (_clock, agent) = paused_agent().await;
    let source = agent.source().await.unwrap();
    let trust_domain = TD.parse().unwrap();
    cancel_rotation(&agent).await;
    agent.cut_connections().await;
    // No stream is open now, so the rotation can only wait for the source.
    let kid = agent.rotate().await;
    let bundle = source.bundle_for_trust_domain(&trust_domain).unwrap();
    assert!(bundle.authority(&kid).is_some());
}

#[tokio::test(start_paused = true)]
async fn concurrent_rotations_run_one_after_another() {
    let (_clock, agent) = paused_agent().await;
    let source = agent.source().await.unwrap();
    let first = agent.issuer().signing_key_id();
    let (one, two, three) = tokio::join!(agent.rotate(), agent.rotate(), agent.rotate());
    assert_eq!(
        agent.issuer().key_ids(),
        [first, one, two, three.clone()],
        "one after another"
    );
    assert_eq!(agent.issuer().signing_key_id(), three);
    let bundle = source.bundle_for_trust_domain(&TD.parse().unwrap());
    assert!(bundle.unwrap().authority(&three).is_some());
    tokio::time::sleep(LIFE + Duration::from_secs(1)).await;
    assert_eq!(agent.issuer().key_ids(), [three]);
}
