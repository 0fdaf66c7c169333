//! The faults of the agent.

use std::fmt;
use std::time::Duration;

use crate::grpc_code::GrpcCode;

/// One way in which the agent fails. Set with [`fail`](super::FakeAgent::fail) for everything, or
/// with [`fail_call`](super::FakeAgent::fail_call) for one call; it lasts until
/// [`recover`](super::FakeAgent::recover).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Every call fails with this status, and open bundle streams end with it.
    ///
    /// ```
    /// # use tower_spiffe::testing::{Fault, FakeAgent};
    /// # use tower_spiffe::token::GrpcCode;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.fail(Fault::Refuse(GrpcCode::Unavailable));
    /// let error = source.fetch_jwt_svid(["db"]).await.unwrap_err();
    /// assert_eq!(error.code(), Some(GrpcCode::Unavailable));
    /// assert!(source.bundle_set().is_ok()); // the known keys are still valid
    /// # Ok(())
    /// # }
    /// ```
    Refuse(GrpcCode),
    /// Calls are accepted and get no response; open bundle streams send nothing. Connections stay open,
    /// and pings get responses.
    ///
    /// ```
    /// # use tower_spiffe::testing::{Fault, FakeAgent};
    /// # use tower_spiffe::source::JwtSourceErrorReason;
    /// # use tower_spiffe::token::TokenErrorReason;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.fail(Fault::Hang);
    /// // The call ends at its deadline, see `JwtSourceBuilder::fetch_timeout`.
    /// let error = source.fetch_jwt_svid(["db"]).await.unwrap_err();
    /// assert_eq!(error.reason(), JwtSourceErrorReason::Token(TokenErrorReason::Timeout));
    /// # Ok(())
    /// # }
    /// ```
    Hang,
    /// Every response and every bundle message is delayed by this time.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_spiffe::testing::{Fault, FakeAgent};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.fail(Fault::Slow(Duration::from_secs(3)));
    /// let began = tokio::time::Instant::now();
    /// source.fetch_jwt_svid(["db"]).await?;
    /// assert_eq!(began.elapsed().as_secs(), 3); // of paused time
    /// # Ok(())
    /// # }
    /// ```
    Slow(Duration),
    /// A bundle stream ends, without an error, after its first message.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_spiffe::testing::{Fault, FakeAgent};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    ///
    /// agent.fail(Fault::HangUp);
    /// let source = agent.source().await?; // one message is enough to start
    /// tokio::time::sleep(Duration::from_secs(60)).await; // of paused time
    /// assert!(source.bundle_set().is_ok());
    /// let streams = agent.counts().fetch_jwt_bundles;
    /// assert!((2..60).contains(&streams)); // it reconnects, with backoff
    /// # Ok(())
    /// # }
    /// ```
    HangUp,
    /// A bundle stream ends with this status after its first message.
    ///
    /// ```
    /// # use tower_spiffe::testing::{Fault, FakeAgent};
    /// # use tower_spiffe::token::GrpcCode;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    /// let mut updates = source.updated();
    ///
    /// agent.fail(Fault::HangUpWith(GrpcCode::PermissionDenied));
    /// updates.changed().await?;
    /// assert!(source.state().withdrawn.is_some());
    /// # Ok(())
    /// # }
    /// ```
    HangUpWith(GrpcCode),
    /// Responses are well-formed messages with invalid content: JWKS that are not JSON, tokens that
    /// are not tokens.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_spiffe::testing::{Fault, FakeAgent};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.fail(Fault::Garbage);
    /// assert!(source.fetch_jwt_svid(["db"]).await.is_err());
    /// tokio::time::sleep(Duration::from_secs(1)).await; // of paused time
    /// let state = source.state();
    /// let [own] = &*state.trust_domains else { panic!("there is one") };
    /// assert!(own.last_error.is_some());
    /// assert_eq!(own.key_ids.len(), 1); // the last good keys
    /// # Ok(())
    /// # }
    /// ```
    Garbage,
    /// Responses are gRPC frames whose content is not a message.
    ///
    /// ```
    /// # use tower_spiffe::testing::{Fault, FakeAgent};
    /// # use tower_spiffe::source::JwtSourceErrorReason;
    /// # use tower_spiffe::token::TokenErrorReason;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.fail(Fault::NotProtobuf);
    /// let error = source.fetch_jwt_svid(["db"]).await.unwrap_err();
    /// assert_eq!(error.reason(), JwtSourceErrorReason::Token(TokenErrorReason::Unacceptable));
    /// # Ok(())
    /// # }
    /// ```
    NotProtobuf,
    /// New connections get a response that is not HTTP/2, and are cut. Applies to new connections,
    /// for every call.
    ///
    /// ```
    /// # use tower_spiffe::testing::{Fault, FakeAgent};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    ///
    /// agent.fail(Fault::NotHttp2);
    /// let error = agent.source().await.unwrap_err(); // at the end of `initial_sync_timeout`
    /// assert!(error.to_string().contains("does not speak HTTP/2"));
    ///
    /// agent.recover();
    /// assert!(agent.source().await.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    NotHttp2,
    /// Connections stay open and are dead: nothing is read from them or written to them. Those that
    /// are open now, or are opened during the fault, stay dead after the recovery, as if a network
    /// device had lost their state. Applies to whole connections, for every call.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_spiffe::testing::{Fault, FakeAgent};
    /// # use tower_spiffe::source::JwtSourceErrorReason;
    /// # use tower_spiffe::token::TokenErrorReason;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.fail(Fault::HalfOpen);
    /// let error = source.fetch_jwt_svid(["db"]).await.unwrap_err(); // at its deadline
    /// assert_eq!(error.reason(), JwtSourceErrorReason::Token(TokenErrorReason::Timeout));
    /// // The source replaces the connection, but the new one is dead too.
    /// tokio::time::sleep(Duration::from_secs(1)).await; // of paused time
    /// assert!(!source.state().connected);
    /// # Ok(())
    /// # }
    /// ```
    HalfOpen,
    /// Messages are larger than this many bytes: the agent's own JWKS has an unknown member of
    /// that size, and so has a claim of the tokens.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_spiffe::testing::{Fault, FakeAgent};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.fail(Fault::Oversized(5 << 20)); // see `ResourceLimits::max_bundle_jwks_bytes`
    /// tokio::time::sleep(Duration::from_secs(1)).await; // of paused time
    /// let state = source.state();
    /// assert!(state.trust_domains[0].last_error.as_ref().is_some_and(|error| error.contains("bytes")));
    /// assert!(source.bundle_set().is_ok()); // the last good keys
    /// # Ok(())
    /// # }
    /// ```
    Oversized(usize),
    /// The agent is available, and its server is not. Audiences with a cached token get the same
    /// token until it expires; others wait for 30 s and get UNAVAILABLE, as from SPIRE.
    ///
    /// ```
    /// # use tower_spiffe::testing::{Fault, FakeAgent};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    /// let known = source.fetch_jwt_svid(["db"]).await?;
    ///
    /// agent.fail(Fault::ServerAway);
    /// assert_eq!(source.fetch_jwt_svid(["db"]).await?.token(), known.token());
    /// assert!(source.fetch_jwt_svid(["other"]).await.is_err()); // after 30 s of paused time
    /// # Ok(())
    /// # }
    /// ```
    ServerAway,
    /// FetchJWTSVID always returns exactly these: none, the same hint twice, a token of another
    /// identity. The other calls are not affected.
    ///
    /// ```
    /// use tower_spiffe::testing::{AgentCall, Fault, RawSvid, FakeAgent};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// // A token for another audience than the requested one is an error.
    /// let web = "spiffe://example.org/web";
    /// let other = RawSvid::new(web, &agent.token(web, "other"), "");
    /// agent.fail_call(AgentCall::FetchJwtSvid, Fault::Svids(vec![other]));
    /// assert!(source.fetch_jwt_svid(["reports"]).await.is_err());
    ///
    /// agent.recover();
    /// assert!(source.fetch_jwt_svid(["reports"]).await.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    Svids(Vec<RawSvid>),
}

/// One entry of a response to FetchJWTSVID, sent as it is: see [`Fault::Svids`]. `Debug` does not
/// show the token.
#[derive(Clone, PartialEq, Eq)]
pub struct RawSvid {
    pub(super) spiffe_id: String,
    pub(super) svid: String,
    pub(super) hint: String,
}

impl RawSvid {
    /// Creates an entry from its three fields, which are not checked.
    pub fn new(spiffe_id: &str, svid: &str, hint: &str) -> Self {
        Self {
            spiffe_id: spiffe_id.to_owned(),
            svid: svid.to_owned(),
            hint: hint.to_owned(),
        }
    }
}

impl fmt::Debug for RawSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawSvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

/// One call of the Workload API's JWT profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AgentCall {
    /// Tokens for the caller.
    FetchJwtSvid,
    /// The stream of bundles.
    FetchJwtBundles,
    /// The validation of a token by the agent.
    ValidateJwtSvid,
}

impl AgentCall {
    pub(super) fn of_path(path: &str) -> Option<Self> {
        match path.strip_prefix("/SpiffeWorkloadAPI/")? {
            "FetchJWTSVID" => Some(Self::FetchJwtSvid),
            "FetchJWTBundles" => Some(Self::FetchJwtBundles),
            "ValidateJWTSVID" => Some(Self::ValidateJwtSvid),
            _ => None,
        }
    }
}

/// The faults in force, one for each call.
#[derive(Debug, Default)]
pub(super) struct Faults {
    fetch_jwt_svid: Option<Fault>,
    fetch_jwt_bundles: Option<Fault>,
    validate_jwt_svid: Option<Fault>,
}

impl Faults {
    pub(super) fn of(&self, call: AgentCall) -> Option<&Fault> {
        match call {
            AgentCall::FetchJwtSvid => self.fetch_jwt_svid.as_ref(),
            AgentCall::FetchJwtBundles => self.fetch_jwt_bundles.as_ref(),
            AgentCall::ValidateJwtSvid => self.validate_jwt_svid.as_ref(),
        }
    }

    pub(super) fn set(&mut self, call: AgentCall, fault: Fault) {
        let place = match call {
            AgentCall::FetchJwtSvid => &mut self.fetch_jwt_svid,
            AgentCall::FetchJwtBundles => &mut self.fetch_jwt_bundles,
            AgentCall::ValidateJwtSvid => &mut self.validate_jwt_svid,
        };
        *place = Some(fault);
    }

    pub(super) fn set_all(&mut self, fault: Fault) {
        self.set(AgentCall::FetchJwtSvid, fault.clone());
        self.set(AgentCall::FetchJwtBundles, fault.clone());
        self.set(AgentCall::ValidateJwtSvid, fault);
    }

    /// Whether this fault is in force for any call. For faults of whole connections.
    pub(super) fn any(&self, fault: &Fault) -> bool {
        [
            &self.fetch_jwt_svid,
            &self.fetch_jwt_bundles,
            &self.validate_jwt_svid,
        ]
        .into_iter()
        .any(|set| set.as_ref() == Some(fault))
    }
}
