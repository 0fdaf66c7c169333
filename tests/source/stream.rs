//! What the source makes of each message, end to end. (How one message is read is tested where it
//! is read.)

use std::sync::{Arc, Mutex};

use tower_spiffe::bundle::{BundleAnswer, BundleSource};
use tower_spiffe::metrics::MetricsRecorder;
use tower_spiffe::source::ResourceLimits;
use tower_spiffe::testing::{Fault, Issuer};
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::{JwtSource, Validator};

use crate::support::*;

const NOTHING: [(&str, &str); 0] = [];

/// Keeps every kind of error and counts the updates.
#[derive(Default)]
struct Told {
    errors: Mutex<Vec<&'static str>>,
    updates: Mutex<u32>,
}

impl MetricsRecorder for Told {
    fn record_error(&self, kind: &'static str) {
        self.errors.lock().unwrap().push(kind);
    }

    fn record_update(&self) {
        *self.updates.lock().unwrap() += 1;
    }
}

/// A source that knows another trust domain too, and one of its tokens, which is good.
async fn federated() -> (World, JwtSource, Validator, String) {
    let world = World::new().await;
    let other = world.agent.federate(OTHER).unwrap();
    let source = world.source().await;
    let validator = world.validator(&source);
    let theirs = other.token("spiffe://other.test/web", AUD).sign();
    assert!(validator.validate(&theirs).is_ok());
    (world, source, validator, theirs)
}

#[tokio::test(start_paused = true)]
async fn wa4_wa8_each_message_is_the_whole_set_and_what_is_not_in_it_is_unloaded() {
    let (world, source, validator, theirs) = federated().await;

    let mut updates = source.updated();
    world.agent.unfederate(OTHER);
    soon("the smaller set", updates.changed()).await.unwrap();
    let unknown = Some(ValidateReason::TrustDomainUnknown);
    assert_eq!(reason(validator.validate(&theirs)), unknown);
    assert_eq!(source.bundle_set().unwrap().len(), 1);
    assert_eq!(source.state().trust_domains().len(), 1);
    assert!(validator.validate(&world.token()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn wa7_an_empty_key_set_is_a_value_and_trusts_nobody() {
    let (world, source, validator, theirs) = federated().await;

    let mut updates = source.updated();
    world.agent.federate_raw(OTHER, r#"{"keys": []}"#).unwrap();
    soon("the empty bundle", updates.changed()).await.unwrap();
    let unknown = Some(ValidateReason::KeyUnknown);
    assert_eq!(reason(validator.validate(&theirs)), unknown);
    assert_eq!(source.bundle_for_trust_domain(&td(OTHER)).unwrap().len(), 0);
    assert!(source.state().trust_domains()[1].last_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn wa9_an_empty_map_is_discarded_and_counted_and_the_stream_goes_on() {
    let world = World::new().await;
    let told = Arc::new(Told::default());
    let source = world.builder().metrics(told.clone()).build().await.unwrap();
    let validator = world.validator(&source);
    let replay = world.agent.replay();
    for _ in 0..3 {
        replay.send(NOTHING).await;
    }
    settle().await;
    assert_eq!(*told.errors.lock().unwrap(), ["empty-message"; 3]);
    assert!(validator.validate(&world.token()).is_ok());
    let state = source.state();
    assert_eq!(state.revision(), 1);
    assert!(state.is_discarding() && state.is_ready() && state.is_connected());
    let last = state.last_error().expect("told");
    assert_eq!(last.kind(), "empty-message");
    assert!(last.message().contains("discarded"), "{}", last.message());
    // The same stream brings the next good set, which ends the trouble.
    let other = Issuer::new(OTHER).unwrap();
    let sets = [entry(world.agent.issuer()), entry(&other)];
    let mut updates = source.updated();
    replay.send(sets).await;
    soon("the good set", updates.changed()).await.unwrap();
    assert_eq!(source.bundle_set().unwrap().len(), 2);
    assert!(source.state().last_error().is_none());
    assert_eq!(world.agent.counts().fetch_jwt_bundles, 1);
}

#[tokio::test(start_paused = true)]
async fn an_equal_set_is_told_to_nobody_and_the_keys_stay_the_same_ones() {
    let world = World::new().await;
    world.agent.rotate_now();
    world.agent.federate(OTHER).unwrap();
    let told = Arc::new(Told::default());
    let source = world.builder().metrics(told.clone()).build().await.unwrap();
    let keys = |source: &tower_spiffe::JwtSource| {
        let bundle = source.bundle_for_trust_domain(&td(TD)).unwrap();
        bundle.authorities().cloned().collect::<Vec<_>>()
    };
    let before = keys(&source);
    let updates = source.updated();
    let messages = world.agent.counts().bundle_messages;
    for n in 1..=5 {
        world.agent.send_again();
        let agent = &world.agent;
        eventually("the message", || {
            agent.counts().bundle_messages == messages + n
        })
        .await;
        settle().await;
        assert!(source.state().last_message().unwrap() <= millis(5));
        tokio::time::sleep(secs(1)).await;
    }
    assert_eq!((updates.last(), *told.updates.lock().unwrap()), (1, 1));
    let after = keys(&source);
    assert_eq!(before.len(), 2);
    assert!(before.iter().zip(&after).all(|(a, b)| Arc::ptr_eq(a, b)));
    // Nor is one that comes over another stream.
    world.agent.cut_connections().await;
    tokio::time::sleep(secs(2)).await;
    assert!(source.state().is_connected() && source.state().reconnects() > 0);
    assert_eq!((updates.last(), *told.updates.lock().unwrap()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_key_set_costs_its_trust_domain_the_update_and_no_other() {
    let world = World::new().await;
    let other = world.agent.federate(OTHER).unwrap();
    let told = Arc::new(Told::default());
    let source = world.builder().metrics(told.clone()).build().await.unwrap();
    let validator = world.validator(&source);
    let theirs = other.token("spiffe://other.test/web", AUD).sign();
    tokio::time::sleep(secs(10)).await;

    let mut updates = source.updated();
    world
        .agent
        .federate_raw(OTHER, "{\"keys\": [{\"kty")
        .unwrap();
    world.agent.federate_raw("new.test", "nonsense").unwrap();
    let new = world.agent.rotate_now();
    soon(
        "our own rotation",
        updates.wait_for({
            let source = source.clone();
            move |_| key_ids(&source, TD).contains(&new)
        }),
    )
    .await
    .unwrap();
    settle().await;

    // The other domain: its last good bundle, and the state says so.
    assert!(validator.validate(&theirs).is_ok());
    assert!(validator.validate(&world.token()).is_ok());
    let state = source.state();
    let [own, unread, theirs] = state.trust_domains() else {
        panic!("{state:?}");
    };
    assert_eq!(own.last_error(), None);
    assert_eq!(own.last_update(), Some(secs(0)));
    assert_eq!(theirs.trust_domain().name(), OTHER);
    let why = theirs.last_error().expect("told");
    assert!(why.contains("its JWK Set cannot be read"), "{why}");
    assert_eq!(theirs.last_update(), Some(secs(10)));
    // One that never had a bundle is not unknown: the trouble is on our side.
    assert_eq!(unread.trust_domain().name(), "new.test");
    assert_eq!((unread.last_update(), unread.key_ids().len()), (None, 0));
    let answer = source.bundle("new.test");
    let unknown = matches!(answer, BundleAnswer::UnknownTrustDomain);
    assert!(!unknown, "{answer:?}");
    assert!(matches!(
        source.bundle("unheard-of.test"),
        BundleAnswer::UnknownTrustDomain
    ));
    assert!(told.errors.lock().unwrap().contains(&"bundle-unreadable"));
    assert!(state.is_ready() && state.is_connected() && !state.is_healthy());

    // Readable again, it is told as mended.
    world.agent.federate_with(&other);
    world.agent.unfederate("new.test");
    let mended = || {
        source
            .state()
            .trust_domains()
            .iter()
            .all(|it| it.last_error().is_none())
    };
    eventually("a good set", mended).await;
    assert_eq!(world.agent.counts().fetch_jwt_bundles, 1);
}

#[tokio::test(start_paused = true)]
async fn limits_hold_before_work_and_cost_no_more_than_they_say() {
    let world = World::new().await;
    let other = world.agent.federate(OTHER).unwrap();
    let told = Arc::new(Told::default());
    let limits = ResourceLimits::default()
        .max_bundles(2)
        .max_bundle_jwks_bytes(2000);
    let builder = world.builder().resource_limits(limits);
    let source = builder.metrics(told.clone()).build().await.unwrap();
    let mut updates = source.updated();

    // One domain over its limit: the others update.
    let large = padded(&other.jwks(), 2001);
    world.agent.federate_raw(OTHER, large).unwrap();
    let new = world.agent.rotate_now();
    soon(
        "our own rotation",
        updates.wait_for({
            let source = source.clone();
            move |_| key_ids(&source, TD).contains(&new)
        }),
    )
    .await
    .unwrap();
    assert_eq!(key_ids(&source, OTHER), other.key_ids());
    let state = source.state();
    let why = state.trust_domains()[1]
        .last_error()
        .expect("told")
        .to_owned();
    assert!(why.contains("2001 bytes") && why.contains("2000"), "{why}");
    assert!(why.contains("max_bundle_jwks_bytes"), "{why}");
    // Just so many bytes are within it.
    let just = padded(&other.jwks(), 2000);
    world.agent.federate_raw(OTHER, just).unwrap();
    let mended = || source.state().trust_domains()[1].last_error().is_none();
    eventually("the mended set", mended).await;

    // A domain too many: the message is discarded whole, and the set before it stays.
    let revision = updates.last();
    let third = world.agent.federate("third.test").unwrap();
    let discarded = || source.state().last_error().is_some();
    eventually("the discarding", discarded).await;
    let state = source.state();
    let last = state.last_error().unwrap();
    assert_eq!(last.kind(), "too-many-bundles");
    assert!(last.message().contains("max_bundles"), "{}", last.message());
    assert_eq!(
        (state.revision(), state.trust_domains().len()),
        (revision, 2)
    );
    assert!(
        source
            .bundle_for_trust_domain(third.trust_domain())
            .is_err()
    );
    let errors = told.errors.lock().unwrap().clone();
    assert_eq!(errors.last(), Some(&"too-many-bundles"));
    assert!(errors.contains(&"bundle-too-large"));
    assert_eq!(world.agent.counts().fetch_jwt_bundles, 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_at_every_limit_at_once_is_taken() {
    let world = World::new().await;
    let limits = ResourceLimits::default()
        .max_bundles(50)
        .max_bundle_jwks_bytes(40_000);
    let source = world
        .builder()
        .resource_limits(limits)
        .build_lazy()
        .unwrap();
    let long = "t".repeat(tower_spiffe::identity::MAX_TRUST_DOMAIN_LEN - 3);
    let sets = (0..49).map(|n| {
        let issuer = Issuer::new(&format!("{long}.{n:02}")).unwrap();
        let (name, jwks) = entry(&issuer);
        (name, padded(&jwks, 40_000))
    });
    let own = entry(world.agent.issuer());
    let own = (own.0, padded(&own.1, 40_000));
    let replay = world.agent.replay();
    replay.send(sets.chain([own])).await;
    soon("the largest set", source.ready()).await.unwrap();
    assert_eq!(source.bundle_set().unwrap().len(), 50);
    assert!(source.state().last_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn rubbish_in_place_of_a_message_keeps_the_set_and_the_next_stream_mends_it() {
    let world = World::new().await;
    let source = world.source().await;
    let validator = world.validator(&source);
    tokio::time::sleep(secs(11)).await;
    world.agent.fail(Fault::NotProtobuf);
    world.agent.cut_connections().await;
    tokio::time::sleep(secs(5)).await;
    assert!(validator.validate(&world.token()).is_ok());
    let state = source.state();
    assert!(!state.is_connected());
    assert_eq!(state.last_error().expect("told").kind(), "invalid-answer");
    world.agent.recover();
    let waited = world.time_until(|| source.state().is_connected()).await;
    assert!(waited <= secs(10), "{waited:?}");
    assert!(source.state().last_error().is_none());
}
