//! Keepalive pings. A grpc-go server with default settings disconnects clients that ping too often.

use tower_spiffe::testing::{AgentCall, Fault};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn pings_on_a_quiet_day_are_spaced() {
    let world = World::new().await;
    let source = world.source().await;
    tokio::time::sleep(secs(24 * 3600)).await;
    let counts = world.agent.counts();
    assert_eq!(
        (counts.too_many_pings, counts.connections),
        (0, 1),
        "{counts:?}"
    );
    assert!((200..=290).contains(&counts.pings), "{counts:?}");
    // Answered pings count as contact, although no message came all day.
    let state = source.state();
    assert!(state.last_contact.unwrap() <= secs(306));
    assert!(state.last_message.unwrap() >= secs(24 * 3600));
    assert!(state.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn pings_on_a_busy_day_are_spaced() {
    let world = World::new().await;
    let source = world.source().await;
    for n in 0..400u64 {
        tokio::time::sleep(secs(40 + n % 97)).await;
        source.fetch_jwt_svid([AUD]).await.unwrap();
        match n % 20 {
            3 => drop(world.agent.rotate_now()),
            11 => world.agent.send_again(),
            _ => {}
        }
    }
    let counts = world.agent.counts();
    assert_eq!(
        (counts.too_many_pings, counts.connections),
        (0, 1),
        "{counts:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_stream_there_is_no_ping() {
    let world = World::new().await;
    let source = world.source().await;
    tokio::time::sleep(secs(10)).await;
    // The stream fails for an hour; tokens are fetched over the same connection.
    let unavailable = Fault::Refuse(tower_spiffe::token::GrpcCode::Unavailable);
    world
        .agent
        .fail_call(AgentCall::FetchJwtBundles, unavailable);
    let before = world.agent.counts().pings;
    for _ in 0..60 {
        tokio::time::sleep(secs(60)).await;
        source.fetch_jwt_svid([AUD]).await.unwrap();
    }
    let counts = world.agent.counts();
    assert_eq!(
        (counts.too_many_pings, counts.pings),
        (0, before),
        "{counts:?}"
    );
}
