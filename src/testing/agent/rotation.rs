//! Keys that come and go.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::state::Agent;
use crate::jwt::Algorithm;
use crate::source::SourceUpdates;
use crate::testing::issuer::Issuer;

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
    ///
    /// One after another: the key of a rotation that another overtakes would never be retired. One
    /// that is given up in the middle leaves nothing behind.
    pub(super) async fn rotate(&self, algorithm: Algorithm) -> (String, String) {
        let _turn = self.rotating.lock().await;
        let sources = self.sources();
        let old = self.issuer.signing_key_id();
        let prepared = Prepared::new(&self.issuer, algorithm);
        let _ = tokio::time::timeout(PATIENCE, self.all_streams_have_it()).await;
        sources_have_it(sources).await;
        settle().await;
        (old, prepared.activate())
    }

    /// The sources that are open, each with the revision that it is at.
    fn sources(&self) -> Vec<(u64, SourceUpdates)> {
        let sources = &mut self.state().sources;
        sources.retain(|updates| !updates.is_closed());
        sources
            .iter()
            .map(|updates| (updates.last(), updates.clone()))
            .collect()
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

/// Waits until these sources have gone beyond the revision beside them, or are shut down.
async fn sources_have_it(sources: Vec<(u64, SourceUpdates)>) {
    let until = Instant::now() + PATIENCE_WITH_SOURCES;
    for (before, mut updates) in sources {
        let beyond = updates.wait_for(|revision| revision > before);
        let _ = tokio::time::timeout_at(until, beyond).await;
    }
}

/// A key that is published and does not sign yet; it goes again where it never gets to.
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
        // Of one that signs the name is gone, and nothing has none.
        self.issuer.revoke(&self.kid);
    }
}
