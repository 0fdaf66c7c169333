//! The messages of one bundle stream.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::oneshot;
use tonic::Status;

use super::calls::denied;
use super::fault::{AgentCall, Fault};
use super::replay::Step;
use super::state::{Agent, Bundles};
use super::tick::Ticks;
use crate::grpc_code::GrpcCode;
use crate::workload_api::pb::JwtBundlesResponse;

pub(super) type BundleStream =
    Pin<Box<dyn Stream<Item = Result<JwtBundlesResponse, Status>> + Send>>;

/// Sends the bundles now and whenever they change. A slow reader gets only the latest.
pub(super) fn bundle_stream(agent: Arc<Agent>) -> BundleStream {
    let sender = Sender {
        id: agent.stream_opened(),
        ticks: agent.ticks(),
        last: None,
        sent: 0,
        taking: None,
        ended: false,
        agent,
    };
    // Registered now, so that a rotation waits for its first message too.
    sender.agent.stream_took(sender.id, 0);
    Box::pin(stream::unfold(sender, |mut sender| async {
        let item = sender.next().await?;
        Some((item, sender))
    }))
}

/// The sender of one stream.
struct Sender {
    agent: Arc<Agent>,
    id: u64,
    ticks: Ticks,
    last: Option<Arc<Bundles>>,
    sent: u64,
    taking: Option<Taking>,
    ended: bool,
}

/// What to report when the last message has been taken.
enum Taking {
    Publication(u64),
    Replayed(oneshot::Sender<()>),
}

/// What to do next.
enum Next {
    Send(Arc<Bundles>, Taking),
    End(Option<Status>),
    Wait,
    SendLater(Duration),
}

impl Sender {
    async fn next(&mut self) -> Option<Result<JwtBundlesResponse, Status>> {
        // The next message is requested, so the last one is being sent.
        match self.taking.take() {
            Some(Taking::Publication(number)) => self.agent.stream_took(self.id, number),
            Some(Taking::Replayed(taken)) => {
                let _ = taken.send(());
            }
            None => {}
        }
        if self.ended {
            return None;
        }
        let mut waited = false;
        loop {
            self.ticks.mark_seen();
            match self.decide(waited) {
                Next::Send(bundles, taking) => {
                    self.sent += 1;
                    self.agent.counters.bundle_messages.up();
                    self.last = Some(bundles.clone());
                    self.taking = Some(taking);
                    let bundles = HashMap::clone(&bundles);
                    return Some(Ok(JwtBundlesResponse { bundles }));
                }
                Next::End(status) => {
                    self.ended = true;
                    return status.map(Err);
                }
                Next::Wait => {
                    waited = false;
                    self.ticks.changed().await;
                }
                Next::SendLater(delay) => {
                    waited = true;
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    fn decide(&self, waited: bool) -> Next {
        let mut state = self.agent.state();
        if state.stopping {
            return Next::End(Some(Status::unavailable("the agent is shutting down")));
        }
        if let Some(script) = &mut state.script {
            let step = script.next();
            drop(state);
            self.agent.exclude_stream(self.id);
            return match step {
                Some(Step::Say(bundles, taken)) => Next::Send(bundles, Taking::Replayed(taken)),
                Some(Step::End(status, taken)) => {
                    let _ = taken.send(());
                    Next::End(status)
                }
                None => Next::Wait,
            };
        }
        let fault = state.faults.of(AgentCall::FetchJwtBundles).cloned();
        drop(state);

        let published = self.agent.publication();
        let Some(bundles) = published.bundles else {
            return Next::End(Some(denied()));
        };
        let bundles = match fault {
            Some(Fault::Refuse(code)) => return Next::End(Some(failed(code))),
            Some(Fault::HangUp) if self.sent > 0 => return Next::End(None),
            Some(Fault::HangUpWith(code)) if self.sent > 0 => {
                return Next::End(Some(failed(code)));
            }
            Some(Fault::Hang) => {
                self.agent.exclude_stream(self.id);
                return Next::Wait;
            }
            Some(Fault::Garbage) => {
                // The beginning of a JWKS, as if its writer had crashed.
                self.with_own(&bundles, Bytes::from_static(b"{\"keys\": [{\"kty\": \"E"))
            }
            Some(Fault::Oversized(bytes)) => self.with_own(&bundles, self.padded(bytes)),
            _ => bundles,
        };
        if self.last.as_ref() == Some(&bundles) {
            self.agent.stream_took(self.id, published.number);
            return Next::Wait;
        }
        match fault {
            Some(Fault::Slow(delay)) if !waited => Next::SendLater(delay),
            _ => Next::Send(bundles, Taking::Publication(published.number)),
        }
    }

    /// The same set with other bytes for the agent's own trust domain.
    fn with_own(&self, bundles: &Arc<Bundles>, jwks: Bytes) -> Arc<Bundles> {
        let own = self.agent.issuer.trust_domain().to_spiffe_id().to_string();
        let mut bundles = HashMap::clone(bundles);
        bundles.insert(own, jwks);
        Arc::new(bundles)
    }

    /// The agent's own keys and a large unknown member. A reader that accepts such a large message finds
    /// the keys (SPIFFE Trust Domain and Bundle section 4.1).
    fn padded(&self, bytes: usize) -> Bytes {
        let mut jwks = self.agent.issuer.jwks();
        if jwks.pop() == Some(b'}') {
            jwks.extend_from_slice(b", \"padding\": \"");
            jwks.resize(jwks.len() + bytes, b'x');
            jwks.extend_from_slice(b"\"}");
        }
        Bytes::from(jwks)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.agent.stream_closed(self.id);
    }
}

/// A status that the test configured.
pub(super) fn failed(code: GrpcCode) -> Status {
    Status::new(
        tonic::Code::from(i32::from(code.as_u8())),
        "requested by the test",
    )
}
