//! Keys that come and go.

use std::time::Duration;

use tower_spiffe::bundle::Algorithm;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault, PausedClock};

use crate::issuer::part;
use crate::support::*;

const LIFE: Duration = Duration::from_secs(300);

async fn agent() -> (PausedClock, FakeAgent) {
    let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
    let agent = FakeAgent::builder(TD)
        .clock(clock.shared())
        .start_in_memory()
        .await
        .unwrap();
    (clock, agent)
}

fn kid(token: &str) -> String {
    part(token, 0)["kid"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_rotation_publishes_before_it_signs_and_retires_after_one_life() {
    let (_clock, agent) = agent().await;
    let client = dial_in_memory(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    let old = next_key_ids(&mut stream, TD).await.remove(0);

    let (new, seen) = tokio::join!(agent.rotate(), async {
        let seen = next_key_ids(&mut stream, TD).await;
        // The key is there; nothing is signed with it yet.
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
async fn a_rotation_waits_for_every_stream_that_reads_and_for_none_that_does_not() {
    let (_clock, agent) = agent().await;
    let client = dial_in_memory(&agent).await;
    let mut reading = client.bundles().await.unwrap();
    next_key_ids(&mut reading, TD).await;
    // A stream on a connection that is dead.
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
async fn without_a_stream_a_rotation_does_not_wait() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let rotated = tokio::time::timeout(Duration::from_secs(2), agent.rotate());
    assert!(rotated.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_hard_rotation_signs_at_once() {
    let (_clock, agent) = agent().await;
    let old = agent.issuer().signing_key_id();
    let new = agent.rotate_now();
    assert_eq!(kid(&agent.token("spiffe://example.org/web", AUD)), new);
    assert_eq!(agent.issuer().key_ids(), [old, new.clone()]);
    tokio::time::sleep(LIFE + Duration::from_secs(1)).await;
    assert_eq!(agent.issuer().key_ids(), [new]);
}

#[tokio::test(start_paused = true)]
async fn the_old_key_outlives_the_longest_token() {
    let (_clock, agent) = agent().await;
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
async fn a_rotation_may_change_the_algorithm() {
    let (_clock, agent) = agent().await;
    for algorithm in [Algorithm::ES384, Algorithm::RS256, Algorithm::ES512] {
        let kid = agent.rotate_to(algorithm).await;
        let header = part(&agent.token("spiffe://example.org/web", AUD), 0);
        assert_eq!(header["alg"], algorithm.as_str());
        assert_eq!(header["kid"], kid.as_str());
    }
    // What it rotates to next is what it has.
    agent.rotate().await;
    assert_eq!(agent.issuer().algorithm(), Algorithm::ES512);
}

#[tokio::test(start_paused = true)]
async fn a_schedule_rotates_until_it_is_stopped() {
    let (_clock, agent) = agent().await;
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
async fn a_taint_drops_the_tokens_of_the_key_and_keeps_the_key() {
    let (_clock, agent) = agent().await;
    let client = dial_in_memory(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    let old_kid = agent.issuer().signing_key_id();
    let old = client.token(AUD).await.unwrap();
    let new_kid = agent.rotate().await;
    let mut both = next_key_ids(&mut stream, TD).await;
    // The agent's cache goes on with the old key's token ...
    assert_eq!(client.token(AUD).await.unwrap(), old);
    agent.taint(&old_kid);
    // ... until now; and the set is said again in another order.
    assert_eq!(kid(&client.token(AUD).await.unwrap()), new_kid);
    both.reverse();
    assert_eq!(next_key_ids(&mut stream, TD).await, both);
    assert!(client.validate(AUD, &old).await.is_ok());

    agent.issuer().revoke(&old_kid);
    assert_eq!(next_key_ids(&mut stream, TD).await, [new_kid]);
    assert!(client.validate(AUD, &old).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rotation_every_source_of_the_agent_knows_the_new_key() {
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
    // One that is gone is not waited for, nor one that is away for long.
    let [gone, away] = sources;
    gone.shutdown().await;
    agent.stop().await;
    let began = tokio::time::Instant::now();
    agent.rotate().await;
    agent.start_again().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(8));
    drop(away);
}

/// A rotation that is given up while an open stream keeps it waiting.
async fn given_up(agent: &FakeAgent) {
    agent.fail_call(
        AgentCall::FetchJwtBundles,
        Fault::Slow(Duration::from_secs(5)),
    );
    let rotation = tokio::time::timeout(Duration::from_secs(2), agent.rotate());
    assert!(rotation.await.is_err());
    agent.recover();
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_is_given_up_takes_its_key_along() {
    let (_clock, agent) = agent().await;
    let client = dial_in_memory(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    let before = next_key_ids(&mut stream, TD).await;
    given_up(&agent).await;
    assert_eq!(agent.issuer().key_ids(), before);
    assert_eq!(agent.issuer().signing_key_id(), before[0]);
}

#[tokio::test(start_paused = true)]
async fn after_a_rotation_that_was_given_up_the_next_still_waits_for_the_sources() {
    let (_clock, agent) = agent().await;
    let source = agent.source().await.unwrap();
    let trust_domain = TD.parse().unwrap();
    given_up(&agent).await;
    agent.cut_connections().await;
    // No stream is open now: only the source itself can be waited for.
    let kid = agent.rotate().await;
    let bundle = source.bundle_for_trust_domain(&trust_domain).unwrap();
    assert!(bundle.authority(&kid).is_some());
}

#[tokio::test(start_paused = true)]
async fn rotations_at_once_take_turns_and_every_key_is_retired() {
    let (_clock, agent) = agent().await;
    let source = agent.source().await.unwrap();
    let first = agent.issuer().signing_key_id();
    let (one, two, three) = tokio::join!(agent.rotate(), agent.rotate(), agent.rotate());
    assert_eq!(
        agent.issuer().key_ids(),
        [first, one, two, three.clone()],
        "in turn"
    );
    assert_eq!(agent.issuer().signing_key_id(), three);
    let bundle = source.bundle_for_trust_domain(&TD.parse().unwrap());
    assert!(bundle.unwrap().authority(&three).is_some());
    tokio::time::sleep(LIFE + Duration::from_secs(1)).await;
    assert_eq!(agent.issuer().key_ids(), [three]);
}
