//! Nine cases that broke other implementations, and their results here.

use tokio::time::{Instant, timeout};
use tower_spiffe::JwtSource;
use tower_spiffe::source::{JwtSourceErrorReason, ResourceLimits};
use tower_spiffe::testing::{AgentCall, Fault};
use tower_spiffe::token::{GrpcCode, TokenErrorReason};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn bar_1_dropping_a_clone_closes_nothing() {
    let world = World::new().await;
    let source = world.source().await;
    let clones = vec![source.clone(); 20];
    drop(clones);
    // The stream must still deliver new keys, not only stay open.
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
async fn bar_2_fifty_equal_fetches_share_one_call() {
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
async fn bar_3_unavailable_agent_gets_few_calls() {
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
        // Counted over 15 seconds, like the other implementations. Later retries are paced.
        let _ = timeout(millis(100), calls).await;
        let counts = world.agent.counts();
        let calls = counts.fetch_jwt_svid - before.fetch_jwt_svid;
        assert!((1..=2).contains(&calls), "{counts:?}");
        assert!(counts.connections - before.connections <= 1, "{counts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn bar_4_unresponsive_agent_times_out() {
    // It accepts HTTP/2 and answers no call ...
    let world = World::new().await;
    world.agent.fail(Fault::Hang);
    let began = Instant::now();
    let error = world.builder().build().await.unwrap_err();
    assert_eq!(error.reason(), JwtSourceErrorReason::InitialSync);
    assert!(began.elapsed() <= secs(31));
    assert!(error.to_string().contains("did not respond"), "{error}");

    // ... or sends nothing at all, ...
    let (builder, _held) = silent();
    let began = Instant::now();
    let error = builder.build().await.unwrap_err();
    assert_eq!(error.reason(), JwtSourceErrorReason::InitialSync);
    assert!(began.elapsed() <= secs(31));
    // ... for longer than one attempt. Each attempt ends, and the next one uses a new connection.
    let (builder, held) = silent();
    let source = builder.build_lazy().unwrap();
    tokio::time::sleep(secs(100)).await;
    let last = source.state().last_error.expect("an error").clone();
    assert_eq!(last.kind, "timeout", "{}", last.text);
    assert!(held.lock().unwrap().len() >= 3);

    // A call for a token times out too.
    world.agent.recover();
    let source = world.source().await;
    world.agent.fail_call(AgentCall::FetchJwtSvid, Fault::Hang);
    let began = Instant::now();
    let error = source.fetch_jwt_svid([AUD]).await.unwrap_err();
    let timed_out = JwtSourceErrorReason::Token(TokenErrorReason::Timeout);
    assert_eq!(error.reason(), timed_out, "{error}");
    assert!(error.is_retryable());
    assert_eq!(began.elapsed().as_secs(), 35);
    source.get_jwt_svid([AUD]).await.unwrap_err();
    assert!(began.elapsed() <= secs(35 + 35));
}

type Held = std::sync::Arc<std::sync::Mutex<Vec<tokio::io::DuplexStream>>>;

/// A source whose connections are accepted and never read.
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
async fn bar_5_half_open_connection_is_reported_within_six_minutes() {
    let world = World::new().await;
    let source = world.source().await;
    // The worst moment: the last ping has just been answered.
    tokio::time::sleep(secs(306)).await;
    assert!(source.is_healthy());
    world.agent.fail(Fault::HalfOpen);
    let noticed = world.time_until(|| !source.state().connected).await;
    assert!(noticed <= secs(360), "{noticed:?}");
    let state = source.state();
    let last = state.last_error.as_ref().expect("an error");
    assert!(last.text.contains("connection"), "{}", last.text);
    assert!(state.last_contact.expect("once") >= secs(300));
    // New connections get no response either. The source is unhealthy until one does.
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
async fn bar_6_agent_that_disconnects_gets_few_calls() {
    for fault in [Fault::HangUp, Fault::HangUpWith(GrpcCode::Unavailable)] {
        for seed in 0..20 {
            let world = World::new().await;
            world.agent.fail(fault.clone());
            let source = tower_spiffe::testing::internals::seeded(world.builder(), seed)
                .build()
                .await
                .unwrap();
            let reconnects = world.openings(secs(10)).await.len();
            assert!((1..=10).contains(&reconnects), "{reconnects}");
            // It keeps validating with the bundles it has.
            assert!(world.validator(&source).validate(&world.token()).is_ok());
            assert!(world.agent.counts().connections <= 11);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bar_7_key_without_id_is_ignored_alone() {
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
    soon("the rotation", updates.changed()).await.unwrap();

    assert!(key_ids(&source, TD).contains(&new));
    assert_eq!(key_ids(&source, OTHER), [good]);
    let validator = world.validator(&source);
    assert!(validator.validate(&world.token()).is_ok());
    let theirs = other.token("spiffe://other.test/web", AUD).sign();
    assert!(validator.validate(&theirs).is_ok());
    let state = source.state();
    let federated = &state.trust_domains[1];
    assert_eq!(
        (federated.ignored_keys, federated.last_error.as_deref()),
        (1, None)
    );
}

#[tokio::test(start_paused = true)]
async fn bar_8_message_of_five_megabytes_is_accepted() {
    // One trust domain with a raised limit ...
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

    // ... and two trust domains with the default limits.
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
fn bar_9_unset_endpoint_variable_fails_at_once() {
    let text = crate::endpoints::error_of_new(None);
    assert!(text.contains("SPIFFE_ENDPOINT_SOCKET is unset"), "{text}");
    assert!(text.contains("set it to unix:///"), "{text}");
}
