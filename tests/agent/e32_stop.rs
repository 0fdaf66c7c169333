//! What clients receive when the agent stops, and errors for unknown calls.

use std::time::Duration;

use tonic::Code;
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn e32_stop_waits_for_calls() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let client = dial_in_memory(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    agent.fail_call(
        AgentCall::FetchJwtSvid,
        Fault::Slow(Duration::from_millis(500)),
    );
    let call = tokio::spawn(async move { client.token(AUD).await });
    while agent.counts().fetch_jwt_svid == 0 {
        tokio::task::yield_now().await;
    }
    agent.stop().await;
    assert!(call.await.unwrap().is_ok(), "a call in progress was cut");
    let status = stream.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "the agent is shutting down");
    assert_eq!(agent.counts().open_connections, 0);
}

#[tokio::test(start_paused = true)]
async fn e32_stop_cuts_calls_that_never_end() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let client = dial_in_memory(&agent).await;
    agent.fail(Fault::Hang);
    let call = tokio::spawn(async move { client.token(AUD).await });
    while agent.counts().fetch_jwt_svid == 0 {
        tokio::task::yield_now().await;
    }
    let began = tokio::time::Instant::now();
    agent.stop().await;
    assert_eq!(began.elapsed(), Duration::from_secs(1), "paused time");
    assert!(call.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn e32_cut_sends_no_response() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let client = dial_in_memory(&agent).await;
    agent.fail_call(
        AgentCall::FetchJwtSvid,
        Fault::Slow(Duration::from_millis(500)),
    );
    let call = tokio::spawn(async move { client.token(AUD).await });
    while agent.counts().fetch_jwt_svid == 0 {
        tokio::task::yield_now().await;
    }
    agent.cut_connections().await;
    assert!(call.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn e32_restarted_agent_serves_streams() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    agent.restart().await.unwrap();
    let mut stream = dial_in_memory(&agent).await.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
}

#[tokio::test(start_paused = true)]
async fn e32_unknown_calls_name_what_is_served() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let connector = agent.connector();
    let dial = tower::service_fn(move |_| {
        let dialled = connector();
        async { dialled.await.map(hyper_util::rt::TokioIo::new) }
    });
    let channel = plain().connect_with_connector(dial).await.unwrap();
    for method in [
        "FetchX509SVID",
        "FetchX509Bundles",
        "FetchWITSVID",
        "FetchWITBundles",
    ] {
        let path = format!("/SpiffeWorkloadAPI/{method}");
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let path = path.parse().unwrap();
        let status = client
            .unary(with_header(()), path, codec)
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains(method), "{status}");
        assert!(status.message().contains("FetchJWTSVID"), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn e32_missing_identity_has_the_text_of_spire() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let client = dial_in_memory(&agent).await;
    let status = client.fetch(&[AUD], "spiffe://example.org/other").await;
    assert_eq!(status.unwrap_err().message(), "no identity issued");
}
