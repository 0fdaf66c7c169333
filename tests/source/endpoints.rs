//! What cannot be a Workload API, and what is said of it: what, where, and how to mend it.

use std::process::Command;

use tower_spiffe::JwtSource;
use tower_spiffe::source::JwtSourceErrorReason;
use tower_spiffe::testing::{FakeAgent, Fault};
use tower_spiffe::workload_api::{EndpointErrorReason, WorkloadApiErrorReason};

use crate::support::*;

const VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
const TOLD: &str = "told: ";

/// What a process with this endpoint variable is told by `JwtSource::new`. A process of its own,
/// since the environment belongs to all threads of one.
pub(crate) fn told_with(variable: Option<&str>) -> String {
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
    let told = text.lines().find_map(|line| line.split_once(TOLD));
    told.unwrap_or_else(|| panic!("{text}")).1.to_owned()
}

#[tokio::test(start_paused = true)]
#[ignore = "the child of the tests here: it has no endpoint of its own"]
async fn child() {
    let began = tokio::time::Instant::now();
    let error = JwtSource::new().await.unwrap_err();
    assert!(matches!(error.reason(), JwtSourceErrorReason::Endpoint(_)));
    // No retry mends it, so nothing was waited for.
    assert!(!error.is_retryable());
    assert_eq!(began.elapsed(), secs(0));
    println!("{TOLD}{error:#}");
}

#[test]
fn ep7_a_malformed_variable_is_an_error_at_once_that_quotes_it() {
    for (value, mend) in [
        ("", "write unix:///path/to/socket or tcp://IP:port"),
        ("/run/spire/agent.sock", "write unix:///path/to/socket"),
        ("unix://run/spire/agent.sock", "write three slashes"),
        ("tcp://localhost:8081", "write tcp://127.0.0.1:port"),
    ] {
        let told = told_with(Some(value));
        let quoted = format!("{VARIABLE} is \"{value}\"");
        assert!(told.contains(&quoted) && told.contains(mend), "{told}");
    }
}

#[tokio::test]
async fn a_malformed_endpoint_that_was_given_is_told_of_as_given() {
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

/// What a start is told that gives up soon.
async fn told(endpoint: &str) -> tower_spiffe::source::JwtSourceError {
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
async fn ep13_a_socket_that_does_not_exist_and_one_that_nobody_listens_on() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let endpoint = agent.endpoint().to_string();
    agent.stop().await;
    let text = told(&endpoint).await.to_string();
    assert!(text.contains("there is no such socket"), "{text}");
    assert!(
        text.contains(&endpoint) && text.contains("mounted here?"),
        "{text}"
    );

    // What an agent leaves behind that was killed.
    let path = endpoint.strip_prefix("unix://").unwrap();
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    let text = told(&endpoint).await.to_string();
    assert!(text.contains("nobody listens there"), "{text}");
    assert!(
        text.contains(&endpoint) && text.contains("agent running?"),
        "{text}"
    );
}

#[cfg(unix)]
#[tokio::test]
async fn what_is_no_socket_at_all_is_told_of() {
    // A directory of nobody else's, and a file in it.
    let agent = FakeAgent::start(TD).await.unwrap();
    let socket = agent.endpoint().to_string();
    let file = format!("{}.txt", socket.strip_prefix("unix://").unwrap());
    std::fs::write(&file, "not a socket").unwrap();
    let text = told(&format!("unix://{file}")).await.to_string();
    assert!(text.contains("cannot connect to unix://"), "{text}");
    assert!(
        text.contains(&file) && text.contains("another kind than a socket"),
        "{text}"
    );
}

#[tokio::test]
async fn a_port_that_nobody_listens_on() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    drop(listener);
    let text = told(&endpoint).await.to_string();
    assert!(text.contains("nobody listens there"), "{text}");
    assert!(text.contains(&endpoint), "{text}");
}

#[tokio::test]
async fn what_speaks_something_else_is_told_apart() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let endpoint = agent.endpoint().to_string();
    agent.fail(Fault::NotHttp2);
    let text = told(&endpoint).await.to_string();
    assert!(text.contains("speaks no HTTP/2"), "{text}");
    assert!(
        text.contains(&endpoint) && text.contains("check the endpoint"),
        "{text}"
    );

    agent.fail(Fault::NotProtobuf);
    let error = told(&endpoint).await;
    let text = error.to_string();
    assert_eq!(error.code(), None, "no answer of an agent");
    assert!(
        text.contains("what answers there is no Workload API"),
        "{text}"
    );
    assert!(text.contains(&endpoint), "{text}");

    // Bundles come, and nothing in them can be read.
    agent.fail(Fault::Garbage);
    let text = told(&endpoint).await.to_string();
    assert!(text.contains("trust domain example.org"), "{text}");
    assert!(text.contains("its JWK Set cannot be read"), "{text}");
    assert!(text.contains(&endpoint), "{text}");
}

#[tokio::test]
async fn wa9_an_agent_whose_messages_are_empty_is_told_of() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let endpoint = agent.endpoint().to_string();
    let replay = agent.replay();
    let nothing: [(&str, &str); 0] = [];
    let (error, ()) = tokio::join!(told(&endpoint), replay.send(nothing));
    let text = error.to_string();
    assert!(
        text.contains("without any bundle") && text.contains(&endpoint),
        "{text}"
    );

    // Names that are none.
    let names = [("spiffe://not a name", r#"{"keys": []}"#)];
    let (error, ()) = tokio::join!(told(&endpoint), replay.send(names));
    let text = error.to_string();
    assert!(text.contains("this is no trust domain"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_large_says_which_limit_to_raise() {
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
        agent.counts().open_streams == 0 && source.state().last_error().is_some()
    })
    .await;
    let state = source.state();
    let last = state.last_error().unwrap();
    assert_eq!(last.kind(), "message-too-large");
    let rpc = last.rpc().unwrap();
    assert_eq!(rpc.reason(), WorkloadApiErrorReason::MessageTooLarge);
    assert_eq!(rpc.code(), None);
}
