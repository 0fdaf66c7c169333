//! Keys that come and go.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::state::Agent;
use crate::jwt::Algorithm;
use crate::source::SourceUpdates;

/// Between the moment that a message left us and the moment that its reader has acted on it. In
/// paused time it passes when everybody is idle, so exactly then.
const SETTLING: Duration = Duration::from_millis(20);

/// A client that does not read its stream keeps nobody from rotating for longer than this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Nor does a source that has no stream just now, for longer than this.
const PATIENCE_WITH_SOURCES: Duration = Duration::from_secs(1);

/// Waits until what was said has been heard.
pub(super) async fn settle() {
    tokio::time::sleep(SETTLING).await;
}

impl Agent {
    /// The quiet rotation: publishes, waits until everybody has it, signs with it. Gives the old
    /// key's ID and the new one's.
    pub(super) async fn rotate(&self, algorithm: Algorithm) -> (String, String) {
        let sources: Vec<_> = std::mem::take(&mut self.state().sources)
            .into_iter()
            .map(|updates| (updates.last(), updates))
            .collect();
        let old = self.issuer.signing_key_id();
        let new = self.issuer.prepare(algorithm);
        let _ = tokio::time::timeout(PATIENCE, self.all_streams_have_it()).await;
        self.sources_have_it(sources).await;
        settle().await;
        self.issuer.activate(&new);
        (old, new)
    }

    /// Waits until these sources have gone beyond the revision beside them. What is shut down is
    /// not waited for, now or later.
    async fn sources_have_it(&self, sources: Vec<(u64, SourceUpdates)>) {
        let until = Instant::now() + PATIENCE_WITH_SOURCES;
        for (before, mut updates) in sources {
            let beyond = updates.wait_for(|revision| revision > before);
            if !matches!(tokio::time::timeout_at(until, beyond).await, Ok(Err(_))) {
                self.state().sources.push(updates);
            }
        }
    }

    /// Takes the key out of the bundle when the last token that it signed has expired.
    pub(super) fn retirement(self: &Arc<Self>, kid: String) -> impl Future<Output = ()> + use<> {
        let life = self.longest_token_life();
        let agent = Arc::downgrade(self);
        async move {
            tokio::time::sleep(life).await;
            if let Some(agent) = agent.upgrade() {
                agent.issuer.revoke(&kid);
            }
        }
    }

    fn longest_token_life(&self) -> Duration {
        let of_issuer = self.issuer.token_life();
        let state = self.state();
        let of_entries = state.entries.iter().map(|entry| entry.token_life);
        of_entries.fold(of_issuer, Duration::max)
    }
}
