//! Messages that name the cause and the fix.

use tower_spiffe::JwtSource;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::workload_api::WorkloadApiClient;

#[tokio::test(start_paused = true)]
async fn e28_missing_entry_names_the_spiffe_id() {
    let agent = FakeAgent::start_in_memory("example.org").await.unwrap();
    let source = JwtSource::builder().connector(agent.connector());
    let source = source.build().await.unwrap();
    let id = "spiffe://example.org/other".parse().unwrap();
    let error = source.fetch_jwt_svid_with_id(["db"], Some(&id)).await;
    let text = format!("{:#}", error.unwrap_err());
    assert!(text.contains("this workload with this SPIFFE ID"), "{text}");
    assert!(text.contains("for spiffe://example.org/other"), "{text}");

    agent.unregister("spiffe://example.org/workload");
    let error = source.fetch_jwt_svid(["db"]).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(
        text.contains("the SPIFFE server has a registration entry for this workload"),
        "{text}"
    );
}

#[cfg(unix)]
#[tokio::test]
async fn e28_missing_socket_names_the_first_sync() {
    let path = std::env::temp_dir().join("tower-spiffe-no-such.sock");
    let endpoint = format!("unix://{}", path.display());
    let client = WorkloadApiClient::connect(&endpoint.parse().unwrap()).unwrap();
    let error = client.fetch_jwt_bundles().await.map(drop).unwrap_err();
    assert!(
        error.to_string().contains("after its first sync"),
        "{error}"
    );
}

#[tokio::test]
async fn e28_broken_connection_names_other_causes() {
    // A TLS server closes the connection of a client that does not begin with a handshake.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            drop(listener.accept().await);
        }
    });
    let endpoint = format!("tcp://{address}");
    let client = WorkloadApiClient::connect(&endpoint.parse().unwrap()).unwrap();
    let error = client.fetch_jwt_bundles().await.map(drop).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("TLS") && text.contains("too many keepalive pings"),
        "{text}"
    );
    server.abort();
}
