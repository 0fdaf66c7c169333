//! Faults, withdrawals and rotations, one method each.

use std::sync::Arc;
use std::time::Duration;

use super::fault::{AgentCall, Fault, Faults};
use super::replay::Replay;
use super::state::Entry;
use super::{FakeAgent, lock};
use crate::jwt::Algorithm;

impl FakeAgent {
    /// Makes everything fail in this way from now on, including open streams.
    ///
    /// ```
    /// use tower_spiffe::testing::{Fault, FakeAgent};
    /// use tower_spiffe::token::GrpcCode;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.fail(Fault::Refuse(GrpcCode::PermissionDenied));
    /// assert!(source.fetch_jwt_svid(["reports"]).await.is_err());
    ///
    /// agent.recover();
    /// assert!(source.fetch_jwt_svid(["reports"]).await.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn fail(&self, fault: Fault) {
        if fault == Fault::HalfOpen {
            self.inner.connections.go_dead();
        }
        self.inner.agent.change(|state| state.faults.set_all(fault));
    }

    /// Makes this call fail in this way from now on.
    ///
    /// ```
    /// use tower_spiffe::token::GrpcCode;
    /// use tower_spiffe::testing::{AgentCall, Fault, FakeAgent};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start("example.org").await?;
    /// agent.fail_call(AgentCall::FetchJwtSvid, Fault::Refuse(GrpcCode::Unavailable));
    /// // Bundles arrive, tokens do not.
    /// let source = agent.source().await?;
    /// assert!(source.fetch_jwt_svid(["reports"]).await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn fail_call(&self, call: AgentCall, fault: Fault) {
        if fault == Fault::HalfOpen {
            self.inner.connections.go_dead();
        }
        self.inner
            .agent
            .change(|state| state.faults.set(call, fault));
    }

    /// Ends every fault.
    ///
    /// ```
    /// # use tower_spiffe::testing::{Fault, FakeAgent};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.fail(Fault::Hang);
    /// assert!(source.fetch_jwt_svid(["db"]).await.is_err());
    /// agent.recover();
    /// assert!(source.fetch_jwt_svid(["db"]).await.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn recover(&self) {
        self.inner
            .agent
            .change(|state| state.faults = Faults::default());
    }

    /// Makes the open connections dead: they stay open, but no byte is read or written, as if a network
    /// device had lost their state. New connections work. The agent keeps its side of a dead connection
    /// until [`cut_connections`](Self::cut_connections), also if the client has closed it.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # use tower_spiffe::source::JwtSourceErrorReason;
    /// # use tower_spiffe::token::TokenErrorReason;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.half_open();
    /// // There is no response at all, so the call ends at its deadline.
    /// let error = source.fetch_jwt_svid(["db"]).await.unwrap_err();
    /// assert_eq!(error.reason(), JwtSourceErrorReason::Token(TokenErrorReason::Timeout));
    /// // The connection is replaced, so the next call works.
    /// assert!(source.fetch_jwt_svid(["db"]).await.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn half_open(&self) {
        self.inner.connections.go_dead();
    }

    /// Cuts every open connection, and returns when they are closed. New connections work.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_spiffe::testing::FakeAgent;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.cut_connections().await;
    /// assert!(source.bundle_set().is_ok()); // the known keys are still valid
    /// tokio::time::sleep(Duration::from_secs(60)).await; // of paused time
    /// assert!(source.state().connected);
    /// assert_eq!(agent.counts().connections, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cut_connections(&self) {
        self.inner.connections.cut().await;
    }

    /// Removes every identity: streams end with PermissionDenied, and so does every call except
    /// ValidateJWTSVID, as if SPIRE's entries were deleted.
    ///
    /// ```
    /// use tower_spiffe::testing::FakeAgent;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start("example.org").await?;
    /// let source = agent.source().await?;
    /// let mut updates = source.updated();
    /// agent.withdraw();
    /// updates.changed().await?;
    /// assert!(source.bundle_set().is_err());
    ///
    /// agent.restore();
    /// updates.changed().await?;
    /// assert!(source.bundle_set().is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn withdraw(&self) {
        self.inner.agent.change(|state| {
            let entries = std::mem::take(&mut state.entries);
            put_in(&mut state.withdrawn, entries);
        });
    }

    /// Restores the withdrawn identities. Those that were registered since stay.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    /// let mut updates = source.updated();
    ///
    /// agent.withdraw();
    /// updates.changed().await?;
    /// assert!(source.bundle_set().is_err());
    /// agent.restore();
    /// updates.changed().await?;
    /// assert!(source.bundle_set().is_ok());
    /// assert!(source.get_jwt_svid(["db"]).await.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn restore(&self) {
        self.inner.agent.change(|state| {
            let mut entries = std::mem::take(&mut state.withdrawn);
            put_in(&mut entries, std::mem::take(&mut state.entries));
            state.entries = entries;
        });
    }

    /// Sends the same set again on every stream, with its keys in another order. This is not a change,
    /// although the bytes differ. SPIRE's agent does this sometimes.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_spiffe::testing::FakeAgent;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    /// agent.rotate().await; // to two keys, which can change places
    /// let (revision, messages) = (source.state().revision, agent.counts().bundle_messages);
    ///
    /// agent.send_again();
    /// tokio::time::sleep(Duration::from_secs(1)).await; // of paused time
    /// assert_eq!(agent.counts().bundle_messages, messages + 1);
    /// assert_eq!(source.state().revision, revision); // not a change
    /// # Ok(())
    /// # }
    /// ```
    pub fn send_again(&self) {
        self.inner
            .agent
            .change(|state| state.reversed = !state.reversed);
    }

    /// Taints this key, as SPIRE does before a revocation. The key stays in the bundle, which is sent
    /// again in another order. The tokens that it signed are dropped from the agent's cache, so the next
    /// fetch gets one of the current signing key. Rotate first.
    ///
    /// ```
    /// use tower_spiffe::testing::FakeAgent;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start("example.org").await?;
    /// let source = agent.source().await?;
    /// let old = source.fetch_jwt_svid(["reports"]).await?;
    /// let old_key = agent.issuer().signing_key_id();
    ///
    /// agent.rotate().await;
    /// assert_eq!(source.fetch_jwt_svid(["reports"]).await?.token(), old.token()); // cached
    /// agent.taint(&old_key);
    /// assert_ne!(source.fetch_jwt_svid(["reports"]).await?.token(), old.token());
    /// agent.issuer().revoke(&old_key);
    /// # Ok(())
    /// # }
    /// ```
    pub fn taint(&self, kid: &str) {
        self.inner.agent.change(|state| {
            state.cache.forget_signed_by(kid);
            state.reversed = !state.reversed;
        });
    }

    /// Empties the agent's cache of tokens: the next fetch signs a new one.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    /// let first = source.fetch_jwt_svid(["db"]).await?;
    /// assert_eq!(source.fetch_jwt_svid(["db"]).await?.token(), first.token());
    ///
    /// agent.forget_tokens();
    /// assert_ne!(source.fetch_jwt_svid(["db"]).await?.token(), first.token());
    /// # Ok(())
    /// # }
    /// ```
    pub fn forget_tokens(&self) {
        self.inner.agent.state().cache.clear();
    }

    /// Sets how many seconds the agent's clock is ahead, or behind if negative. The agent uses it for the
    /// times of tokens and to validate them.
    ///
    /// ```
    /// use tower_spiffe::Validator;
    /// use tower_spiffe::testing::FakeAgent;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start("example.org").await?;
    /// let validator = Validator::builder(agent.source().await?).audience("reports").build()?;
    /// agent.set_clock_offset(-3600); // tokens that have expired when they arrive
    /// let token = agent.token("spiffe://example.org/web", "reports");
    /// assert!(validator.validate(&token).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_clock_offset(&self, seconds: i64) {
        self.inner.agent.clock.set(seconds);
    }

    /// Replaces what bundle streams send, until the replay is dropped.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// let replay = agent.replay();
    /// let mut updates = source.updated();
    /// // One half of it is valid, and is applied.
    /// let jwks = agent.issuer().jwks();
    /// replay.send([("spiffe://example.org", &jwks[..]), ("spiffe://other.test", b"{")]
    ///     .map(|(name, jwks)| (name, jwks.to_vec()))).await;
    /// updates.changed().await?;
    /// assert!(source.bundle_for_trust_domain(&"example.org".parse()?).is_ok());
    /// assert!(source.bundle_for_trust_domain(&"other.test".parse()?)?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn replay(&self) -> Replay {
        Replay::begin(self.inner.agent.clone())
    }

    /// Rotates the signing key as SPIRE does, and returns the ID of the new key. The new key is published
    /// first. It signs when the open streams have it and the sources of [`source`](Self::source) have
    /// applied it. The old one leaves the bundle after one token lifetime. Valid tokens are never
    /// rejected during the rotation.
    ///
    /// Rotations run one after another. If the future is dropped before its end, the new key is removed.
    ///
    /// ```
    /// use tower_spiffe::Validator;
    /// use tower_spiffe::testing::FakeAgent;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start("example.org").await?;
    /// let source = agent.source().await?;
    /// let validator = Validator::builder(source).audience("reports").build()?;
    ///
    /// let before = agent.token("spiffe://example.org/web", "reports");
    /// agent.rotate().await;
    /// let after = agent.token("spiffe://example.org/web", "reports");
    /// assert!(validator.validate(&before).is_ok());
    /// assert!(validator.validate(&after).is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn rotate(&self) -> String {
        self.rotate_to(self.issuer().algorithm()).await
    }

    /// Rotates as [`rotate`](Self::rotate), to another algorithm.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # use tower_spiffe::Validator;
    /// # use tower_spiffe::bundle::Algorithm;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    /// let only_es256 = Validator::builder(source).audience("reports").algorithms([Algorithm::ES256]).build()?;
    ///
    /// agent.rotate_to(Algorithm::RS256).await;
    /// let token = agent.token("spiffe://example.org/web", "reports");
    /// assert!(only_es256.validate(&token).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn rotate_to(&self, algorithm: Algorithm) -> String {
        let (old, new) = self.inner.agent.rotate(algorithm).await;
        self.retire_later(old);
        new
    }

    /// Rotates immediately, as a server that has lost its keys, and returns the ID of the new key. The
    /// new key signs at once, so tokens may arrive before their key. The old one leaves the bundle after
    /// one token lifetime.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # use tower_spiffe::Validator;
    /// # use tower_spiffe::verify::ValidateReason;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    /// let validator = Validator::builder(source.clone()).audience("reports").build()?;
    /// let mut updates = source.updated();
    ///
    /// agent.rotate_now();
    /// let token = agent.token("spiffe://example.org/web", "reports");
    /// // The token arrives before its key.
    /// assert_eq!(validator.validate(&token).unwrap_err().reason(), ValidateReason::KeyUnknown);
    /// updates.changed().await?;
    /// assert!(validator.validate(&token).is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn rotate_now(&self) -> String {
        let old = self.issuer().signing_key_id();
        let new = self.issuer().rotate_now();
        self.retire_later(old);
        new
    }

    /// [Rotates](Self::rotate) at this interval, until [`stop_rotating`](Self::stop_rotating) or until
    /// the agent is dropped.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_spiffe::testing::FakeAgent;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let first = agent.issuer().signing_key_id();
    /// agent.rotate_every(Duration::from_secs(3600));
    /// tokio::time::sleep(Duration::from_secs(3 * 3600)).await; // in paused time
    /// assert_ne!(agent.issuer().signing_key_id(), first);
    /// # Ok(())
    /// # }
    /// ```
    pub fn rotate_every(&self, period: Duration) {
        let weak = Arc::downgrade(&self.inner);
        let rotating = self.inner.runtime.spawn(async move {
            loop {
                tokio::time::sleep(period).await;
                let Some(inner) = weak.upgrade() else { break };
                Self { inner }.rotate().await;
            }
        });
        let before = lock(&self.inner.schedule).replace(rotating.abort_handle());
        if let Some(before) = before {
            before.abort();
        }
    }

    /// Ends the schedule of [`rotate_every`](Self::rotate_every). Old keys are still removed later.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_spiffe::testing::FakeAgent;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// agent.rotate_every(Duration::from_secs(3600));
    /// agent.stop_rotating();
    /// let key = agent.issuer().signing_key_id();
    /// tokio::time::sleep(Duration::from_secs(3 * 3600)).await; // of paused time
    /// assert_eq!(agent.issuer().signing_key_id(), key);
    /// # Ok(())
    /// # }
    /// ```
    pub fn stop_rotating(&self) {
        if let Some(schedule) = lock(&self.inner.schedule).take() {
            schedule.abort();
        }
    }

    fn retire_later(&self, kid: String) {
        let retirement = self.inner.agent.retirement(kid);
        let mut timers = lock(&self.inner.timers);
        while timers.try_join_next().is_some() {}
        timers.spawn_on(retirement, &self.inner.runtime);
    }
}

/// Adds entries. Of two entries for one identity the newer one stays.
fn put_in(entries: &mut Vec<Entry>, newer: Vec<Entry>) {
    entries.retain(|old| newer.iter().all(|new| new.id != old.id));
    entries.extend(newer);
}
