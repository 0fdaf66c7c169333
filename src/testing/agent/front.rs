//! The start of every call: it is counted, its security header is checked, and the faults in force
//! apply.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tonic::Status;
use tower_service::Service;

use super::bundles::failed;
use super::calls::Calls;
use super::fault::{AgentCall, Fault};
use super::state::Agent;
use crate::workload_api::pb::spiffe_workload_api_server::SpiffeWorkloadApiServer;

type Answer = Response<tonic::body::Body>;

/// The agent as a service, one clone for each connection.
#[derive(Clone)]
pub(super) struct Front {
    agent: Arc<Agent>,
    calls: SpiffeWorkloadApiServer<Calls>,
}

impl Front {
    pub(super) fn new(agent: Arc<Agent>) -> Self {
        let calls = SpiffeWorkloadApiServer::new(Calls(agent.clone()));
        Self { agent, calls }
    }
}

impl<B> Service<Request<B>> for Front
where
    B: Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { agent, mut calls } = self.clone();
        Box::pin(async move {
            let call = AgentCall::of_path(request.uri().path());
            if let Some(call) = call {
                agent.count(call);
            }
            if !has_security_header(request.headers()) {
                return Ok(
                    Status::invalid_argument("the request has no security header").into_http(),
                );
            }
            let Some(call) = call else {
                return Ok(unimplemented(request.uri().path()).into_http());
            };
            if let Some(answer) = agent.apply_faults(call).await {
                return Ok(answer);
            }
            calls.call(request).await
        })
    }
}

fn unimplemented(path: &str) -> Status {
    Status::unimplemented(format!(
        "{path} is not served: this embedded agent has the JWT-SVID profile only \
         (FetchJWTSVID, FetchJWTBundles, ValidateJWTSVID)"
    ))
}

/// Exactly once, exactly `true` (SPIFFE Workload Endpoint section 3).
fn has_security_header(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all("workload.spiffe.io").iter();
    values.next().is_some_and(|value| value == "true") && values.next().is_none()
}

impl Agent {
    fn count(&self, call: AgentCall) {
        match call {
            AgentCall::FetchJwtSvid => self.counters.fetch_jwt_svid.up(),
            AgentCall::FetchJwtBundles => self.counters.fetch_jwt_bundles.up(),
            AgentCall::ValidateJwtSvid => self.counters.validate_jwt_svid.up(),
        }
    }

    /// The response of a fault, in place of the real one.
    async fn apply_faults(&self, call: AgentCall) -> Option<Answer> {
        let mut ticks = self.ticks();
        loop {
            ticks.mark_seen();
            match self.fault(call) {
                Some(Fault::Refuse(code)) => return Some(failed(code).into_http()),
                Some(Fault::NotProtobuf) => return Some(not_protobuf()),
                Some(Fault::Hang) => ticks.changed().await,
                // The messages of a stream are delayed there.
                Some(Fault::Slow(delay)) if call != AgentCall::FetchJwtBundles => {
                    tokio::time::sleep(delay).await;
                    return None;
                }
                _ => return None,
            }
        }
    }
}

/// A complete gRPC frame whose content begins with a field of an undefined wire type.
fn not_protobuf() -> Answer {
    const CONTENT: &[u8] = b"\x0f invalid";
    let mut frame = vec![0, 0, 0, 0, CONTENT.len() as u8];
    frame.extend_from_slice(CONTENT);
    let mut response = Response::new(tonic::body::Body::new(Once(Some(Bytes::from(frame)))));
    let grpc = http::HeaderValue::from_static("application/grpc");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, grpc);
    response
}

struct Once(Option<Bytes>);

impl Body for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
