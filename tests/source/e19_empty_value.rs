//! E19: an empty value on the bundle stream means that the trust domain has no keys now (Workload
//! API section 4.4).

use tower_spiffe::verify::ValidateReason;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn e19_empty_values_revoke_on_the_stream() {
    for empty in ["", r#"{"keys":null}"#, r#"{"keys":[]}"#] {
        let world = World::new().await;
        let other = world.agent.federate(OTHER).unwrap();
        let source = world.source().await;
        let validator = world.validator(&source);
        let theirs = other.token("spiffe://other.test/web", AUD).sign();
        assert!(validator.validate(&theirs).is_ok());
        let full = String::from_utf8(world.agent.issuer().jwks()).unwrap();
        let name = format!("spiffe://{OTHER}");
        let own = format!("spiffe://{TD}");

        let replay = world.agent.replay();
        replay
            .send([(own.as_str(), full.clone()), (&name, empty.to_owned())])
            .await;
        eventually("no keys", || key_ids(&source, OTHER).is_empty()).await;
        let unknown = Some(ValidateReason::KeyUnknown);
        assert_eq!(reason(validator.validate(&theirs)), unknown, "{empty:?}");
        assert!(validator.validate(&world.token()).is_ok(), "{empty:?}");
        let state = source.state();
        assert!(state.is_healthy(), "{empty:?}: {state:?}");
        assert_eq!(
            state.trust_domains.len(),
            2,
            "both are known, one without keys"
        );

        // Restored keys are valid again.
        let back = String::from_utf8(other.jwks()).unwrap();
        replay
            .send([(own.as_str(), full.clone()), (&name, back)])
            .await;
        eventually("keys", || key_ids(&source, OTHER) == other.key_ids()).await;
        assert!(validator.validate(&theirs).is_ok());
    }
}

/// The only trust domain is empty in the first message. The source still starts.
#[tokio::test(start_paused = true)]
async fn e19_a_source_starts_with_an_empty_value() {
    let world = World::new().await;
    let replay = world.agent.replay();
    let own = format!("spiffe://{TD}");
    let building = world.builder().build();
    let (source, ()) = tokio::join!(building, replay.send([(own.as_str(), "")]));
    let source = source.unwrap();
    let validator = world.validator(&source);
    let unknown = Some(ValidateReason::KeyUnknown);
    assert_eq!(reason(validator.validate(&world.token())), unknown);
    assert!(source.is_healthy());
}
