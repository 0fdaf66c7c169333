//! E23: an entry with an invalid trust domain name does not affect other entries.

use tower_spiffe::verify::ValidateReason;

use crate::support::*;

const NO_KEYS: &str = r#"{"keys": []}"#;

#[tokio::test(start_paused = true)]
async fn e23_invalid_name_affects_only_its_entry() {
    let world = World::new().await;
    let other = world.agent.federate(OTHER).unwrap();
    let source = world.source().await;
    let validator = world.validator(&source);
    let theirs = other.token("spiffe://other.test/web", AUD).sign();
    let replay = world.agent.replay();
    let jwks = String::from_utf8(other.jwks()).unwrap();
    // The keys of this trust domain are revoked, and the other name is mistyped.
    let own = format!("spiffe://{TD}");
    replay
        .send([
            (own.as_str(), NO_KEYS.to_owned()),
            ("spiffe://Other.Test", jwks),
        ])
        .await;
    eventually("the revocation", || key_ids(&source, TD).is_empty()).await;
    let unknown = Some(ValidateReason::KeyUnknown);
    assert_eq!(reason(validator.validate(&world.token())), unknown);
    let removed = Some(ValidateReason::TrustDomainUnknown);
    assert_eq!(reason(validator.validate(&theirs)), removed);
}

#[tokio::test(start_paused = true)]
async fn e23_message_without_valid_names_is_discarded() {
    let world = World::new().await;
    let source = world.source().await;
    let validator = world.validator(&source);
    let replay = world.agent.replay();
    replay
        .send([("spiffe://X", NO_KEYS), ("", ""), ("spiffe://a b", NO_KEYS)])
        .await;
    eventually("the discarding", || source.state().discarding).await;
    assert!(
        validator.validate(&world.token()).is_ok(),
        "the last set is kept"
    );
    let state = source.state();
    assert!(!state.is_healthy() && state.connected);
    let error = state.last_error.as_ref().unwrap();
    assert_eq!(error.kind, "bundle-unnamed");
    assert!(error.text.contains("no trust domain has a valid name"));
    // One valid name is enough.
    let own = format!("spiffe://{TD}");
    replay
        .send([(own.as_str(), NO_KEYS), ("spiffe://X", NO_KEYS)])
        .await;
    eventually("the next set", || key_ids(&source, TD).is_empty()).await;
    assert!(!source.state().discarding);
}
