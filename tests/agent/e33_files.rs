//! An embedded agent removes its socket and its directory, however it ends.

use std::path::{Path, PathBuf};

use tower_spiffe::testing::FakeAgent;

use crate::support::*;

fn socket(agent: &FakeAgent) -> PathBuf {
    agent.endpoint().unix_path().unwrap().to_path_buf()
}

/// Whether the directory of this socket, which only the agent uses, is removed.
fn is_removed(socket: &Path) -> bool {
    !socket.parent().unwrap().exists()
}

#[tokio::test]
async fn e33_dropped_agent_removes_its_directory() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let path = socket(&agent);
    assert!(path.exists());
    let client = dial(&agent).await;
    client.token(AUD).await.unwrap();
    drop(agent);
    assert!(is_removed(&path), "{}", path.display());
    assert!(client.token(AUD).await.is_err());
}

#[tokio::test]
async fn e33_stopped_and_restarted_agents_remove_it_too() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let path = socket(&agent);
    agent.stop().await;
    assert!(!path.exists() && !is_removed(&path));
    // The socket of a killed process, and another file.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    std::fs::write(path.with_extension("txt"), "").unwrap();
    drop(agent);
    assert!(is_removed(&path));

    let agent = FakeAgent::start(TD).await.unwrap();
    let path = socket(&agent);
    agent.restart().await.unwrap();
    assert!(path.exists());
    drop(agent);
    assert!(is_removed(&path));
}

#[test]
fn e33_agent_of_an_ended_runtime_is_removed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let path = runtime.block_on(async {
        let agent = FakeAgent::start(TD).await.unwrap();
        let path = socket(&agent);
        tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(agent);
        });
        path
    });
    assert!(path.exists());
    drop(runtime);
    assert!(is_removed(&path));
}

#[test]
fn e33_agent_of_a_panicking_test_is_removed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (path, paths) = std::sync::mpsc::channel();
    let test = runtime.spawn(async move {
        let agent = FakeAgent::start(TD).await.unwrap();
        path.send(socket(&agent)).unwrap();
        // `resume_unwind` prints no panic message.
        std::panic::resume_unwind(Box::new("intended"));
    });
    assert!(runtime.block_on(test).unwrap_err().is_panic());
    assert!(is_removed(&paths.recv().unwrap()));
}
