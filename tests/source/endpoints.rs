//! Errors for invalid endpoints: what failed, where, and how to fix it.

use std::process::Command;

use tower_spiffe::JwtSource;
use tower_spiffe::source::JwtSourceErrorReason;
#[cfg(unix)]
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::testing::Fault;
use tower_spiffe::workload_api::{EndpointErrorReason, WorkloadApiErrorReason};

use crate::agent;
use crate::support::*;

const VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
const ERROR: &str = "child error: ";

/// Returns the error of `JwtSource::new` with this endpoint variable. It runs in a child process,
/// since environment variables are shared by all threads.
pub(crate) fn error_of_new(variable: Option<&str>) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "endpoints::child", "--ignored", "--nocapture"])
        .env_remove(VARIABLE);
    if let Some(value) = variable {
        child.env(VARIABLE, value);
    }
    let output = child.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let error = text.lines().find_map(|line| line.split_once(ERROR));
    error.unwrap_or_else(|| panic!("{text}")).1.to_owned()
}

#[tokio::test(start_paused = true)]
#[ignore = "a child process of other tests"]
async fn child() {
    let began = tokio::time::Instant::now();
    let error = JwtSource::new().await.unwrap_err();
    assert!(matches!(error.reason(), JwtSourceErrorReason::Endpoint(_)));
    // Retries cannot fix this, so there was no wait.
    assert!(!error.is_retryable());
    assert_eq!(began.elapsed(), secs(0));
    println!("{ERROR}{error:#}");
}

#[test]
fn ep7_malformed_variable_is_quoted() {
    for (value, fix) in [
        ("", "write unix:///path/to/socket or tcp://IP:port"),
        ("/run/spire/agent.sock", "write unix:///path/to/socket"),
        ("unix://run/spire/agent.sock", "write three slashes"),
        ("tcp://localhost:8081", "write tcp://127.0.0.1:port"),
    ] {
        let text = error_of_new(Some(value));
        let quoted = format!("{VARIABLE} is \"{value}\"");
        assert!(text.contains(&quoted) && text.contains(fix), "{text}");
    }
}

#[tokio::test]
async fn malformed_endpoint_is_quoted() {
    let building = JwtSource::builder().endpoint("https://agent").build();
    let error = soon("the error", building).await.unwrap_err();
    let reason = JwtSourceErrorReason::Endpoint(EndpointErrorReason::Scheme);
    assert_eq!(error.reason(), reason);
    let text = format!("{error:#}");
    assert!(
        text.contains("the given value is \"https://agent\""),
        "{text}"
    );
    let lazy = JwtSource::builder().endpoint("https://agent").build_lazy();
    assert_eq!(lazy.unwrap_err(), error);
}

/// Returns the error of a start with a short timeout.
async fn start_error(endpoint: &str) -> tower_spiffe::source::JwtSourceError {
    let building = JwtSource::builder()
        .endpoint(endpoint)
        .reconnect_backoff(millis(1), millis(5))
        .initial_sync_timeout(millis(300))
        .build();
    let error = soon("the error", building).await.unwrap_err();
    assert_eq!(error.reason(), JwtSourceErrorReason::InitialSync);
    assert!(error.is_retryable(), "{error}");
    error
}

#[cfg(unix)]
#[tokio::test]
async fn ep13_missing_and_unused_sockets_have_different_errors() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let endpoint = agent.endpoint().to_string();
    agent.stop().await;
    let text = start_error(&endpoint).await.to_string();
    assert!(text.contains("the socket does not exist"), "{text}");
    assert!(
        text.contains(&endpoint) && text.contains("mounted here"),
        "{text}"
    );

    // A killed agent leaves such a socket behind.
    let path = endpoint.strip_prefix("unix://").unwrap();
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    let text = start_error(&endpoint).await.to_string();
    assert!(text.contains("no process listens there"), "{text}");
    assert!(
        text.contains(&endpoint) && text.contains("agent is running"),
        "{text}"
    );
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_is_not_a_socket() {
    // The file is next to a unique socket path.
    let agent = FakeAgent::start(TD).await.unwrap();
    let socket = agent.endpoint().to_string();
    let file = format!("{}.txt", socket.strip_prefix("unix://").unwrap());
    std::fs::write(&file, "not a socket").unwrap();
    let text = start_error(&format!("unix://{file}")).await.to_string();
    assert!(text.contains("cannot connect to unix://"), "{text}");
    assert!(
        text.contains(&file) && text.contains("not a socket"),
        "{text}"
    );
}

#[tokio::test]
async fn unused_port_is_reported() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    drop(listener);
    let text = start_error(&endpoint).await.to_string();
    assert!(text.contains("no process listens there"), "{text}");
    assert!(text.contains(&endpoint), "{text}");
}

#[tokio::test]
async fn other_protocols_are_reported() {
    let agent = agent::start(TD).await;
    let endpoint = agent.endpoint().to_string();
    agent.fail(Fault::NotHttp2);
    let text = start_error(&endpoint).await.to_string();
    assert!(text.contains("does not speak HTTP/2"), "{text}");
    assert!(
        text.contains(&endpoint) && text.contains("check the endpoint"),
        "{text}"
    );

    agent.fail(Fault::NotProtobuf);
    let error = start_error(&endpoint).await;
    let text = error.to_string();
    assert_eq!(error.code(), None, "not from an agent");
    assert!(text.contains("check that this is a Workload API"), "{text}");
    assert!(text.contains(&endpoint), "{text}");

    // Bundles arrive, but they are unreadable.
    agent.fail(Fault::Garbage);
    let text = start_error(&endpoint).await.to_string();
    assert!(text.contains("trust domain example.org"), "{text}");
    assert!(text.contains("its JWK Set cannot be read"), "{text}");
    assert!(text.contains(&endpoint), "{text}");
}

#[tokio::test]
async fn wa9_empty_messages_are_reported() {
    let agent = agent::start(TD).await;
    let endpoint = agent.endpoint().to_string();
    let replay = agent.replay();
    let nothing: [(&str, &str); 0] = [];
    let (error, ()) = tokio::join!(start_error(&endpoint), replay.send(nothing));
    let text = error.to_string();
    assert!(
        text.contains("without any bundle") && text.contains(&endpoint),
        "{text}"
    );

    // The next message is for a new stream.
    eventually("the end", || agent.counts().open_connections == 0).await;
    // Invalid trust domain names.
    let names = [("spiffe://not a name", r#"{"keys": []}"#)];
    let (error, ()) = tokio::join!(start_error(&endpoint), replay.send(names));
    let text = error.to_string();
    assert!(text.contains("not the name of a trust domain"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn oversized_message_error_names_the_limit() {
    let world = World::new().await;
    world.agent.fail(Fault::Oversized(100_000));
    let building = world
        .builder()
        .resource_limits(tower_spiffe::source::ResourceLimits::default().max_message_bytes(50_000))
        .build();
    let text = building.await.unwrap_err().to_string();
    assert!(text.contains("larger than allowed"), "{text}");
    assert!(
        text.contains("max_message_bytes") && text.contains("50000"),
        "{text}"
    );
    let source = world
        .builder()
        .resource_limits(tower_spiffe::source::ResourceLimits::default().max_message_bytes(50_000))
        .build_lazy()
        .unwrap();
    let agent = &world.agent;
    eventually("an attempt", || {
        agent.counts().open_streams == 0 && source.state().last_error.is_some()
    })
    .await;
    let state = source.state();
    let last = state.last_error.as_ref().unwrap();
    assert_eq!(last.kind, "message-too-large");
    let rpc = last.rpc.as_ref().unwrap();
    assert_eq!(rpc.reason(), WorkloadApiErrorReason::MessageTooLarge);
    assert_eq!(rpc.code(), None);
}
