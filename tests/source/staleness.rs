//! `max_staleness`: for how long the last word of the agent is good. (That it strikes while the
//! task hangs is tested beside the withdrawal, which does so too.)

use std::time::Duration;

use tower_spiffe::JwtSource;
use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::source::JwtSourceErrorReason;
use tower_spiffe::testing::Fault;
use tower_spiffe::verify::ValidateReason;

use crate::support::*;

async fn good_for(max: Duration) -> (World, JwtSource) {
    let world = World::new().await;
    let source = world.builder().max_staleness(max).build().await.unwrap();
    (world, source)
}

const STALE: Option<ValidateReason> = Some(ValidateReason::BundlesUnavailable(
    BundlesUnavailable::Stale,
));

#[tokio::test(start_paused = true)]
async fn past_it_nothing_is_judged_and_with_the_agent_back_everything_is() {
    let (world, source) = good_for(secs(60)).await;
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
    assert!(error.to_string().contains("older than allowed"), "{error}");

    // Whoever waits for bundles to judge by is woken, though they are the same as before.
    let waits = tokio::spawn({
        let source = source.clone();
        async move { source.ready().await }
    });
    settle().await;
    assert!(!waits.is_finished());
    world.agent.start_again().await.unwrap();
    soon("a set that is fresh", waits).await.unwrap().unwrap();
    soon("the news", updates.changed()).await.unwrap();
    assert!(validator.validate(&token).is_ok());
    assert!(source.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn without_it_a_day_without_the_agent_is_judged_through() {
    let world = World::new().await;
    let source = world.source().await;
    let validator = world.validator(&source);
    world.agent.stop().await;
    tokio::time::sleep(secs(86_400)).await;
    assert!(validator.validate(&world.token()).is_ok());
    // The age is there to see.
    let state = source.state();
    assert!(state.is_ready() && !state.is_healthy());
    assert!(state.last_contact().unwrap() >= secs(86_399));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_is_asked_anew_in_time_and_nobody_is_told() {
    let (world, source) = good_for(secs(60)).await;
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
    assert!(source.state().last_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_hangs_behind_an_open_stream_ages_too() {
    let (world, source) = good_for(secs(60)).await;
    let validator = world.validator(&source);
    let token = world.token();
    world.agent.fail(Fault::Hang);
    tokio::time::sleep(secs(60)).await;
    assert_eq!(reason(validator.validate(&token)), STALE);
    world.agent.recover();
    assert!(world.time_until(|| source.is_healthy()).await <= secs(41));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_too_short_to_be_kept_is_no_storm() {
    let (world, source) = good_for(millis(1)).await;
    let openings = world.openings(secs(60)).await;
    assert!(openings.len() <= 60, "{}", openings.len());
    assert!(!source.is_ready());
}

/// The keys of one that cannot be read are held to the limit by themselves; that they are too old is
/// told once, however often the agent says the same again.
#[tokio::test(start_paused = true)]
async fn one_trust_domain_that_is_too_old_is_told_of_once() {
    let (world, source) = good_for(secs(60)).await;
    let mut updates = source.updated();
    world.agent.federate(OTHER).unwrap();
    soon("its keys", updates.changed()).await.unwrap();
    world.agent.federate_raw(OTHER, "{").unwrap();
    let other = td(OTHER);
    let judged = || source.try_bundle_for_trust_domain(&other).is_some();
    // Somebody has to ask: no task strikes.
    assert!(world.time_until(|| !judged()).await <= secs(60));
    let told = source.state().revision();
    for _ in 0..600 {
        tokio::time::sleep(secs(1)).await;
        assert!(!judged() && source.is_ready());
    }
    assert!(world.agent.counts().fetch_jwt_bundles >= 20);
    assert_eq!(source.state().revision(), told);
}
