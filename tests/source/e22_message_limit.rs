//! E22: one limit for the bytes of a message, checked before decoding.

use tower_spiffe::testing::Fault;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn e22_an_oversized_message_is_discarded_and_unhealthy() {
    let world = World::new().await;
    let source = world
        .builder()
        .resource_limits(tower_spiffe::source::ResourceLimits::default().max_message_bytes(50_000))
        .build()
        .await
        .unwrap();
    let validator = world.validator(&source);
    assert!(source.is_healthy() && validator.validate(&world.token()).is_ok());

    world.agent.fail(Fault::Oversized(50_001));
    world.agent.send_again();
    eventually("the discarding", || source.state().discarding).await;
    let state = source.state();
    assert!(!state.is_healthy() && state.is_ready());
    assert_eq!(state.last_error.as_ref().unwrap().kind, "message-too-large");
    let text = &state.last_error.as_ref().unwrap().text;
    assert!(
        text.contains("`max_message_bytes` (64 MiB by default)"),
        "{text}"
    );
    assert!(
        validator.validate(&world.token()).is_ok(),
        "the last set is kept"
    );
    // The source keeps trying, and the set is unchanged.
    tokio::time::sleep(secs(600)).await;
    assert!(!source.is_healthy() && source.state().discarding);

    world.agent.recover();
    world.time_until(|| source.is_healthy()).await;
    assert!(!source.state().discarding);
}

/// The limits of all trust domains together would allow 800 MiB.
#[tokio::test(start_paused = true)]
async fn e22_the_default_limit_is_64_mib() {
    let world = World::new().await;
    let source = world.source().await;
    world.agent.fail(Fault::Oversized(64 << 20));
    world.agent.send_again();
    eventually("the discarding", || source.state().discarding).await;
    let state = source.state();
    let text = &state.last_error.as_ref().unwrap().text;
    assert!(text.contains(&(64 << 20).to_string()), "{text}");
}
