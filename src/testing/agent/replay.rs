//! Bundle streams with messages that the test provides.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tonic::Status;

use super::rotation::settle;
use super::state::{Agent, Bundles};
use crate::grpc_code::GrpcCode;

/// Replaces what the agent's bundle streams send: raw messages, valid or not, and ends of the stream. A
/// step waits until a stream takes it, also for a client that reconnects. After this is dropped, streams
/// send what the agent publishes.
///
/// ```
/// use tower_spiffe::testing::FakeAgent;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let agent = FakeAgent::start("example.org").await?;
/// let source = agent.source().await?;
/// let mut updates = source.updated();
///
/// let replay = agent.replay();
/// replay.send([("spiffe://other.test", r#"{"keys": []}"#)]).await;
/// updates.changed().await?;
/// assert!(source.bundle_for_trust_domain(&"example.org".parse()?).is_err());
///
/// drop(replay); // back to what the agent publishes
/// updates.changed().await?;
/// assert!(source.bundle_for_trust_domain(&"example.org".parse()?).is_ok());
/// # Ok(())
/// # }
/// ```
#[must_use = "the replay ends when this is dropped"]
pub struct Replay {
    agent: Arc<Agent>,
}

/// The steps that no stream has taken yet.
#[derive(Default)]
pub(super) struct Script {
    steps: VecDeque<Step>,
}

pub(super) enum Step {
    Say(Arc<Bundles>, oneshot::Sender<()>),
    End(Option<Status>, oneshot::Sender<()>),
}

impl Script {
    pub(super) fn next(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }
}

impl Replay {
    pub(super) fn begin(agent: Arc<Agent>) -> Self {
        agent.change(|state| state.script = Some(Script::default()));
        Self { agent }
    }

    /// Sends this set: JWKS by name, both unchecked. Returns when a stream has taken it.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    /// let mut updates = source.updated();
    ///
    /// let replay = agent.replay();
    /// replay.send([("spiffe://example.org", r#"{"keys": []}"#)]).await; // every key is revoked
    /// updates.changed().await?;
    /// assert!(source.bundle_for_trust_domain(&"example.org".parse()?)?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn send<K, V>(&self, bundles: impl IntoIterator<Item = (K, V)>)
    where
        K: Into<String>,
        V: Into<Bytes>,
    {
        let bundles = bundles
            .into_iter()
            .map(|(name, jwks)| (name.into(), jwks.into()))
            .collect();
        let bundles: Arc<Bundles> = Arc::new(bundles);
        self.step(|taken| Step::Say(bundles.clone(), taken)).await;
    }

    /// Ends the stream with this status (`Ok`: without an error). Returns when it has ended.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # use tower_spiffe::token::GrpcCode;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// let replay = agent.replay();
    /// replay.end(GrpcCode::Internal, "no space left on the disk").await;
    /// let state = source.state();
    /// let error = state.last_error.map(|error| error.text);
    /// assert!(error.is_some_and(|error| error.contains("no space left on the disk")));
    /// assert!(source.bundle_set().is_ok()); // the known keys are still valid
    /// # Ok(())
    /// # }
    /// ```
    pub async fn end(&self, code: GrpcCode, message: &str) {
        let status = (code != GrpcCode::Ok)
            .then(|| Status::new(tonic::Code::from(i32::from(code.as_u8())), message));
        self.step(|taken| Step::End(status.clone(), taken)).await;
    }

    async fn step(&self, step: impl Fn(oneshot::Sender<()>) -> Step) {
        loop {
            let (taken, has_taken) = oneshot::channel();
            let step = step(taken);
            self.agent.change(|state| {
                state.script.get_or_insert_default().steps.push_back(step);
            });
            if has_taken.await.is_ok() {
                break;
            }
            // The stream ended before it could send the step: the next one takes it.
        }
        settle().await;
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.agent.change(|state| state.script = None);
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").finish_non_exhaustive()
    }
}
