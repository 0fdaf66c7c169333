//! Rotation of keys.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::state::Agent;
use crate::jwt::Algorithm;
use crate::source::SourceUpdates;
use crate::testing::issuer::Issuer;

/// The time between the sending of a message and its effect on the reader. In paused time it passes
/// exactly when all tasks are idle.
const SETTLING: Duration = Duration::from_millis(20);

/// How long a rotation waits for clients that do not read their stream.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a rotation waits for sources without an open stream.
const PATIENCE_WITH_SOURCES: Duration = Duration::from_secs(1);

/// Waits until sent messages have taken effect.
pub(super) async fn settle() {
    tokio::time::sleep(SETTLING).await;
}

impl Agent {
    /// Rotates gracefully: publishes the new key, waits until all clients have it, then signs with it.
    /// Returns the IDs of the old key and the new one.
    ///
    /// Rotations run one after another: otherwise the key of an overtaken rotation would never be
    /// retired. A cancelled rotation removes its key.
    pub(super) async fn rotate(&self, algorithm: Algorithm) -> (String, String) {
        let _turn = self.rotating.lock().await;
        let sources = self.sources();
        let old = self.issuer.signing_key_id();
        let prepared = Prepared::new(&self.issuer, algorithm);
        let _ = tokio::time::timeout(PATIENCE, self.all_streams_have_taken()).await;
        wait_for_sources(sources).await;
        settle().await;
        (old, prepared.activate())
    }

    /// The open sources, each with its current revision.
    fn sources(&self) -> Vec<(u64, SourceUpdates)> {
        let sources = &mut self.state().sources;
        sources.retain(|updates| !updates.is_closed());
        sources
            .iter()
            .map(|updates| (updates.last(), updates.clone()))
            .collect()
    }

    /// Removes the key from the bundle when the last token that it signed has expired.
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

/// Waits until each source is past its given revision, or is shut down.
async fn wait_for_sources(sources: Vec<(u64, SourceUpdates)>) {
    let until = Instant::now() + PATIENCE_WITH_SOURCES;
    for (before, mut updates) in sources {
        let newer = updates.wait_for(|revision| revision > before);
        let _ = tokio::time::timeout_at(until, newer).await;
    }
}

/// A key that is published and does not sign yet. It is removed if it is not activated.
struct Prepared<'a> {
    issuer: &'a Issuer,
    kid: String,
}

impl<'a> Prepared<'a> {
    fn new(issuer: &'a Issuer, algorithm: Algorithm) -> Self {
        let kid = issuer.prepare(algorithm);
        Self { issuer, kid }
    }

    fn activate(mut self) -> String {
        self.issuer.activate(&self.kid);
        std::mem::take(&mut self.kid)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        // The ID of an activated key was taken: no key has the empty ID.
        self.issuer.revoke(&self.kid);
    }
}
