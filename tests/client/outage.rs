//! An unavailable or hanging agent, with a source and a layer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{Request, Response};
use tower::{Service, ServiceExt, service_fn};
use tower_spiffe::client::AddJwtSvid;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::{FakeAgent, Fault, PausedClock};
use tower_spiffe::{JwtSource, SvidCache};

use crate::layer::{fixed, to};
use crate::support::{START, millis, request, secs, timed};

/// Returns an agent on paused time, and a source that does not reconnect its bundle stream within
/// the hour. So fetches of tokens must connect by themselves.
async fn deployment() -> (FakeAgent, JwtSource) {
    let clock = Arc::new(PausedClock::new(UnixTime::from_secs(START)));
    let agent = FakeAgent::builder("x")
        .clock(clock.clone())
        .start_in_memory()
        .await
        .unwrap();
    let source = JwtSource::builder()
        .connector(agent.connector())
        .clock(clock)
        .reconnect_backoff(secs(3600), secs(3600))
        .build()
        .await
        .unwrap();
    (agent, source)
}

/// Sends a request through the layer; returns whether it was sent with a token.
async fn call(source: &JwtSource) -> bool {
    let look = service_fn(|request: Request<()>| async move {
        assert!(request.headers().contains_key(AUTHORIZATION));
        Ok::<_, Infallible>(Response::new(()))
    });
    let mut client = AddJwtSvid::new(look, source, fixed());
    let ready = client.ready().await.unwrap();
    ready.call(to("https://reports:8443/x")).await.is_ok()
}

/// Waits until a refresh is due: the worst moment for an outage.
async fn until_due(source: &JwtSource) {
    assert!(call(source).await);
    let cache = SvidCache::from(source);
    let due = cache.snapshot_of(&request("a")).unwrap().refresh_in;
    tokio::time::sleep(due.unwrap() - millis(1)).await;
}

/// Returns how long requests succeeded, at ten per second.
async fn lasted(source: &JwtSource) -> Duration {
    let began = tokio::time::Instant::now();
    while call(source).await {
        tokio::time::sleep(millis(100)).await;
    }
    began.elapsed()
}

/// Returns the time until a request succeeds again.
async fn back(source: &JwtSource) -> Duration {
    let ((), took) = timed(async {
        while !call(source).await {
            tokio::time::sleep(millis(100)).await;
        }
    })
    .await;
    took
}

#[tokio::test(start_paused = true)]
async fn unavailable_agent_fails_no_request_for_103_s() {
    let (agent, source) = deployment().await;
    until_due(&source).await;
    agent.stop().await;
    let lasted = lasted(&source).await;
    assert!(lasted >= secs(103) - millis(1), "{lasted:?}");
    // Unavailable for long, so that every delay is at its maximum.
    for _ in 0..600 {
        assert!(!call(&source).await);
        tokio::time::sleep(millis(500)).await;
    }
    agent.start_again().await.unwrap();
    let back = back(&source).await;
    assert!(back <= secs(6), "{back:?}");
    // The fetch connected by itself, and its token triggered the bundle stream.
    tokio::time::sleep(millis(300)).await;
    assert_eq!(agent.counts().open_streams, 1);
}

#[tokio::test(start_paused = true)]
async fn due_token_is_fetched_without_the_bundle_stream() {
    let (agent, source) = deployment().await;
    until_due(&source).await;
    agent.restart().await.unwrap();
    let cache = SvidCache::from(&source);
    let before = cache.header(&request("a")).await.unwrap();
    tokio::time::sleep(millis(2)).await;
    assert!(call(&source).await);
    // At most one failed call on the broken connection, and the delay after it.
    tokio::time::sleep(millis(1300)).await;
    assert!(call(&source).await);
    tokio::time::sleep(millis(100)).await;
    assert_ne!(cache.try_header(&request("a")).unwrap(), before);
    tokio::time::sleep(millis(200)).await;
    assert_eq!(agent.counts().open_streams, 1);
}

/// The call that detects the hanging agent ends at its deadline, which grows to 35 s. The next call
/// follows within 5 s.
#[tokio::test(start_paused = true)]
async fn hanging_agent_fails_no_request_for_103_s() {
    let (agent, source) = deployment().await;
    until_due(&source).await;
    agent.fail(Fault::Hang);
    let lasted = lasted(&source).await;
    assert!(lasted >= secs(103) - millis(1), "{lasted:?}");
    for _ in 0..60 {
        assert!(!call(&source).await);
        tokio::time::sleep(secs(5)).await;
    }
    agent.recover();
    let back = back(&source).await;
    assert!(back <= secs(42), "{back:?}");
}
