//! EP: the endpoint, on the stream of JWT bundles.

use std::process::Command;

use tower_spiffe::JwtSource;
use tower_spiffe::source::JwtSourceErrorReason;
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault};
use tower_spiffe::token::GrpcCode;
use tower_spiffe::workload_api::ENDPOINT_VARIABLE;

use crate::support::*;

const FOUND: &str = "found: ";

/// Environment variables are shared by a whole process, so `JwtSource::new` runs in a child process.
fn found_with(endpoint: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "endpoint::child", "--ignored", "--nocapture"])
        .env(ENDPOINT_VARIABLE, endpoint)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let found = text.lines().find_map(|line| line.split_once(FOUND));
    found.unwrap_or_else(|| panic!("{text}")).1.to_owned()
}

#[tokio::test]
#[ignore = "a child process of other tests"]
async fn child() {
    let source = soon("a result", JwtSource::new()).await;
    match source {
        Ok(source) => {
            let set = source.bundle_set().unwrap();
            let names: Vec<_> = set
                .iter()
                .map(|bundle| bundle.trust_domain().to_string())
                .collect();
            println!("{FOUND}{}", names.join(" "));
        }
        Err(error) => println!("{FOUND}{:?}", error.reason()),
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn ep_1_endpoint_is_read_from_the_environment() {
    let agent = FakeAgent::start(TD).await.unwrap();
    assert!(agent.endpoint().to_string().starts_with("unix:///"));
    assert_eq!(found_with(&agent.endpoint().to_string()), TD);
}

/// The embedded agent returns `InvalidArgument` for a call without the header, as an agent must.
#[tokio::test(start_paused = true)]
async fn ep_2_every_call_has_the_security_header() {
    let live = Live::start().await;
    let token = live.source.fetch_jwt_svid([AUDIENCE]).await.unwrap();
    assert_eq!(live.agent.counts().fetch_jwt_bundles, 1);
    assert_eq!(live.agent.counts().fetch_jwt_svid, 1);
    assert!(live.validator.validate(token.token()).is_ok());

    // Check that the agent requires it.
    let dial = live.agent.connector();
    let channel = tonic::transport::Endpoint::from_static("http://agent.test");
    let channel = channel
        .connect_with_connector(tower::service_fn(move |_| {
            let dial = dial();
            async move { dial.await.map(hyper_util::rt::TokioIo::new) }
        }))
        .await
        .unwrap();
    use tower_spiffe_test_support::wire::pb;
    let mut client = pb::spiffe_workload_api_client::SpiffeWorkloadApiClient::new(channel);
    let request = pb::JwtsvidRequest {
        audience: vec![AUDIENCE.to_owned()],
        ..Default::default()
    };
    let status = client.fetch_jwtsvid(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn ep_3_tcp_endpoint_is_supported() {
    let agent = FakeAgent::start_tcp(TD).await.unwrap();
    assert!(agent.endpoint().to_string().starts_with("tcp://127.0.0.1:"));
    assert_eq!(found_with(&agent.endpoint().to_string()), TD);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn ep_4_invalid_endpoint_is_rejected() {
    // Both name an agent that works with lenient clients.
    let unix = FakeAgent::start(TD).await.unwrap();
    let tcp = FakeAgent::start_tcp(TD).await.unwrap();
    let path = unix.endpoint().to_string().replace("unix://", "");
    for (agent, endpoint) in [
        (&unix, format!("unix://localhost{path}")),
        (&tcp, format!("{}/foo", tcp.endpoint())),
    ] {
        let found = found_with(&endpoint);
        assert!(found.starts_with("Endpoint("), "{endpoint}: {found}");
        assert_eq!(agent.counts().connections, 0, "{endpoint}");
        assert_eq!(found_with(&agent.endpoint().to_string()), TD);
    }
}

#[tokio::test(start_paused = true)]
async fn ep_5_unavailable_is_retried_with_backoff() {
    retried(GrpcCode::Unavailable).await;
}

#[tokio::test(start_paused = true)]
async fn ep_6_permission_denied_is_retried_with_backoff() {
    retried(GrpcCode::PermissionDenied).await;
}

/// Three calls fail, then the source becomes ready. The average wait between calls is at least 50 ms.
async fn retried(code: GrpcCode) {
    let clock = clock();
    let agent = agent(&clock).await;
    agent.fail_call(AgentCall::FetchJwtBundles, Fault::Refuse(code));
    let source = builder(&agent, &clock).build_lazy().unwrap();
    let began = tokio::time::Instant::now();
    let calls = || agent.counts().fetch_jwt_bundles;
    eventually("three calls", || calls() >= 3).await;
    assert!(!source.is_ready());
    agent.recover();
    eventually("the source", || source.is_ready()).await;
    let mean = began.elapsed() / u32::try_from(calls() - 1).unwrap();
    assert!(mean >= millis(50), "{} calls, {mean:?} apart", calls());
}

#[tokio::test(start_paused = true)]
async fn ep_7_invalid_argument_is_not_retried() {
    let clock = clock();
    let agent = agent(&clock).await;
    agent.fail(Fault::Refuse(GrpcCode::InvalidArgument));
    let building = builder(&agent, &clock).build().await;
    let error = building.unwrap_err();
    assert!(!error.is_retryable(), "{error}");
    assert_ne!(error.reason(), JwtSourceErrorReason::InitialSync);
    tokio::time::sleep(secs(60)).await;
    assert_eq!(agent.counts().fetch_jwt_bundles, 1);
    agent.recover();
    assert!(builder(&agent, &clock).build().await.is_ok());
}

#[cfg(unix)]
#[tokio::test]
async fn ep_8_late_socket_is_found() {
    let agent = FakeAgent::start(TD).await.unwrap();
    agent.stop().await;
    let building = JwtSource::builder().endpoint(agent.endpoint()).build();
    let starting = async {
        // The client has failed to connect at least once.
        tokio::time::sleep(millis(200)).await;
        agent.start_again().await.unwrap();
    };
    let (source, ()) = soon("the source", async { tokio::join!(building, starting) }).await;
    assert!(source.unwrap().is_ready());
}
