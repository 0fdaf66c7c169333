//! An agent that denies its workloads for some seconds after a restart.

use tower_spiffe::source::WithdrawalPolicy;
use tower_spiffe::testing::{AgentCall, Fault};
use tower_spiffe::token::GrpcCode;

use crate::support::*;

/// SPIRE agents do this: down for some time, then "permission denied" for 5 s.
#[tokio::test(start_paused = true)]
async fn e25_restarted_agent_is_back_within_a_second() {
    for seed in 0..10 {
        let world = World::new().await;
        let builder = tower_spiffe::testing::internals::seeded(world.builder(), seed);
        let source = builder.build().await.unwrap();
        world.agent.stop().await;
        tokio::time::sleep(secs(60)).await;
        world.agent.withdraw();
        world.agent.start_again().await.unwrap();
        let withdrawn = || source.state().withdrawn.is_some();
        world.time_until(withdrawn).await;
        tokio::time::sleep(secs(5)).await;
        assert!(!source.is_ready());
        world.agent.restore();
        let back = world.time_until(|| source.is_healthy()).await;
        assert!(back <= millis(1010), "{back:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn e25_waits_after_a_withdrawal_grow_from_250_ms() {
    for seed in 0..10 {
        let world = World::new().await;
        let builder = tower_spiffe::testing::internals::seeded(world.builder(), seed);
        let _source = builder.build().await.unwrap();
        world.agent.withdraw();
        let first = world.openings(secs(10)).await;
        let (mut before, mut longest) = (first[0], millis(0));
        assert!(first[0] <= millis(260), "{first:?}");
        for opened in &first[1..] {
            let wait = *opened - before;
            assert!((millis(120)..=millis(1010)).contains(&wait), "{first:?}");
            longest = longest.max(wait);
            before = *opened;
        }
        assert!(longest > millis(400), "{first:?}");
        // A workload that stays denied causes little load.
        tokio::time::sleep(secs(60)).await;
        let before = world.agent.counts().fetch_jwt_bundles;
        tokio::time::sleep(secs(600)).await;
        let late = world.agent.counts().fetch_jwt_bundles - before;
        assert!((60..240).contains(&late), "{late}");
    }
}

#[tokio::test(start_paused = true)]
async fn e25_token_wakes_the_bundle_stream() {
    let world = World::new().await;
    let builder = world.builder().reconnect_backoff(secs(300), secs(300));
    let source = builder.build().await.unwrap();
    world.agent.withdraw();
    tokio::time::sleep(secs(1000)).await;
    world.agent.restore();
    tokio::time::sleep(secs(5)).await;
    assert!(!source.is_ready());
    source.fetch_jwt_svid([AUD]).await.unwrap();
    let back = world.time_until(|| source.is_healthy()).await;
    assert!(back <= millis(260), "{back:?}");
}

#[tokio::test(start_paused = true)]
async fn e25_failed_token_calls_wake_nothing() {
    let world = World::new().await;
    let builder = world.builder().reconnect_backoff(secs(300), secs(300));
    let source = builder.build().await.unwrap();
    world.agent.withdraw();
    tokio::time::sleep(secs(1000)).await;
    let before = world.agent.counts().fetch_jwt_bundles;
    for _ in 0..50 {
        assert!(source.fetch_jwt_svid([AUD]).await.is_err());
    }
    tokio::time::sleep(secs(5)).await;
    assert!(world.agent.counts().fetch_jwt_bundles <= before + 1);
}

#[tokio::test(start_paused = true)]
async fn e25_many_tokens_cause_few_reconnects() {
    let world = World::new().await;
    let source = world.source().await;
    let denied = Fault::Refuse(GrpcCode::PermissionDenied);
    world.agent.fail_call(AgentCall::FetchJwtBundles, denied);
    world.agent.cut_connections().await;
    tokio::time::sleep(secs(60)).await;
    let before = world.agent.counts().fetch_jwt_bundles;
    for _ in 0..1_000 {
        source.fetch_jwt_svid([AUD]).await.unwrap();
        tokio::time::sleep(millis(10)).await;
    }
    let openings = world.agent.counts().fetch_jwt_bundles - before;
    assert!((10..=42).contains(&openings), "{openings}");
}

#[tokio::test(start_paused = true)]
async fn e25_after_bridges_a_restart_of_the_agent() {
    let world = World::new().await;
    let after = WithdrawalPolicy::After(secs(30));
    let source = world.builder().withdrawal(after).build().await.unwrap();
    let updates = source.updated();
    tokio::time::sleep(secs(60)).await;
    world.agent.withdraw();
    for _ in 0..50 {
        tokio::time::sleep(millis(100)).await;
        assert!(source.is_ready());
    }
    world.agent.restore();
    world.time_until(|| source.is_healthy()).await;
    assert_eq!(updates.last(), 1);
}
