//! An agent that is away, or hangs: what a source with a layer above it makes of that.

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

/// An agent on paused time, and a source that does not open its bundle stream anew within the
/// hour: whoever gets a token then dialled for it.
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

/// Sends a request through the layer; whether it went out, with a token.
async fn call(source: &JwtSource) -> bool {
    let look = service_fn(|request: Request<()>| async move {
        assert!(request.headers().contains_key(AUTHORIZATION));
        Ok::<_, Infallible>(Response::new(()))
    });
    let mut client = AddJwtSvid::new(look, source, fixed());
    let ready = client.ready().await.unwrap();
    ready.call(to("https://reports:8443/x")).await.is_ok()
}

/// Until the token is about to be refreshed: the worst moment for the agent to go.
async fn until_due(source: &JwtSource) {
    assert!(call(source).await);
    let cache = SvidCache::from(source);
    let due = cache.snapshot_of(&request("a")).unwrap().refresh_in;
    tokio::time::sleep(due.unwrap() - millis(1)).await;
}

/// For how long requests went out, ten a second, before the first that did not.
async fn lasted(source: &JwtSource) -> Duration {
    let began = tokio::time::Instant::now();
    while call(source).await {
        tokio::time::sleep(millis(100)).await;
    }
    began.elapsed()
}

/// How long it takes until one goes out again.
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
async fn an_agent_that_is_away_fails_no_request_for_103_s_and_is_back_within_6_s() {
    let (agent, source) = deployment().await;
    until_due(&source).await;
    agent.stop().await;
    let lasted = lasted(&source).await;
    assert!(lasted >= secs(103) - millis(1), "{lasted:?}");
    // Away for long, so that every pace is at its longest.
    for _ in 0..600 {
        assert!(!call(&source).await);
        tokio::time::sleep(millis(500)).await;
    }
    agent.start_again().await.unwrap();
    let back = back(&source).await;
    assert!(back <= secs(6), "{back:?}");
    // The fetch dialled by itself, and its token woke the bundle stream.
    tokio::time::sleep(millis(300)).await;
    assert_eq!(agent.counts().open_streams, 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_due_is_fetched_at_once_whatever_the_bundle_stream_waits_for() {
    let (agent, source) = deployment().await;
    until_due(&source).await;
    agent.restart().await.unwrap();
    let cache = SvidCache::from(&source);
    let before = cache.header(&request("a")).await.unwrap();
    tokio::time::sleep(millis(2)).await;
    assert!(call(&source).await);
    // One failed call on the connection that was cut, at the most, and the delay after it.
    tokio::time::sleep(millis(1300)).await;
    assert!(call(&source).await);
    tokio::time::sleep(millis(100)).await;
    assert_ne!(cache.try_header(&request("a")).unwrap(), before);
    tokio::time::sleep(millis(200)).await;
    assert_eq!(agent.counts().open_streams, 1);
}

/// The call that found out that the agent hangs ends at its deadline, which grows to 35 s; the
/// next comes 5 s after that at the latest.
#[tokio::test(start_paused = true)]
async fn an_agent_that_hangs_fails_no_request_for_103_s_and_is_back_within_42_s() {
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
