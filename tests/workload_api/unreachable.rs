//! Errors of connections that cannot be made, reach another server, or break.

use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::io::DuplexStream;
use tower_spiffe::testing::Fault;
use tower_spiffe::workload_api::{WorkloadApiClient, WorkloadApiErrorReason as Reason};

use crate::support::*;

const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln";

#[tokio::test]
async fn ep13_unavailable_agent_error_says_what_to_check() {
    for place in places().await {
        let client = place.client();
        place.agent.stop().await;
        let (reason, says) = if place.name.starts_with("unix:") {
            (
                Reason::NoSocket,
                ["the socket does not exist", "mounted here"],
            )
        } else {
            (Reason::Refused, ["no process listens there", "running"])
        };
        for error in failures(&client, TOKEN).await {
            assert_error(&error, reason, &[&place.name, says[0], says[1]]);
            assert!(error.is_retryable());
        }
        // When the agent is available again, the same client connects.
        place.agent.start_again().await.unwrap();
        client.fetch_jwt_svid(&request()).await.unwrap();
    }
}

#[cfg(unix)]
#[tokio::test]
async fn stale_and_missing_sockets_differ() {
    let agent = tower_spiffe::testing::FakeAgent::start(TD).await.unwrap();
    let endpoint = agent.endpoint().to_string();
    agent.stop().await;
    let path = endpoint.strip_prefix("unix://").unwrap();
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    let client = WorkloadApiClient::connect(&endpoint.parse().unwrap()).unwrap();
    for error in failures(&client, TOKEN).await {
        assert_error(
            &error,
            Reason::Refused,
            &[&endpoint, "no process listens there"],
        );
    }
}

#[cfg(unix)]
#[tokio::test]
async fn other_files_are_not_sockets() {
    let agent = tower_spiffe::testing::FakeAgent::start(TD).await.unwrap();
    let endpoint = agent.endpoint().to_string();
    let (directory, _) = endpoint.rsplit_once('/').unwrap();
    let file = format!("{directory}/a-file");
    std::fs::write(file.strip_prefix("unix://").unwrap(), "").unwrap();
    for (place, says) in [
        (directory, "this is a directory; name the socket in it"),
        (&file, "this file is not a socket"),
    ] {
        let client = WorkloadApiClient::connect(&place.parse().unwrap()).unwrap();
        for error in failures(&client, TOKEN).await {
            assert_error(&error, Reason::Connect, &[place, says]);
        }
    }
}

/// Returns a client whose connector fails in this way.
fn failing(with: impl Fn() -> io::Error + Send + Sync + 'static) -> WorkloadApiClient {
    WorkloadApiClient::with_connector(move || {
        let error = with();
        async { Err::<DuplexStream, _>(error) }
    })
    .build()
    .unwrap()
}

#[tokio::test]
async fn permission_error_is_reported() {
    let client = failing(|| io::ErrorKind::PermissionDenied.into());
    for error in failures(&client, TOKEN).await {
        let says = ["a given connector", "may not open it", "permissions"];
        assert_error(&error, Reason::Connect, &says);
    }
}

#[tokio::test]
async fn connector_errors_are_bounded_without_tokens() {
    let client = failing(|| {
        let said = format!("proxy said:\r\n{TOKEN} {}", "no ".repeat(1 << 20));
        io::Error::other(said)
    });
    for error in failures(&client, TOKEN).await {
        let says = ["a given connector", "[redacted]", "SPIFFE agent's endpoint"];
        assert_error(&error, Reason::Connect, &says);
    }
}

#[tokio::test(start_paused = true)]
async fn connection_timeout_names_its_duration() {
    let client = WorkloadApiClient::with_connector(pending::<io::Result<DuplexStream>>)
        .connect_timeout(Duration::from_secs(3))
        .build()
        .unwrap();
    let began = tokio::time::Instant::now();
    for error in failures(&client, TOKEN).await {
        let says = ["a given connector", "within 3s", "healthy"];
        assert_error(&error, Reason::Connect, &says);
    }
    assert_eq!(began.elapsed().as_secs(), 9);
}

#[tokio::test]
async fn server_without_http2_is_not_an_agent() {
    for place in places().await {
        place.agent.fail(Fault::NotHttp2);
        let client = place.client();
        for error in failures(&client, TOKEN).await {
            let says = [&place.name, "does not speak HTTP/2", "check the endpoint"];
            assert_error(&error, Reason::NotGrpc, &says);
            assert!(
                error.is_retryable(),
                "another server may listen there later"
            );
        }
        place.agent.recover();
        client.fetch_jwt_svid(&request()).await.unwrap();
    }
}

#[tokio::test]
async fn broken_connection_is_reported_and_replaced() {
    for place in places().await {
        let (agent, client) = (&place.agent, place.client());
        agent.fail(Fault::Hang);
        let calls = tokio::spawn({
            let client = client.clone();
            async move {
                let wanted = request();
                tokio::join!(
                    async { client.fetch_jwt_svid(&wanted).await.map(drop).unwrap_err() },
                    async {
                        client
                            .validate_jwt_svid(AUD, TOKEN)
                            .await
                            .map(drop)
                            .unwrap_err()
                    },
                    async { client.fetch_jwt_bundles().await.map(drop).unwrap_err() },
                )
            }
        });
        eventually("the calls", || {
            let counts = agent.counts();
            let there = [
                counts.fetch_jwt_svid,
                counts.validate_jwt_svid,
                counts.fetch_jwt_bundles,
            ];
            there == [1, 1, 1]
        })
        .await;
        agent.cut_connections().await;
        let (fetch, validate, bundles) = calls.await.unwrap();
        for error in [fetch, validate, bundles] {
            assert_error(
                &error,
                Reason::Disconnected,
                &[&place.name, "broke", "reconnects"],
            );
        }
        agent.recover();
        client.fetch_jwt_svid(&request()).await.unwrap();
        assert_eq!(agent.counts().connections, 2, "{}", place.name);
    }
}

#[tokio::test]
async fn unresponsive_agent_times_out() {
    for place in places().await {
        let client = place.impatient();
        place.agent.fail(Fault::Hang);
        for error in failures(&client, TOKEN).await {
            let says = [&place.name, "did not respond within 100ms", "healthy"];
            assert_error(&error, Reason::Timeout, &says);
            assert!(error.is_retryable());
        }
        place.agent.recover();
        // Opened, then silent.
        let replay = place.agent.replay();
        let silent = client.fetch_jwt_bundles().await.unwrap().message().await;
        let says = [&place.name, "no bundles within 100ms", "healthy"];
        assert_error(&silent.unwrap_err(), Reason::Timeout, &says);
        drop(replay);
    }
}
