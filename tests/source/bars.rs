//! The nine cases that each undid another implementation, and what happens here.

use tokio::time::{Instant, timeout};
use tower_spiffe::JwtSource;
use tower_spiffe::source::{JwtSourceErrorReason, ResourceLimits};
use tower_spiffe::testing::{AgentCall, Fault};
use tower_spiffe::token::{FetchSvidReason, GrpcCode};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn bar_1_dropping_one_of_many_clones_closes_nothing() {
    let world = World::new().await;
    let source = world.source().await;
    let clones = vec![source.clone(); 20];
    drop(clones);
    // Not only "still open": it still learns of a new key, over the same stream.
    let mut updates = source.updated();
    let new = world.agent.rotate_now();
    soon("the new key", updates.changed()).await.unwrap();
    assert!(key_ids(&source, TD).contains(&new));
    source.get_jwt_svid([AUD]).await.unwrap();
    let counts = world.agent.counts();
    assert_eq!((counts.connections, counts.fetch_jwt_bundles), (1, 1));
    assert_eq!((counts.open_connections, counts.open_streams), (1, 1));

    drop(source);
    let agent = &world.agent;
    eventually("the end", || agent.counts().open_connections == 0).await;
    assert_eq!(agent.counts().open_streams, 0);
}

#[tokio::test(start_paused = true)]
async fn bar_2_fifty_equal_fetches_at_once_are_one_call() {
    let world = World::new().await;
    let source = world.source().await;
    world
        .agent
        .fail_call(AgentCall::FetchJwtSvid, Fault::Slow(millis(50)));
    let fetches = (0..50).map(|_| source.get_jwt_svid([AUD]));
    let tokens = futures_util::future::join_all(fetches).await;
    let first = tokens[0].as_ref().unwrap().token();
    assert!(
        tokens
            .iter()
            .all(|it| it.as_ref().unwrap().token() == first)
    );
    let counts = world.agent.counts();
    assert_eq!((counts.fetch_jwt_svid, counts.connections), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn bar_3_a_hundred_calls_to_an_agent_that_is_unavailable_make_no_storm() {
    for one_by_one in [false, true] {
        let world = World::new().await;
        let source = world.source().await;
        let before = world.agent.counts();
        let unavailable = Fault::Refuse(GrpcCode::Unavailable);
        world.agent.fail_call(AgentCall::FetchJwtSvid, unavailable);
        let calls = async {
            if one_by_one {
                for _ in 0..100 {
                    source.get_jwt_svid([AUD]).await.unwrap_err();
                }
            } else {
                let calls = (0..100).map(|_| source.get_jwt_svid([AUD]));
                futures_util::future::join_all(calls).await;
            }
        };
        // For as long as others were watched; what comes later is paced.
        let _ = timeout(millis(100), calls).await;
        let counts = world.agent.counts();
        let calls = counts.fetch_jwt_svid - before.fetch_jwt_svid;
        assert!((1..=2).contains(&calls), "{counts:?}");
        assert!(counts.connections - before.connections <= 1, "{counts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn bar_4_an_agent_that_accepts_and_never_answers_is_met_with_deadlines() {
    // It speaks HTTP/2 and answers no call ...
    let world = World::new().await;
    world.agent.fail(Fault::Hang);
    let began = Instant::now();
    let error = world.builder().build().await.unwrap_err();
    assert_eq!(error.reason(), JwtSourceErrorReason::InitialSync);
    assert!(began.elapsed() <= secs(31));
    assert!(error.to_string().contains("gave no answer"), "{error}");

    // ... or says nothing at all, ...
    let (builder, _held) = silent();
    let began = Instant::now();
    let error = builder.build().await.unwrap_err();
    assert_eq!(error.reason(), JwtSourceErrorReason::InitialSync);
    assert!(began.elapsed() <= secs(31));
    // ... for longer than one attempt: each ends, and the next one is on another connection.
    let (builder, held) = silent();
    let source = builder.build_lazy().unwrap();
    tokio::time::sleep(secs(100)).await;
    let last = source.state().last_error().expect("told").clone();
    assert_eq!(last.kind(), "timeout", "{}", last.message());
    assert!(held.lock().unwrap().len() >= 3);

    // Nor does a call for a token wait for ever.
    world.agent.recover();
    let source = world.source().await;
    world.agent.fail_call(AgentCall::FetchJwtSvid, Fault::Hang);
    let began = Instant::now();
    let error = source.fetch_jwt_svid([AUD]).await.unwrap_err();
    let timed_out = JwtSourceErrorReason::Token(FetchSvidReason::Timeout);
    assert_eq!(error.reason(), timed_out, "{error}");
    assert!(error.is_retryable());
    assert_eq!(began.elapsed().as_secs(), 35);
    source.get_jwt_svid([AUD]).await.unwrap_err();
    assert!(began.elapsed() <= secs(35 + 35));
}

type Held = std::sync::Arc<std::sync::Mutex<Vec<tokio::io::DuplexStream>>>;

/// A source whose every connection is accepted and never read.
fn silent() -> (tower_spiffe::source::JwtSourceBuilder, Held) {
    let held = Held::default();
    let holds = held.clone();
    let builder = JwtSource::builder().connector(move || {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        holds.lock().unwrap().push(theirs);
        async { Ok(ours) }
    });
    (builder, held)
}

#[tokio::test(start_paused = true)]
async fn bar_5_a_half_open_connection_is_noticed_within_six_minutes_and_told() {
    let world = World::new().await;
    let source = world.source().await;
    // At the worst moment: the last ping has just been answered.
    tokio::time::sleep(secs(306)).await;
    assert!(source.is_healthy());
    world.agent.fail(Fault::HalfOpen);
    let noticed = world.time_until(|| !source.state().is_connected()).await;
    assert!(noticed <= secs(360), "{noticed:?}");
    let state = source.state();
    let last = state.last_error().expect("told");
    assert!(last.message().contains("connection"), "{}", last.message());
    assert!(state.last_contact().expect("once") >= secs(300));
    // With nothing behind the new connections either, it is unhealthy until there is.
    tokio::time::sleep(secs(61)).await;
    assert!(!source.is_healthy() && source.is_ready());
    world.agent.recover();
    let new = world.agent.rotate_now();
    let agent = &world.agent;
    let waited = world.time_until(|| source.is_healthy()).await;
    assert!(waited <= secs(42), "{waited:?} {:?}", agent.counts());
    assert!(key_ids(&source, TD).contains(&new));
}

#[tokio::test(start_paused = true)]
async fn bar_6_an_agent_that_sends_one_message_and_hangs_up_is_not_stormed() {
    for fault in [Fault::HangUp, Fault::HangUpWith(GrpcCode::Unavailable)] {
        for seed in 0..20 {
            let world = World::new().await;
            world.agent.fail(fault.clone());
            let source = world.builder().reconnect_seed(seed).build().await.unwrap();
            let reconnects = world.openings(secs(10)).await.len();
            assert!((1..=10).contains(&reconnects), "{reconnects}");
            // It goes on judging by what it has.
            assert!(world.validator(&source).validate(&world.token()).is_ok());
            assert!(world.agent.counts().connections <= 11);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bar_7_a_key_without_an_id_in_a_federated_bundle_costs_that_key_alone() {
    let world = World::new().await;
    let other = world.agent.federate(OTHER).unwrap();
    let source = world.source().await;
    let good = other.signing_key_id();

    let mut jwks: serde_json::Value = serde_json::from_slice(&other.jwks()).unwrap();
    let mut nameless = jwks["keys"][0].clone();
    nameless.as_object_mut().unwrap().remove("kid");
    jwks["keys"].as_array_mut().unwrap().insert(0, nameless);
    world.agent.federate_raw(OTHER, jwks.to_string()).unwrap();
    let mut updates = source.updated();
    let new = world.agent.rotate_now();
    soon("our own rotation", updates.changed()).await.unwrap();

    assert!(key_ids(&source, TD).contains(&new));
    assert_eq!(key_ids(&source, OTHER), [good]);
    let validator = world.validator(&source);
    assert!(validator.validate(&world.token()).is_ok());
    let theirs = other.token("spiffe://other.test/web", AUD).sign();
    assert!(validator.validate(&theirs).is_ok());
    let state = source.state();
    let told = &state.trust_domains()[1];
    assert_eq!((told.ignored_keys(), told.last_error()), (1, None));
}

#[tokio::test(start_paused = true)]
async fn bar_8_a_message_of_five_megabytes_within_the_limits_works() {
    // Of one trust domain that is allowed so much ...
    let world = World::new().await;
    world
        .agent
        .fail_call(AgentCall::FetchJwtBundles, Fault::Oversized(5 << 20));
    let limits = ResourceLimits::default().max_bundle_jwks_bytes(6 << 20);
    let source = world
        .builder()
        .resource_limits(limits)
        .build()
        .await
        .unwrap();
    assert!(world.validator(&source).validate(&world.token()).is_ok());

    // ... and of two, with nothing but the defaults.
    let world = World::new().await;
    let other = world.agent.federate(OTHER).unwrap();
    let large = padded(&other.jwks(), 5 << 19);
    world.agent.federate_raw(OTHER, large).unwrap();
    world
        .agent
        .fail_call(AgentCall::FetchJwtBundles, Fault::Oversized(5 << 19));
    let source = world.source().await;
    assert_eq!(key_ids(&source, OTHER), other.key_ids());
    assert!(world.validator(&source).validate(&world.token()).is_ok());
    let counts = world.agent.counts();
    assert_eq!((counts.connections, counts.fetch_jwt_bundles), (1, 1));
}

#[test]
fn bar_9_an_unset_endpoint_variable_is_an_error_at_once() {
    let told = crate::endpoints::told_with(None);
    assert!(told.contains("SPIFFE_ENDPOINT_SOCKET is unset"), "{told}");
    assert!(told.contains("set it to unix:///"), "{told}");
}
