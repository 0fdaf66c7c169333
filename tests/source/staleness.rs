//! `max_staleness`: how long bundles are used without a message from the agent. The effect on a
//! hanging task is tested next to the withdrawal.

use std::time::Duration;

use tower_spiffe::JwtSource;
use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::source::JwtSourceErrorReason;
use tower_spiffe::testing::Fault;
use tower_spiffe::verify::ValidateReason;

use crate::support::*;

async fn with_limit(max: Duration) -> (World, JwtSource) {
    let world = World::new().await;
    let source = world.builder().max_staleness(max).build().await.unwrap();
    (world, source)
}

const STALE: Option<ValidateReason> = Some(ValidateReason::BundlesUnavailable(
    BundlesUnavailable::Stale,
));

#[tokio::test(start_paused = true)]
async fn stale_source_recovers_with_its_agent() {
    let (world, source) = with_limit(secs(60)).await;
    let validator = world.validator(&source);
    let token = world.token();
    let mut updates = source.updated();
    world.agent.stop().await;
    tokio::time::sleep(secs(59)).await;
    assert!(validator.validate(&token).is_ok());
    tokio::time::sleep(secs(1)).await;
    assert_eq!(reason(validator.validate(&token)), STALE);
    let error = source.bundle_set().unwrap_err();
    let stale = JwtSourceErrorReason::BundlesUnavailable(BundlesUnavailable::Stale);
    assert_eq!(error.reason(), stale);
    assert!(error.is_retryable() && !source.is_healthy());
    assert!(
        format!("{error:#}").contains("older than allowed"),
        "{error:#}"
    );

    // Waits for usable bundles end, although the bundles are the same as before.
    let waits = tokio::spawn({
        let source = source.clone();
        async move { source.ready().await }
    });
    settle().await;
    assert!(!waits.is_finished());
    world.agent.start_again().await.unwrap();
    soon("a set that is fresh", waits).await.unwrap().unwrap();
    soon("the update", updates.changed()).await.unwrap();
    assert!(validator.validate(&token).is_ok());
    assert!(source.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_bundles_never_become_stale() {
    let world = World::new().await;
    let source = world.source().await;
    let validator = world.validator(&source);
    world.agent.stop().await;
    tokio::time::sleep(secs(86_400)).await;
    assert!(validator.validate(&world.token()).is_ok());
    // The age is still reported.
    let state = source.state();
    assert!(state.is_ready() && !state.is_healthy());
    assert!(state.last_contact.unwrap() >= secs(86_399));
}

#[tokio::test(start_paused = true)]
async fn quiet_stream_is_reopened_silently() {
    let (world, source) = with_limit(secs(60)).await;
    let updates = source.updated();
    for _ in 0..3600 {
        tokio::time::sleep(secs(1)).await;
        assert!(source.is_ready());
    }
    let counts = world.agent.counts();
    assert!(
        (119..=121).contains(&counts.fetch_jwt_bundles),
        "{counts:?}"
    );
    assert_eq!((counts.connections, counts.open_streams), (1, 1));
    assert_eq!(updates.last(), 1);
    assert!(source.state().last_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn bundles_of_a_hanging_agent_become_stale() {
    let (world, source) = with_limit(secs(60)).await;
    let validator = world.validator(&source);
    let token = world.token();
    world.agent.fail(Fault::Hang);
    tokio::time::sleep(secs(60)).await;
    assert_eq!(reason(validator.validate(&token)), STALE);
    world.agent.recover();
    assert!(world.time_until(|| source.is_healthy()).await <= secs(41));
}

#[tokio::test(start_paused = true)]
async fn limit_below_the_reopen_time_causes_few_calls() {
    let (world, source) = with_limit(millis(1)).await;
    let openings = world.openings(secs(60)).await;
    assert!(openings.len() <= 60, "{}", openings.len());
    assert!(!source.is_ready());
}

/// The limit applies to an unreadable trust domain alone. Its staleness is published once, even if
/// the agent repeats the message.
#[tokio::test(start_paused = true)]
async fn staleness_of_one_domain_is_published_once() {
    let (world, source) = with_limit(secs(60)).await;
    let mut updates = source.updated();
    world.agent.federate(OTHER).unwrap();
    soon("its keys", updates.changed()).await.unwrap();
    world.agent.federate_raw(OTHER, "{").unwrap();
    let other = td(OTHER);
    let has_bundle = || source.try_bundle_for_trust_domain(&other).is_some();
    // Staleness is noticed when a bundle is looked up; no task checks it.
    assert!(world.time_until(|| !has_bundle()).await <= secs(60));
    let revision = source.state().revision;
    for _ in 0..600 {
        tokio::time::sleep(secs(1)).await;
        assert!(!has_bundle() && source.is_ready());
    }
    assert!(world.agent.counts().fetch_jwt_bundles >= 20);
    assert_eq!(source.state().revision, revision);
}
