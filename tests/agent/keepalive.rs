//! The ping limits of a grpc-go server with default settings, with real HTTP/2 clients.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower_spiffe::testing::FakeAgent;

use crate::support::*;

/// A client that pings at this interval, with an open stream.
async fn pinging(agent: &FakeAgent, every: Duration) -> Client {
    let endpoint = plain()
        .http2_keep_alive_interval(every)
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(true);
    dial_in_memory_as(endpoint, agent).await
}

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(start_paused = true)]
async fn client_that_pings_too_often_is_disconnected() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let client = pinging(&agent, Duration::from_secs(60)).await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    let ended = tokio::time::timeout(HOUR, stream.message()).await.unwrap();
    assert!(ended.is_err());
    let counts = agent.counts();
    assert_eq!(counts.too_many_pings, 1);
    // The first ping follows a message; the next three are too early.
    assert_eq!(counts.pings, 4);
}

#[tokio::test(start_paused = true)]
async fn client_that_pings_rarely_stays_connected() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let client = pinging(&agent, Duration::from_secs(301)).await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    let ended = tokio::time::timeout(5 * HOUR, stream.message()).await;
    assert!(ended.is_err(), "{ended:?} {:?}", agent.counts());
    let counts = agent.counts();
    assert_eq!(counts.too_many_pings, 0);
    assert!(counts.pings > 50, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn idle_client_may_ping_every_two_hours() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let client = pinging(&agent, Duration::from_secs(301)).await;
    client.token(AUD).await.unwrap();
    tokio::time::sleep(5 * HOUR).await;
    assert!(agent.counts().too_many_pings > 0);
}

#[tokio::test(start_paused = true)]
async fn ping_limit_can_be_disabled() {
    let agent = FakeAgent::builder(TD)
        .enforce_keepalive(false)
        .start_in_memory()
        .await
        .unwrap();
    let client = pinging(&agent, Duration::from_secs(1)).await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    let hundred = Duration::from_millis(100_500);
    assert!(
        tokio::time::timeout(hundred, stream.message())
            .await
            .is_err()
    );
    assert!(agent.counts().pings >= 90);
    assert_eq!(agent.counts().too_many_pings, 0);
}

#[tokio::test(start_paused = true)]
async fn half_open_connection_answers_no_pings() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let client = pinging(&agent, Duration::from_secs(301)).await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    agent.half_open();
    let ended = tokio::time::timeout(Duration::from_secs(6 * 60), stream.message()).await;
    assert!(ended.expect("not noticed within six minutes").is_err());
}

#[tokio::test(start_paused = true)]
async fn goaway_frame_has_the_reason() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let mut io = agent.connector()().await.unwrap();
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for _ in 0..4 {
        said.extend(b"\0\0\x08\x06\0\0\0\0\0_a_ping_");
    }
    io.write_all(&said).await.unwrap();
    let mut heard = Vec::new();
    io.read_to_end(&mut heard).await.unwrap();
    // GOAWAY, last stream 0, ENHANCE_YOUR_CALM.
    let goaway = b"\0\0\x16\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0btoo_many_pings";
    assert!(heard.ends_with(goaway), "{heard:?}");
}
