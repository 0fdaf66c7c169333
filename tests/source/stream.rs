//! The effect of each bundle message on a source. Parsing has its own unit tests.

use std::sync::{Arc, Mutex};

use tower_spiffe::bundle::{BundleAnswer, BundleSource};
use tower_spiffe::metrics::MetricsRecorder;
use tower_spiffe::source::ResourceLimits;
use tower_spiffe::testing::{Fault, Issuer};
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::{JwtSource, Validator};

use crate::support::*;

const NOTHING: [(&str, &str); 0] = [];

/// Records error kinds and counts updates.
#[derive(Default)]
struct Recorded {
    errors: Mutex<Vec<&'static str>>,
    updates: Mutex<u32>,
}

impl MetricsRecorder for Recorded {
    fn record_error(&self, kind: &'static str) {
        self.errors.lock().unwrap().push(kind);
    }

    fn record_update(&self) {
        *self.updates.lock().unwrap() += 1;
    }
}

/// A source with a federated trust domain, and a valid token of that domain.
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
async fn wa4_wa8_each_message_replaces_the_whole_set() {
    let (world, source, validator, theirs) = federated().await;

    let mut updates = source.updated();
    world.agent.unfederate(OTHER);
    soon("the smaller set", updates.changed()).await.unwrap();
    let unknown = Some(ValidateReason::TrustDomainUnknown);
    assert_eq!(reason(validator.validate(&theirs)), unknown);
    assert_eq!(source.bundle_set().unwrap().len(), 1);
    assert_eq!(source.state().trust_domains.len(), 1);
    assert!(validator.validate(&world.token()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn wa7_an_empty_key_set_trusts_no_key() {
    let (world, source, validator, theirs) = federated().await;

    let mut updates = source.updated();
    world.agent.federate_raw(OTHER, r#"{"keys": []}"#).unwrap();
    soon("the empty bundle", updates.changed()).await.unwrap();
    let unknown = Some(ValidateReason::KeyUnknown);
    assert_eq!(reason(validator.validate(&theirs)), unknown);
    assert_eq!(source.bundle_for_trust_domain(&td(OTHER)).unwrap().len(), 0);
    assert!(source.state().trust_domains[1].last_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn wa9_an_empty_map_is_discarded_and_counted() {
    let world = World::new().await;
    let (source, recorded) = world.recorded_source::<Recorded>().await;
    let validator = world.validator(&source);
    let replay = world.agent.replay();
    for _ in 0..3 {
        replay.send(NOTHING).await;
    }
    settle().await;
    assert_eq!(*recorded.errors.lock().unwrap(), ["empty-message"; 3]);
    assert!(validator.validate(&world.token()).is_ok());
    let state = source.state();
    assert_eq!(state.revision, 1);
    assert!(state.discarding && state.is_ready() && state.connected);
    let last = state.last_error.as_ref().expect("an error");
    assert_eq!(last.kind, "empty-message");
    assert!(last.text.contains("discarded"), "{}", last.text);
    // The same stream delivers the next good set, which clears the error.
    let other = Issuer::new(OTHER).unwrap();
    let sets = [entry(world.agent.issuer()), entry(&other)];
    let mut updates = source.updated();
    replay.send(sets).await;
    soon("the good set", updates.changed()).await.unwrap();
    assert_eq!(source.bundle_set().unwrap().len(), 2);
    assert!(source.state().last_error.is_none());
    assert_eq!(world.agent.counts().fetch_jwt_bundles, 1);
}

#[tokio::test(start_paused = true)]
async fn equal_sets_are_not_published() {
    let world = World::new().await;
    world.agent.rotate_now();
    world.agent.federate(OTHER).unwrap();
    let (source, recorded) = world.recorded_source::<Recorded>().await;
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
        assert!(source.state().last_message.unwrap() <= millis(5));
        tokio::time::sleep(secs(1)).await;
    }
    assert_eq!((updates.last(), *recorded.updates.lock().unwrap()), (1, 1));
    let after = keys(&source);
    assert_eq!(before.len(), 2);
    assert!(before.iter().zip(&after).all(|(a, b)| Arc::ptr_eq(a, b)));
    // The same for an equal set on another stream.
    world.agent.cut_connections().await;
    tokio::time::sleep(secs(2)).await;
    assert!(source.state().connected && source.state().reconnects > 0);
    assert_eq!((updates.last(), *recorded.updates.lock().unwrap()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn unreadable_key_set_affects_only_its_domain() {
    let world = World::new().await;
    let other = world.agent.federate(OTHER).unwrap();
    let (source, recorded) = world.recorded_source::<Recorded>().await;
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
        "the rotation",
        updates.wait_for({
            let source = source.clone();
            move |_| key_ids(&source, TD).contains(&new)
        }),
    )
    .await
    .unwrap();
    settle().await;

    // The other domain keeps its last good bundle, and the state has the error.
    assert!(validator.validate(&theirs).is_ok());
    assert!(validator.validate(&world.token()).is_ok());
    let state = source.state();
    let [own, unread, theirs] = &*state.trust_domains else {
        panic!("{state:?}");
    };
    assert_eq!(own.last_error, None);
    assert_eq!(own.last_update, Some(secs(0)));
    assert_eq!(theirs.trust_domain.name(), OTHER);
    let why = theirs.last_error.as_ref().expect("an error");
    assert!(why.contains("its JWK Set cannot be read"), "{why}");
    assert_eq!(theirs.last_update, Some(secs(10)));
    // A domain that never had a bundle is not unknown: its error is temporary.
    assert_eq!(unread.trust_domain.name(), "new.test");
    assert_eq!((unread.last_update, unread.key_ids.len()), (None, 0));
    let answer = source.bundle("new.test");
    let unknown = matches!(answer, BundleAnswer::UnknownTrustDomain);
    assert!(!unknown, "{answer:?}");
    assert!(matches!(
        source.bundle("unheard-of.test"),
        BundleAnswer::UnknownTrustDomain
    ));
    assert!(
        recorded
            .errors
            .lock()
            .unwrap()
            .contains(&"bundle-unreadable")
    );
    assert!(state.is_ready() && state.connected && !state.is_healthy());

    // When it is readable again, the end of the error is published.
    world.agent.federate_with(&other);
    world.agent.unfederate("new.test");
    let readable = || {
        source
            .state()
            .trust_domains
            .iter()
            .all(|it| it.last_error.is_none())
    };
    eventually("a good set", readable).await;
    assert_eq!(world.agent.counts().fetch_jwt_bundles, 1);
}

#[tokio::test(start_paused = true)]
async fn exceeded_limits_discard_only_what_they_cover() {
    let world = World::new().await;
    let other = world.agent.federate(OTHER).unwrap();
    let recorded = Arc::new(Recorded::default());
    let limits = ResourceLimits::default()
        .max_bundles(2)
        .max_bundle_jwks_bytes(2000);
    let builder = world.builder().resource_limits(limits);
    let source = builder.metrics(recorded.clone()).build().await.unwrap();
    let mut updates = source.updated();

    // One domain exceeds its limit; the others update.
    let large = padded(&other.jwks(), 2001);
    world.agent.federate_raw(OTHER, large).unwrap();
    let new = world.agent.rotate_now();
    soon(
        "the rotation",
        updates.wait_for({
            let source = source.clone();
            move |_| key_ids(&source, TD).contains(&new)
        }),
    )
    .await
    .unwrap();
    assert_eq!(key_ids(&source, OTHER), other.key_ids());
    let state = source.state();
    let why = state.trust_domains[1].last_error.clone().expect("an error");
    assert!(why.contains("2001 bytes") && why.contains("2000"), "{why}");
    assert!(why.contains("max_bundle_jwks_bytes"), "{why}");
    // Exactly at the limit is allowed.
    let just = padded(&other.jwks(), 2000);
    world.agent.federate_raw(OTHER, just).unwrap();
    let readable = || source.state().trust_domains[1].last_error.is_none();
    eventually("the readable set", readable).await;

    // With one domain too many, the whole message is discarded, and the last set is kept.
    let revision = updates.last();
    let third = world.agent.federate("third.test").unwrap();
    let discarded = || source.state().last_error.is_some();
    eventually("the discarding", discarded).await;
    let state = source.state();
    let last = state.last_error.as_ref().unwrap();
    assert_eq!(last.kind, "too-many-bundles");
    assert!(last.text.contains("max_bundles"), "{}", last.text);
    assert_eq!((state.revision, state.trust_domains.len()), (revision, 2));
    assert!(
        source
            .bundle_for_trust_domain(third.trust_domain())
            .is_err()
    );
    let errors = recorded.errors.lock().unwrap().clone();
    assert_eq!(errors.last(), Some(&"too-many-bundles"));
    assert!(errors.contains(&"bundle-too-large"));
    assert_eq!(world.agent.counts().fetch_jwt_bundles, 1);
}

#[tokio::test(start_paused = true)]
async fn message_at_every_limit_is_accepted() {
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
    assert!(source.state().last_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn malformed_message_keeps_the_set() {
    let world = World::new().await;
    let source = world.source().await;
    let validator = world.validator(&source);
    tokio::time::sleep(secs(11)).await;
    world.agent.fail(Fault::NotProtobuf);
    world.agent.cut_connections().await;
    tokio::time::sleep(secs(5)).await;
    assert!(validator.validate(&world.token()).is_ok());
    let state = source.state();
    assert!(!state.connected);
    assert_eq!(
        state.last_error.as_ref().expect("an error").kind,
        "invalid-answer"
    );
    world.agent.recover();
    let waited = world.time_until(|| source.state().connected).await;
    assert!(waited <= secs(10), "{waited:?}");
    assert!(source.state().last_error.is_none());
}
