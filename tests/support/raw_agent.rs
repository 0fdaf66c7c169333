//! An agent with the exact responses that a test sets, for responses that the embedded agent never
//! sends.

use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::Stream;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use tower_spiffe::workload_api::WorkloadApiClient;

use crate::wire::pb::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use crate::wire::pb::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
    ValidateJwtsvidRequest, ValidateJwtsvidResponse,
};

/// The responses, and the requests so far. Clones share them.
#[derive(Clone, Default)]
pub struct RawAgent(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    svids: Vec<Jwtsvid>,
    verdict: ValidateJwtsvidResponse,
    asked: Vec<JwtsvidRequest>,
}

impl RawAgent {
    /// Sets the response to fetches: ID, token and hint of each entry.
    pub fn answer(&self, svids: &[(&str, &str, &str)]) {
        let svids = svids.iter().map(|(spiffe_id, svid, hint)| Jwtsvid {
            spiffe_id: (*spiffe_id).to_owned(),
            svid: (*svid).to_owned(),
            hint: (*hint).to_owned(),
        });
        self.0.lock().unwrap().svids = svids.collect();
    }

    pub fn verdict(&self, verdict: ValidateJwtsvidResponse) {
        self.0.lock().unwrap().verdict = verdict;
    }

    /// Returns the requests so far.
    pub fn asked(&self) -> Vec<JwtsvidRequest> {
        self.0.lock().unwrap().asked.clone()
    }

    /// Creates a client of this agent.
    pub fn client(&self) -> WorkloadApiClient {
        WorkloadApiClient::with_connector(self.connector())
            .build()
            .unwrap()
    }

    /// Creates a connector to this agent.
    pub fn connector(
        &self,
    ) -> impl Fn() -> Ready<std::io::Result<DuplexStream>> + Clone + Send + Sync + use<> {
        let (dialled, dials) = mpsc::unbounded_channel::<DuplexStream>();
        let incoming = futures_util::stream::unfold(dials, async |mut dials| {
            let io = dials.recv().await?;
            Some((Ok::<_, std::io::Error>(io), dials))
        });
        let service = SpiffeWorkloadApiServer::new(self.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        move || {
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            let sent = dialled.send(theirs);
            ready(sent.map(|()| ours).map_err(std::io::Error::other))
        }
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for RawAgent {
    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let mut state = self.0.lock().unwrap();
        state.asked.push(request.into_inner());
        let svids = state.svids.clone();
        Ok(Response::new(JwtsvidResponse { svids }))
    }

    type FetchJWTBundlesStream =
        Pin<Box<dyn Stream<Item = Result<JwtBundlesResponse, Status>> + Send>>;

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented("no bundle stream"))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Ok(Response::new(self.0.lock().unwrap().verdict.clone()))
    }
}
