//! The embedded agent, with a socket that this system has.

use tower_spiffe::testing::FakeAgent;

/// Starts an agent with a Unix socket, or on TCP if the system has no Unix sockets.
pub async fn start(trust_domain: &str) -> FakeAgent {
    if cfg!(unix) {
        FakeAgent::start(trust_domain).await.unwrap()
    } else {
        FakeAgent::start_tcp(trust_domain).await.unwrap()
    }
}
