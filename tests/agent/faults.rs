//! Faults of the embedded Workload API: each has the effect that its name says, and ends.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tonic::Code;
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault};
use tower_spiffe::token::GrpcCode;

use crate::support::*;

const SHORT: Duration = Duration::from_millis(150);

async fn agent() -> (FakeAgent, Client) {
    let agent = FakeAgent::start(TD).await.unwrap();
    let client = dial(&agent).await;
    (agent, client)
}

async fn in_memory() -> (FakeAgent, Client) {
    let (_, agent) = paused_agent().await;
    let client = dial_in_memory(&agent).await;
    (agent, client)
}

#[tokio::test]
async fn error_status_reaches_calls_and_streams() {
    let (agent, client) = agent().await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    for (fault, expected) in [
        (GrpcCode::ResourceExhausted, Code::ResourceExhausted),
        (GrpcCode::Unauthenticated, Code::Unauthenticated),
        (GrpcCode::Internal, Code::Internal),
    ] {
        agent.fail(Fault::Refuse(fault));
        assert_eq!(client.token(AUD).await.unwrap_err().code(), expected);
        assert_eq!(client.bundles().await.unwrap_err().code(), expected);
        assert_eq!(
            client.validate(AUD, "x").await.unwrap_err().code(),
            expected
        );
    }
    assert_eq!(end(&mut stream).await, Code::ResourceExhausted);
    agent.recover();
    assert!(client.token(AUD).await.is_ok());
}

#[tokio::test]
async fn one_call_can_fail_alone() {
    let (agent, client) = agent().await;
    agent.fail_call(
        AgentCall::FetchJwtSvid,
        Fault::Refuse(GrpcCode::Unavailable),
    );
    assert_eq!(
        client.token(AUD).await.unwrap_err().code(),
        Code::Unavailable
    );
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    agent.fail_call(AgentCall::FetchJwtBundles, Fault::Refuse(GrpcCode::Aborted));
    assert_eq!(end(&mut stream).await, Code::Aborted);
    agent.fail_call(AgentCall::ValidateJwtSvid, Fault::Refuse(GrpcCode::Aborted));
    assert_eq!(
        client.validate(AUD, "x").await.unwrap_err().code(),
        Code::Aborted
    );
}

#[tokio::test]
async fn hang_delays_calls_until_recovery() {
    let (agent, client) = agent().await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    agent.fail(Fault::Hang);
    assert!(timeout(SHORT, client.token(AUD)).await.is_err());
    assert!(timeout(SHORT, client.bundles()).await.is_err());
    agent.issuer().rotate_now();
    assert!(silent(&mut stream).await);

    let waiting = client.token(AUD);
    let (token, ()) = tokio::join!(waiting, async {
        tokio::time::sleep(SHORT).await;
        agent.recover();
    });
    assert!(token.is_ok());
    assert_eq!(next_key_ids(&mut stream, TD).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn slow_delays_responses_and_messages() {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let client = dial_in_memory(&agent).await;
    agent.fail(Fault::Slow(Duration::from_secs(7)));
    let began = Instant::now();
    client.token(AUD).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 7);
    let mut stream = client.bundles().await.unwrap();
    let began = Instant::now();
    next_key_ids(&mut stream, TD).await;
    assert_eq!(began.elapsed().as_secs(), 7);
    agent.issuer().rotate_now();
    next_key_ids(&mut stream, TD).await;
    assert_eq!(began.elapsed().as_secs(), 14);
}

#[tokio::test]
async fn hang_up_sends_one_message_per_stream() {
    let (agent, client) = agent().await;
    agent.fail(Fault::HangUp);
    for _ in 0..3 {
        let mut stream = client.bundles().await.unwrap();
        next_key_ids(&mut stream, TD).await;
        assert_eq!(stream.message().await.unwrap(), None);
    }
    assert_eq!(agent.counts().bundle_messages, 3);
    agent.fail(Fault::HangUpWith(GrpcCode::Unavailable));
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    assert_eq!(end(&mut stream).await, Code::Unavailable);
    // Tokens still work.
    assert!(client.token(AUD).await.is_ok());
}

#[tokio::test]
async fn garbage_is_invalid_data_in_valid_messages() {
    let (agent, client) = agent().await;
    agent.federate("other.test").unwrap();
    let mut stream = client.bundles().await.unwrap();
    let good = stream.message().await.unwrap().unwrap();
    agent.fail(Fault::Garbage);
    let bad = stream.message().await.unwrap().unwrap();
    let own = &bad.bundles["spiffe://example.org"];
    assert!(serde_json::from_slice::<serde_json::Value>(own).is_err());
    // The other trust domain is unchanged.
    assert_eq!(
        bad.bundles["spiffe://other.test"],
        good.bundles["spiffe://other.test"]
    );
    assert!(!client.token(AUD).await.unwrap().contains('.'));
    let response = client.validate(AUD, "x").await.unwrap();
    assert!(tower_spiffe::SpiffeId::parse(&response.spiffe_id).is_err());
    agent.recover();
    assert_eq!(stream.message().await.unwrap().unwrap(), good);
}

#[tokio::test]
async fn not_protobuf_cannot_be_decoded() {
    let (agent, client) = agent().await;
    agent.fail(Fault::NotProtobuf);
    let error = client.token(AUD).await.unwrap_err();
    assert!(error.message().contains("decode"), "{error}");
    let error = client.validate(AUD, "x").await.unwrap_err();
    assert!(error.message().contains("decode"), "{error}");
    let mut stream = client.bundles().await.unwrap();
    let error = stream.message().await.unwrap_err();
    assert!(error.message().contains("decode"), "{error}");
}

#[tokio::test]
async fn not_http2_affects_only_new_connections() {
    let (agent, old) = agent().await;
    old.token(AUD).await.unwrap();
    agent.fail(Fault::NotHttp2);
    let new = try_dial(&agent).await;
    let failed = match new {
        Ok(client) => client.token(AUD).await.is_err(),
        Err(_) => true,
    };
    assert!(failed);
    // Existing connections still work.
    assert!(old.token(AUD).await.is_ok());
    agent.recover();
    assert!(dial(&agent).await.token(AUD).await.is_ok());
}

#[tokio::test]
async fn half_open_connections_stay_dead_after_recovery() {
    let (agent, client) = agent().await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    agent.half_open();
    agent.issuer().rotate_now();
    assert!(silent(&mut stream).await);
    assert!(timeout(SHORT, client.token(AUD)).await.is_err());
    let other = dial(&agent).await;
    assert!(other.token(AUD).await.is_ok());

    agent.fail(Fault::HalfOpen);
    assert!(timeout(SHORT, other.token(AUD)).await.is_err());
    let born_dead = timeout(SHORT, async { dial(&agent).await.token(AUD).await });
    assert!(born_dead.await.is_err());
    agent.recover();
    assert!(timeout(SHORT, other.token(AUD)).await.is_err());
    assert!(dial(&agent).await.token(AUD).await.is_ok());
}

#[tokio::test]
async fn cut_connections_are_replaced() {
    let (agent, client) = agent().await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    agent.cut_connections().await;
    assert_eq!(agent.counts().open_connections, 0);
    assert!(stream.message().await.is_err());
    // tonic's channel reconnects automatically.
    eventually_async(async || client.token(AUD).await.is_ok()).await;
    assert_eq!(agent.counts().connections, 2);
}

#[tokio::test]
async fn oversized_messages_are_valid() {
    let (agent, client) = agent().await;
    agent.fail(Fault::Oversized(5_000_000));
    let mut stream = client.bundles().await.unwrap();
    let message = stream.message().await.unwrap().unwrap();
    assert!(message.bundles["spiffe://example.org"].len() > 5_000_000);
    assert_eq!(key_ids(&message, TD), agent.issuer().key_ids());
    agent.fail(Fault::Oversized(10_000));
    assert!(client.token(AUD).await.unwrap().len() > 10_000);
}

#[tokio::test(start_paused = true)]
async fn without_its_server_the_agent_returns_cached_tokens() {
    let (agent, client) = in_memory().await;
    let known = client.token(AUD).await.unwrap();
    agent.fail(Fault::ServerAway);
    // After half its lifetime, SPIRE's agent would have fetched a new token.
    tokio::time::advance(Duration::from_secs(290)).await;
    assert_eq!(client.token(AUD).await.unwrap(), known);
    let began = Instant::now();
    let error = client.token("never asked for").await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(began.elapsed().as_secs(), 30);
    // The known token has expired by now, and is not returned any more.
    assert_eq!(
        client.token(AUD).await.unwrap_err().code(),
        Code::Unavailable
    );
    // The stream is not affected: the agent is running.
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
}

#[tokio::test]
async fn stopped_agent_reuses_its_socket() {
    let (agent, client) = agent().await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    let endpoint = agent.endpoint();
    let socket = endpoint.unix_path().unwrap();
    agent.stop().await;
    assert!(!socket.exists());
    assert!(stream.message().await.is_err());
    assert!(try_dial(&agent).await.is_err());
    agent.stop().await;

    agent.start_again().await.unwrap();
    agent.start_again().await.unwrap();
    assert_eq!(agent.endpoint(), endpoint);
    assert!(dial(&agent).await.token(AUD).await.is_ok());
    let before = agent.issuer().key_ids();
    agent.restart().await.unwrap();
    assert_eq!(agent.issuer().key_ids(), before);
    assert!(dial(&agent).await.token(AUD).await.is_ok());
}

#[tokio::test]
async fn restart_works_over_tcp_and_in_memory() {
    let agent = FakeAgent::start_tcp(TD).await.unwrap();
    let endpoint = agent.endpoint();
    let client = dial(&agent).await;
    client.token(AUD).await.unwrap();
    agent.restart().await.unwrap();
    assert_eq!(agent.endpoint(), endpoint);
    assert!(dial(&agent).await.token(AUD).await.is_ok());

    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let connector = agent.connector();
    assert!(connector().await.is_ok());
    agent.stop().await;
    let error = connector().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    agent.start_again().await.unwrap();
    assert!(connector().await.is_ok());
    drop(agent);
    assert!(connector().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn clock_offset_applies_to_tokens_and_validation() {
    let (agent, client) = in_memory().await;
    agent.set_clock_offset(-600);
    let old = client.token(AUD).await.unwrap();
    assert_eq!(claims(&old)["iat"], 1_789_999_400);
    assert!(client.validate(AUD, &old).await.is_ok());
    agent.set_clock_offset(0);
    assert!(client.validate(AUD, &old).await.is_err());
    agent.set_clock_offset(3_600);
    assert_eq!(
        claims(&agent.token("spiffe://example.org/web", AUD))["iat"],
        1_790_003_600
    );
}

#[tokio::test]
async fn any_stream_is_served() {
    use hyper_util::rt::TokioIo;
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let (ours, theirs) = tokio::io::duplex(1_000);
    agent.serve_stream(theirs);
    let mut ours = Some(ours);
    let channel = plain()
        .connect_with_connector(tower::service_fn(move |_| {
            let io = ours.take().map(TokioIo::new);
            async { io.ok_or(std::io::Error::other("only once")) }
        }))
        .await
        .unwrap();
    let client =
        Client(crate::wire::pb::spiffe_workload_api_client::SpiffeWorkloadApiClient::new(channel));
    assert!(client.token(AUD).await.is_ok());
}

#[tokio::test]
async fn registrations_during_a_withdrawal_are_kept() {
    let (agent, client) = agent().await;
    let id = |name: &str| format!("spiffe://{TD}/{name}");
    let register = |name: &str, hint: &str| {
        let life = Duration::from_secs(60);
        agent.register(&id(name), hint, life).unwrap();
    };
    let given = async || -> Vec<(String, String)> {
        let svids = client.fetch(&[AUD], "").await.unwrap_or_default();
        svids
            .into_iter()
            .map(|svid| (svid.spiffe_id, svid.hint))
            .collect()
    };
    let entry = |name: &str, hint: &str| (id(name), hint.to_owned());

    // Its replacement is removed with the first identity, also if that is withdrawn.
    agent.withdraw();
    register("web", "old");
    assert_eq!(given().await, [entry("web", "old")]);
    agent.restore();
    assert_eq!(given().await, [entry("web", "old")]);

    register("db", "");
    register("cron", "");
    agent.withdraw();
    assert_eq!(given().await, []);
    register("web", "new");
    register("ops", "");
    agent.unregister(&id("db"));
    let all = [entry("cron", ""), entry("web", "new"), entry("ops", "")];
    agent.restore();
    assert_eq!(given().await, all);
    // A second withdrawal also withdraws new entries, and loses nothing.
    agent.withdraw();
    register("ops", "");
    agent.withdraw();
    assert_eq!(given().await, []);
    agent.restore();
    assert_eq!(given().await, all);
    agent.restore();
    assert_eq!(given().await, all);
}
