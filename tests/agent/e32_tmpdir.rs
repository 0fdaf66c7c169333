//! E32: the error names an unusable temporary directory.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tower_spiffe::testing::Error;

// The tests of the `agent` command set TMPDIR for a process. It cannot be set for one thread.
#[test]
fn e32_error_names_the_directory_and_the_fix() {
    let error = Error::Directory {
        parent: "/var/no \"such\"\n".into(),
        error: Arc::new(io::ErrorKind::NotFound.into()),
    };
    let text = error.to_string();
    let path = format!("{:?}", Path::new("/var/no \"such\"\n"));
    assert!(text.contains(&path) && text.contains("TMPDIR"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(std::error::Error::source(&error).is_some());
}

#[cfg(unix)]
#[tokio::test]
async fn e32_error_names_the_socket() {
    use tower_spiffe::testing::FakeAgent;

    let agent = FakeAgent::start("example.org").await.unwrap();
    let endpoint = agent.endpoint().to_string();
    let socket = Path::new(endpoint.trim_start_matches("unix://"));
    agent.stop().await;
    // The path is taken now.
    std::fs::create_dir(socket).unwrap();
    let error = agent.start_again().await.unwrap_err();
    assert!(error.to_string().contains(&endpoint), "{error}");
    assert!(matches!(error, Error::Listen { .. }), "{error:?}");
    std::fs::remove_dir(socket).unwrap();
    agent.start_again().await.unwrap();
}

#[tokio::test]
async fn e32_error_names_the_port() {
    use tower_spiffe::testing::FakeAgent;

    let agent = FakeAgent::start_tcp("example.org").await.unwrap();
    let endpoint = agent.endpoint().to_string();
    agent.stop().await;
    let taken = tokio::net::TcpListener::bind(endpoint.trim_start_matches("tcp://")).await;
    let error = agent.start_again().await.unwrap_err();
    assert!(error.to_string().contains(&endpoint), "{error}");
    drop(taken);
    agent.start_again().await.unwrap();
}
