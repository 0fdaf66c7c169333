//! The three calls, with the responses of SPIRE's agent.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::bundles::{BundleStream, bundle_stream};
use super::fault::{AgentCall, Fault, RawSvid};
use super::state::{Agent, Entry};
use super::tokens::{CachedToken, TokenKey};
use crate::clock::Clock as _;
use crate::identity::SpiffeId;
use crate::testing::issuer::TokenBuilder;
use crate::workload_api::pb::spiffe_workload_api_server::SpiffeWorkloadApi;
use crate::workload_api::pb::{
    JwtBundlesRequest, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse,
};

/// How long SPIRE's agent waits for its server.
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);

/// Sent in place of a token.
pub(super) const GARBAGE: &str = "invalid \u{fffd} not a token";

pub(super) struct Calls(pub(super) Arc<Agent>);

#[tonic::async_trait]
impl SpiffeWorkloadApi for Calls {
    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        if let Some(Fault::Svids(svids)) = self.0.fault(AgentCall::FetchJwtSvid) {
            let svids = svids.into_iter().map(Jwtsvid::from).collect();
            return Ok(Response::new(JwtsvidResponse { svids }));
        }
        let request = request.into_inner();
        if request.audience.is_empty() {
            return Err(Status::invalid_argument("no audience is specified"));
        }
        let entries = self.0.entries(&request.spiffe_id)?;
        let mut svids = Vec::new();
        for entry in entries {
            svids.push(Jwtsvid {
                svid: self.0.token(&entry, &request.audience).await?,
                spiffe_id: entry.id.to_string(),
                hint: entry.hint,
            });
        }
        Ok(Response::new(JwtsvidResponse { svids }))
    }

    type FetchJWTBundlesStream = BundleStream;

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<BundleStream>, Status> {
        Ok(Response::new(bundle_stream(self.0.clone())))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let request = request.into_inner();
        if request.audience.is_empty() {
            return Err(Status::invalid_argument("no audience is specified"));
        }
        if request.svid.is_empty() {
            return Err(Status::invalid_argument("no svid is specified"));
        }
        if self.0.fault(AgentCall::ValidateJwtSvid) == Some(Fault::Garbage) {
            return Ok(Response::new(ValidateJwtsvidResponse {
                spiffe_id: GARBAGE.to_owned(),
                claims: None,
            }));
        }
        super::validate::validate(&self.0, &request.audience, &request.svid).map(Response::new)
    }
}

impl From<RawSvid> for Jwtsvid {
    fn from(raw: RawSvid) -> Self {
        Self {
            spiffe_id: raw.spiffe_id,
            svid: raw.svid,
            hint: raw.hint,
        }
    }
}

impl Agent {
    /// The requested identities: this one, or all. Of two with the same hint the older one counts.
    fn entries(&self, spiffe_id: &str) -> Result<Vec<Entry>, Status> {
        let wanted = match spiffe_id {
            "" => None,
            id => Some(SpiffeId::parse(id).map_err(|error| {
                Status::invalid_argument(format!("the requested SPIFFE ID is malformed: {error}"))
            })?),
        };
        let mut found: Vec<Entry> = Vec::new();
        for entry in &self.state().entries {
            let asked_for = wanted.as_ref().is_none_or(|id| *id == entry.id);
            let hinted_before =
                !entry.hint.is_empty() && found.iter().any(|earlier| earlier.hint == entry.hint);
            if asked_for && !hinted_before {
                found.push(entry.clone());
            }
        }
        if found.is_empty() {
            return Err(denied());
        }
        Ok(found)
    }

    async fn token(&self, entry: &Entry, audiences: &[String]) -> Result<String, Status> {
        // The server ignores empty audiences, and rejects a request without others.
        let named: Vec<&str> = audiences
            .iter()
            .map(String::as_str)
            .filter(|audience| !audience.is_empty())
            .collect();
        let fault = self.fault(AgentCall::FetchJwtSvid);
        let key = TokenKey::new(entry.id.clone(), audiences);
        let now = self.clock.now();
        match fault {
            Some(Fault::Garbage) => return Ok(GARBAGE.to_owned()),
            Some(Fault::ServerAway) => {
                let alive = self.state().cache.alive(&key, now);
                return match alive {
                    Some(token) => Ok(token),
                    None => {
                        tokio::time::sleep(SERVER_TIMEOUT).await;
                        Err(Status::unavailable(
                            "the JWT-SVID cannot be fetched: the server does not respond",
                        ))
                    }
                };
            }
            _ if named.is_empty() => {
                return Err(Status::unavailable(
                    "the JWT-SVID cannot be fetched: the server rejects an empty audience",
                ));
            }
            _ => {}
        }
        if let Some(token) = self.state().cache.fresh(&key, now) {
            return Ok(token);
        }

        let mut token = TokenBuilder::new(self.issuer.clone(), entry.id.as_str(), named)
            .expires_in(entry.token_life);
        if let Some(Fault::Oversized(bytes)) = fault {
            token = token.claim("padding", "x".repeat(bytes));
        }
        let (token, kid) = token.sign_and_name();
        self.counters.tokens_signed.up();
        let kept = CachedToken {
            token: token.clone(),
            kid,
            issued_at: now,
            expires_at: now.saturating_add(entry.token_life),
        };
        self.state().cache.keep(key, kept);
        Ok(token)
    }
}

/// The status for a caller without an identity, with the text of SPIRE's agent.
pub(super) fn denied() -> Status {
    Status::permission_denied("no identity issued")
}
