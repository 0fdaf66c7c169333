//! Reconnects: immediate after a long connection, otherwise with backoff, and never in a storm.

use std::time::Duration;

use tokio::time::Instant;
use tower_spiffe::JwtSource;
use tower_spiffe::source::JwtSourceErrorReason;
use tower_spiffe::testing::{AgentCall, Fault};
use tower_spiffe::token::{GrpcCode, TokenErrorReason};

use crate::support::*;

/// A stream that stays open this long counts as healthy.
const HEALTHY: Duration = secs(10);

#[tokio::test(start_paused = true)]
async fn wa3_healthy_stream_reconnects_at_once() {
    let world = World::new().await;
    let source = world.source().await;
    for code in [
        GrpcCode::Ok,
        GrpcCode::Unavailable,
        GrpcCode::Internal,
        GrpcCode::Cancelled,
    ] {
        tokio::time::sleep(HEALTHY).await;
        let before = world.agent.counts().fetch_jwt_bundles;
        let replay = world.agent.replay();
        replay.end(code, "restarting").await;
        drop(replay);
        let opened = || world.agent.counts().fetch_jwt_bundles > before;
        let waited = world.time_until(opened).await;
        assert!(waited <= millis(5), "{code}: {waited:?}");
    }
    // The same if the whole connection closes.
    tokio::time::sleep(HEALTHY).await;
    let before = world.agent.counts();
    world.agent.cut_connections().await;
    let opened = || world.agent.counts().fetch_jwt_bundles > before.fetch_jwt_bundles;
    let waited = world.time_until(opened).await;
    assert!(waited <= millis(5), "{waited:?}");
    settle().await;
    let after = world.agent.counts();
    assert_eq!(after.connections, before.connections + 1);
    assert_eq!(after.fetch_jwt_bundles, before.fetch_jwt_bundles + 1);
    assert!(source.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn wa3_short_stream_reconnects_with_backoff() {
    let world = World::new().await;
    let _source = world.source().await;
    tokio::time::sleep(HEALTHY - millis(50)).await;
    let replay = world.agent.replay();
    replay.end(GrpcCode::Ok, "").await;
    drop(replay);
    let opened = world.openings(secs(1)).await;
    assert!(
        (millis(200)..=millis(401)).contains(&opened[0]),
        "{opened:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn single_messages_do_not_reset_backoff() {
    let (mut shortest, mut longest) = (Duration::MAX, Duration::ZERO);
    for seed in 0..12 {
        let world = World::new().await;
        world.agent.fail(Fault::HangUp);
        let source = tower_spiffe::testing::internals::seeded(world.builder(), seed)
            .build()
            .await
            .unwrap();
        let openings = world.openings(secs(60)).await;
        let mut before = Duration::ZERO;
        for (n, opened) in openings.iter().enumerate() {
            let wait = *opened - before;
            before = *opened;
            let ceiling = millis(200 << (n + 1).min(6)).min(secs(10));
            // Observed to within some milliseconds.
            assert!(wait + millis(3) >= millis(200), "{n}: {wait:?}");
            assert!(wait <= ceiling + millis(3), "{n}: {wait:?} of {ceiling:?}");
            if n >= 5 {
                shortest = shortest.min(wait);
                longest = longest.max(wait);
            }
        }
        assert!(source.state().reconnects as usize >= openings.len());
    }
    // Spread over the whole range, not only near its end.
    assert!(
        shortest < secs(2) && longest > secs(8),
        "{shortest:?} {longest:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_healthy_stream_resets_backoff() {
    let world = World::new().await;
    let source = world.source().await;
    world.agent.stop().await;
    tokio::time::sleep(secs(120)).await;
    world.agent.start_again().await.unwrap();
    world.time_until(|| source.state().connected).await;
    tokio::time::sleep(HEALTHY).await;
    // Unavailable again: backoff starts at the shortest wait.
    world.agent.fail(Fault::Refuse(GrpcCode::Unavailable));
    let openings = world.openings(secs(1)).await;
    assert!(openings[0] <= millis(5), "{openings:?}");
    let second = openings[1] - openings[0];
    assert!(second <= millis(403), "{openings:?}");
}

#[tokio::test(start_paused = true)]
async fn hour_without_agent_keeps_keys_with_few_calls() {
    let world = World::new().await;
    let source = world.source().await;
    let validator = world.validator(&source);
    for trouble in [
        Some(Fault::Refuse(GrpcCode::Unavailable)),
        Some(Fault::NotHttp2),
        None,
    ] {
        tokio::time::sleep(secs(60)).await;
        match &trouble {
            Some(fault) => world.agent.fail(fault.clone()),
            None => world.agent.stop().await,
        }
        if trouble.is_some() {
            world.agent.cut_connections().await;
        }
        let before = world.agent.counts();
        tokio::time::sleep(secs(59)).await;
        assert!(source.is_healthy(), "healthy during a restart");
        tokio::time::sleep(secs(3541)).await;
        let counts = world.agent.counts();
        let calls = counts.fetch_jwt_bundles - before.fetch_jwt_bundles;
        let connections = counts.connections - before.connections;
        // Five seconds apart on average.
        assert!(
            calls < 1200 && connections < 1200,
            "{trouble:?}: {counts:?}"
        );
        assert!(validator.validate(&world.token()).is_ok(), "{trouble:?}");
        let state = source.state();
        assert!(state.is_ready() && !state.connected && !state.is_healthy());
        world.agent.recover();
        world.agent.start_again().await.unwrap();
        let back = world.time_until(|| source.is_healthy()).await;
        assert!(back <= secs(11), "{back:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn ep12_permanent_errors_back_off_and_are_reported() {
    for code in [GrpcCode::InvalidArgument, GrpcCode::Unimplemented] {
        let world = World::new().await;
        let source = world.source().await;
        tokio::time::sleep(HEALTHY).await;
        world
            .agent
            .fail_call(AgentCall::FetchJwtBundles, Fault::Refuse(code));
        let openings = world.openings(secs(60)).await;
        assert!((5..=12).contains(&openings.len()), "{openings:?}");
        for pair in openings.windows(2) {
            let wait = pair[1] - pair[0];
            assert!(wait >= millis(4990) && wait <= millis(10_010), "{wait:?}");
        }
        // The set is kept, and the state has the error.
        assert!(world.validator(&source).validate(&world.token()).is_ok());
        let state = source.state();
        let rpc = state.last_error.clone().unwrap().rpc.unwrap();
        assert_eq!(rpc.code(), Some(code));
        assert!(!state.is_healthy() || state.connected);
        soon("what is there", source.ready()).await.unwrap();
        world.agent.recover();
        let back = world.time_until(|| source.is_healthy() && source.state().connected);
        assert!(back.await <= millis(10_010));
    }
}

#[tokio::test(start_paused = true)]
async fn slow_connection_attempt_times_out() {
    let dials = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let dialled = dials.clone();
    let source = JwtSource::builder()
        .connector(move || {
            dialled.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            std::future::pending::<std::io::Result<tokio::io::DuplexStream>>()
        })
        .build_lazy()
        .unwrap();
    tokio::time::sleep(millis(5100)).await;
    let state = source.state();
    let last = state.last_error.as_ref().expect("an error");
    assert_eq!(last.kind, "connect");
    let text = &last.text;
    assert!(text.contains("no connection within 5s"), "{text}");
    tokio::time::sleep(secs(60)).await;
    let dials = dials.load(std::sync::atomic::Ordering::Relaxed);
    assert!((3..30).contains(&dials), "{dials}");
}

#[tokio::test(start_paused = true)]
async fn call_timeout_replaces_a_dead_connection() {
    let world = World::new().await;
    let source = world.source().await;
    let mut updates = source.updated();
    world.agent.half_open();
    let new = world.agent.rotate_now();
    let began = Instant::now();
    let error = source.fetch_jwt_svid([AUD]).await.unwrap_err();
    let timed_out = JwtSourceErrorReason::Token(TokenErrorReason::Timeout);
    assert_eq!(error.reason(), timed_out);
    soon("the new key", updates.changed()).await.unwrap();
    assert!(began.elapsed() <= secs(36), "{:?}", began.elapsed());
    assert!(key_ids(&source, TD).contains(&new));
    source.fetch_jwt_svid([AUD]).await.unwrap();
    assert_eq!(world.agent.counts().connections, 2);
}

/// An immediate retry must not wait for a second deadline on the dead connection.
#[tokio::test(start_paused = true)]
async fn retry_after_timeout_uses_a_new_connection() {
    let world = World::new().await;
    let source = world.source().await;
    world.agent.half_open();
    let began = Instant::now();
    source.fetch_jwt_svid([AUD]).await.unwrap_err();
    source.fetch_jwt_svid([AUD]).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 35);
    // The stream uses the same new connection.
    tokio::time::sleep(secs(60)).await;
    let counts = world.agent.counts();
    assert_eq!((counts.connections, counts.fetch_jwt_bundles), (2, 2));
    assert!(source.is_healthy());
}

/// Calls that fail with their connection do not count against the next connection.
#[tokio::test(start_paused = true)]
async fn broken_connection_is_replaced_once() {
    let world = World::new().await;
    let source = world.source().await;
    tokio::time::sleep(HEALTHY).await;
    world.agent.fail_call(AgentCall::FetchJwtSvid, Fault::Hang);
    let calls: Vec<_> = (0..5)
        .map(|n| {
            let source = source.clone();
            let audience = format!("{AUD}/{n}");
            tokio::spawn(async move { source.fetch_jwt_svid([audience]).await })
        })
        .collect();
    let agent = &world.agent;
    eventually("the calls", || agent.counts().fetch_jwt_svid == 5).await;
    agent.cut_connections().await;
    for call in calls {
        let error = soon("its end", call).await.unwrap().unwrap_err();
        let broke = JwtSourceErrorReason::Token(TokenErrorReason::Unavailable);
        assert_eq!(error.reason(), broke, "{error}");
    }
    tokio::time::sleep(secs(60)).await;
    let counts = agent.counts();
    assert_eq!((counts.connections, counts.fetch_jwt_bundles), (2, 2));
    assert!(source.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn many_clients_reconnect_spread_out() {
    let world = World::new().await;
    let mut sources = Vec::new();
    for _ in 0..100 {
        let builder =
            tower_spiffe::testing::internals::seeded(world.builder(), sources.len() as u64);
        sources.push(builder.build().await.unwrap());
    }
    tokio::time::sleep(HEALTHY).await;
    // Unavailable for two minutes: afterwards every client waits within the longest span.
    world.agent.stop().await;
    tokio::time::sleep(secs(120)).await;
    world.agent.start_again().await.unwrap();
    let openings = world.openings(secs(11)).await;
    assert_eq!(openings.len(), 100);
    let mut in_each_second = [0; 11];
    for opened in openings {
        in_each_second[opened.as_secs() as usize] += 1;
    }
    // Without jitter most would be in one second.
    assert!(
        in_each_second.iter().all(|&some| some <= 35),
        "{in_each_second:?}"
    );
    assert!(sources.iter().all(JwtSource::is_healthy));
}
