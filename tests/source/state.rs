//! `state()`, and when a source is healthy.

use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::source::ResourceLimits;
use tower_spiffe::testing::Fault;
use tower_spiffe::token::GrpcCode;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn state_reports_errors_before_the_first_sync() {
    let world = World::new().await;
    world.agent.fail(Fault::Refuse(GrpcCode::Unavailable));
    let source = world.builder().build_lazy().unwrap();
    tokio::time::sleep(secs(30)).await;
    let state = source.state();
    assert_eq!((state.revision, state.is_ready()), (0, false));
    assert!(!source.is_ready());
    assert_eq!(
        state.bundles_unavailable,
        Some(BundlesUnavailable::NotReady)
    );
    assert!(!state.connected && !state.is_healthy() && !state.discarding);
    assert_eq!((state.last_message, state.trust_domains.len()), (None, 0));
    assert!(state.reconnect_attempts >= 3);
    assert_eq!(state.reconnects, 0);
    assert!(state.withdrawn.is_none());
    // An error status is contact, too.
    assert!(state.last_contact.unwrap() <= secs(10));
    let last = state.last_error.as_ref().unwrap();
    assert_eq!(last.kind, "unavailable");
    assert!(last.age <= secs(10));
    assert_eq!(
        last.rpc.as_ref().unwrap().code(),
        Some(GrpcCode::Unavailable)
    );
    assert!(last.text.contains("FetchJWTBundles"), "{}", last.text);
}

#[tokio::test(start_paused = true)]
async fn each_age_has_its_own_start() {
    let world = World::new().await;
    let other = world.agent.federate(OTHER).unwrap();
    let source = world.source().await;
    tokio::time::sleep(secs(100)).await;
    let mut updates = source.updated();
    let new = world.agent.rotate_now();
    soon("the update", updates.changed()).await.unwrap();
    tokio::time::sleep(secs(10)).await;

    let state = source.state();
    assert_eq!(state.revision, 2);
    assert_eq!(state.last_message, Some(secs(10)));
    assert_eq!(state.last_contact, Some(secs(10)));
    let [own, theirs] = &*state.trust_domains else {
        panic!("{state:?}");
    };
    assert_eq!(own.trust_domain.name(), TD);
    assert_eq!(own.key_ids.len(), 2);
    assert!(own.key_ids.iter().any(|kid| **kid == *new));
    assert!(own.key_ids.is_sorted());
    // Its keys came with every message, and changed in the second one.
    assert_eq!(
        (own.last_update, own.last_change),
        (Some(secs(10)), Some(secs(10)))
    );
    assert_eq!(
        theirs.key_ids.iter().map(|kid| &**kid).collect::<Vec<_>>(),
        other.key_ids()
    );
    assert_eq!(theirs.last_update, Some(secs(10)));
    assert_eq!(theirs.last_change, Some(secs(110)));
    assert_eq!((theirs.ignored_keys, theirs.last_error.as_ref()), (0, None));
    // Ages are relative to the time of the snapshot.
    tokio::time::sleep(secs(5)).await;
    assert_eq!(state.last_message, Some(secs(10)));
    assert_eq!(source.state().last_message, Some(secs(15)));
}

#[tokio::test(start_paused = true)]
async fn state_without_agent_has_duration_and_cause() {
    let world = World::new().await;
    let source = world.source().await;
    tokio::time::sleep(secs(50)).await;
    world.agent.stop().await;
    tokio::time::sleep(secs(59)).await;
    // Healthy for as long as a restart may take.
    let state = source.state();
    assert!(!state.connected && state.is_healthy() && state.is_ready());
    // The agent announced that it stops.
    let contact = state.last_contact.unwrap();
    assert!((secs(59)..=secs(60)).contains(&contact), "{contact:?}");
    assert!(state.reconnect_attempts >= 5);
    assert_eq!(state.reconnects, 0);
    assert_eq!(state.last_error.as_ref().unwrap().kind, "connect");
    tokio::time::sleep(secs(1)).await;
    assert!(!source.is_healthy() && source.is_ready());
    world.agent.start_again().await.unwrap();
    world.time_until(|| source.is_healthy()).await;
    let state = source.state();
    assert!(state.connected && state.last_error.is_none());
    assert_eq!(state.reconnects, 1);
    assert!(state.last_contact.unwrap() <= millis(1));
}

#[tokio::test(start_paused = true)]
async fn discarded_updates_make_a_source_unhealthy() {
    let world = World::new().await;
    let limits = ResourceLimits::default().max_bundles(1);
    let source = world
        .builder()
        .resource_limits(limits)
        .build()
        .await
        .unwrap();
    assert!(source.is_healthy());
    world.agent.federate(OTHER).unwrap();
    eventually("the discarding", || source.state().discarding).await;
    // The stream is open, but its messages are discarded.
    let state = source.state();
    assert!(state.connected && state.is_ready() && !state.is_healthy());
    tokio::time::sleep(secs(3600)).await;
    assert!(!source.is_healthy());
    world.agent.unfederate(OTHER);
    eventually("a good set", || source.is_healthy()).await;
    assert!(!source.state().discarding);
}

#[tokio::test(start_paused = true)]
async fn unreadable_domain_becomes_stale_alone() {
    let world = World::new().await;
    let other = world.agent.federate(OTHER).unwrap();
    let builder = world.builder().max_staleness(secs(600));
    let source = builder.build().await.unwrap();
    let validator = world.validator(&source);
    let ours = world
        .agent
        .issuer()
        .token(WEB, AUD)
        .expires_in(secs(9000))
        .sign();
    let theirs = other.token("spiffe://other.test/web", AUD);
    let theirs = theirs.expires_in(secs(9000)).sign();
    tokio::time::sleep(secs(100)).await;
    let mut updates = source.updated();
    world.agent.federate_raw(OTHER, "not a JWK Set").unwrap();
    let has_error = || source.state().trust_domains[1].last_error.is_some();
    eventually("the error", has_error).await;
    assert!(!source.is_healthy());
    // The last readable keys count until they are stale.
    tokio::time::sleep(secs(499)).await;
    assert!(validator.validate(&theirs).is_ok());
    assert_eq!(updates.last(), 1);
    tokio::time::sleep(secs(1)).await;
    let stale = tower_spiffe::verify::ValidateReason::BundlesUnavailable(BundlesUnavailable::Stale);
    // Cached results for those keys are rejected too.
    assert_eq!(reason(validator.validate(&theirs)), Some(stale));
    assert!(validator.validate(&ours).is_ok());
    soon("the update", updates.changed()).await.unwrap();
    // It stays so until the first readable message.
    tokio::time::sleep(secs(3000)).await;
    assert_eq!(reason(validator.validate(&theirs)), Some(stale));
    assert!(validator.validate(&ours).is_ok());
    let mut updates = source.updated();
    world.agent.federate_with(&other);
    soon("the update", updates.changed()).await.unwrap();
    assert!(validator.validate(&theirs).is_ok());
    assert!(source.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn state_includes_the_client_side() {
    let world = World::new().await;
    let source = world.source().await;
    source.get_jwt_svid([AUD]).await.unwrap();
    source.get_jwt_svid([AUD]).await.unwrap();
    let state = source.state();
    assert_eq!(state.svid_cache.fetches, 1);
    assert_eq!(state.audiences.len(), 1);
}
