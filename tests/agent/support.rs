//! A Workload API client that shares only the generated messages with this crate.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tower::service_fn;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::{FakeAgent, PausedClock};
use tower_spiffe_test_support::wait;

use crate::wire::pb::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::wire::pb::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse,
};

pub(crate) const TD: &str = "example.org";
pub(crate) const AUD: &str = "spiffe://example.org/db";

pub(crate) struct Client(pub(crate) SpiffeWorkloadApiClient<Channel>);

/// Connects to the agent's socket, with a new connection.
pub(crate) async fn dial(agent: &FakeAgent) -> Client {
    try_dial(agent).await.unwrap()
}

pub(crate) async fn try_dial(agent: &FakeAgent) -> Result<Client, tonic::transport::Error> {
    let endpoint = agent.endpoint().to_string();
    #[cfg(unix)]
    if let Some(path) = endpoint.strip_prefix("unix://") {
        let path = path.to_owned();
        let dial = service_fn(move |_| {
            let path = path.clone();
            async { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = plain().connect_with_connector(dial).await?;
        return Ok(Client(SpiffeWorkloadApiClient::new(channel)));
    }
    let address = endpoint.strip_prefix("tcp://").unwrap().to_owned();
    let dial = service_fn(move |_| {
        let address = address.clone();
        async { TcpStream::connect(address).await.map(TokioIo::new) }
    });
    let channel = plain().connect_with_connector(dial).await?;
    Ok(Client(SpiffeWorkloadApiClient::new(channel)))
}

/// An agent in memory on a paused clock.
pub(crate) async fn paused_agent() -> (PausedClock, FakeAgent) {
    let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
    let agent = FakeAgent::builder(TD)
        .clock(clock.shared())
        .start_in_memory()
        .await
        .unwrap();
    (clock, agent)
}

/// The same over an in-memory connection, for paused time.
pub(crate) async fn dial_in_memory(agent: &FakeAgent) -> Client {
    dial_in_memory_as(plain(), agent).await
}

pub(crate) async fn dial_in_memory_as(endpoint: Endpoint, agent: &FakeAgent) -> Client {
    let connector = agent.connector();
    let channel = endpoint
        .connect_with_connector(service_fn(move |_| {
            let dialled = connector();
            async { dialled.await.map(TokioIo::new) }
        }))
        .await
        .unwrap();
    Client(SpiffeWorkloadApiClient::new(channel))
}

pub(crate) fn plain() -> Endpoint {
    Endpoint::from_static("http://agent.invalid")
}

pub(crate) fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let yes = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", yes);
    request
}

pub(crate) fn wanted(audiences: &[&str], spiffe_id: &str) -> JwtsvidRequest {
    JwtsvidRequest {
        audience: audiences
            .iter()
            .map(|&audience| audience.to_owned())
            .collect(),
        spiffe_id: spiffe_id.to_owned(),
    }
}

impl Client {
    pub(crate) async fn fetch(
        &self,
        audiences: &[&str],
        spiffe_id: &str,
    ) -> Result<Vec<Jwtsvid>, Status> {
        let request = with_header(wanted(audiences, spiffe_id));
        let answer = self.0.clone().fetch_jwtsvid(request).await?;
        Ok(answer.into_inner().svids)
    }

    pub(crate) async fn token(&self, audience: &str) -> Result<String, Status> {
        Ok(self.fetch(&[audience], "").await?.remove(0).svid)
    }

    pub(crate) async fn bundles(&self) -> Result<Streaming<JwtBundlesResponse>, Status> {
        let request = with_header(JwtBundlesRequest {});
        let mut client = self.0.clone().max_decoding_message_size(64 << 20);
        Ok(client.fetch_jwt_bundles(request).await?.into_inner())
    }

    pub(crate) async fn validate(
        &self,
        audience: &str,
        svid: &str,
    ) -> Result<ValidateJwtsvidResponse, Status> {
        let request = with_header(ValidateJwtsvidRequest {
            audience: audience.to_owned(),
            svid: svid.to_owned(),
        });
        Ok(self.0.clone().validate_jwtsvid(request).await?.into_inner())
    }
}

/// Returns the key IDs of this trust domain in the next message; a clean end is `None`.
pub(crate) async fn next_key_ids(
    stream: &mut Streaming<JwtBundlesResponse>,
    trust_domain: &str,
) -> Vec<String> {
    let message = stream.message().await.unwrap().expect("the stream ended");
    key_ids(&message, trust_domain)
}

pub(crate) fn key_ids(message: &JwtBundlesResponse, trust_domain: &str) -> Vec<String> {
    let jwks = &message.bundles[&format!("spiffe://{trust_domain}")];
    let jwks: serde_json::Value = serde_json::from_slice(jwks).unwrap();
    jwks["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["kid"].as_str().unwrap().to_owned())
        .collect()
}

/// Whether no message arrives for some time.
pub(crate) async fn silent(stream: &mut Streaming<JwtBundlesResponse>) -> bool {
    tokio::time::timeout(Duration::from_millis(150), stream.message())
        .await
        .is_err()
}

/// Returns how the stream ends: `Ok` if without an error.
pub(crate) async fn end(stream: &mut Streaming<JwtBundlesResponse>) -> Code {
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Code::Ok,
            Err(status) => return status.code(),
        }
    }
}

pub(crate) fn claims(token: &str) -> serde_json::Value {
    crate::issuer::part(token, 1)
}

/// Waits until this is true.
pub(crate) async fn eventually(condition: impl Fn() -> bool) {
    wait::eventually("the condition", condition).await;
}

/// Waits until this is true.
pub(crate) async fn eventually_async(condition: impl AsyncFn() -> bool) {
    wait::eventually_async("the condition", condition).await;
}
