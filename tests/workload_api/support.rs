//! Agents at every kind of endpoint, and the requirements for every error.

use std::time::Duration;

use tower_spiffe::testing::FakeAgent;
use tower_spiffe::token::FetchSvidError;
use tower_spiffe::token::SvidRequest;
use tower_spiffe::workload_api::{
    WorkloadApiClient, WorkloadApiClientBuilder, WorkloadApiError, WorkloadApiErrorReason,
};
pub(crate) use tower_spiffe_test_support::wait::eventually;

pub(crate) const TD: &str = "example.org";
pub(crate) const AUD: &str = "spiffe://example.org/db";
pub(crate) const WEB: &str = "spiffe://example.org/web";
pub(crate) const OPS: &str = "spiffe://example.org/ops";
pub(crate) const LIFE: Duration = Duration::from_secs(300);

/// An agent and its endpoint.
pub(crate) struct Place {
    pub(crate) agent: FakeAgent,
    /// Its name in errors.
    pub(crate) name: String,
}

/// Returns an agent in memory, one on TCP and, if supported, one on a Unix socket, with two
/// identities each.
pub(crate) async fn places() -> Vec<Place> {
    let agents = vec![
        FakeAgent::start_in_memory(TD).await.unwrap(),
        FakeAgent::start_tcp(TD).await.unwrap(),
        #[cfg(unix)]
        FakeAgent::start(TD).await.unwrap(),
    ];
    let places = agents.into_iter().enumerate().map(|(at, agent)| {
        agent.register(WEB, "external", LIFE).unwrap();
        agent.register(OPS, "internal", LIFE).unwrap();
        let name = match at {
            0 => "a given connector".to_owned(),
            _ => agent.endpoint().to_string(),
        };
        Place { agent, name }
    });
    places.collect()
}

impl Place {
    pub(crate) fn builder(&self) -> WorkloadApiClientBuilder {
        match self.name.parse() {
            Ok(endpoint) => WorkloadApiClient::builder(&endpoint),
            Err(_) => WorkloadApiClient::with_connector(self.agent.connector()),
        }
    }

    pub(crate) fn client(&self) -> WorkloadApiClient {
        self.builder().build().unwrap()
    }

    /// Returns a client with short timeouts.
    pub(crate) fn impatient(&self) -> WorkloadApiClient {
        let short = Duration::from_millis(100);
        self.builder()
            .call_timeout(short)
            .first_message_timeout(short)
            .build()
            .unwrap()
    }
}

pub(crate) fn request() -> SvidRequest {
    SvidRequest::new([AUD]).unwrap()
}

/// Returns the errors of the three calls.
pub(crate) async fn failures(client: &WorkloadApiClient, token: &str) -> [WorkloadApiError; 3] {
    [
        client.fetch_jwt_svid(&request()).await.unwrap_err(),
        client.validate_jwt_svid(AUD, token).await.unwrap_err(),
        client.fetch_jwt_bundles().await.map(drop).unwrap_err(),
    ]
}

/// Asserts the requirements for every error: its reason, these parts of its text, a bounded size, one
/// line, and no token.
#[track_caller]
pub(crate) fn assert_error(
    error: &WorkloadApiError,
    reason: WorkloadApiErrorReason,
    says: &[&str],
) {
    assert_eq!(error.reason(), reason, "{error}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("{}: ", error.call())), "{text}");
    for part in says {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    let converted = FetchSvidError::from(error.clone()).to_string();
    for text in [text, format!("{error:?}"), converted] {
        assert!(text.len() < 900, "{} bytes: {text}", text.len());
        assert!(!text.contains("eyJ"), "a token: {text}");
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}
