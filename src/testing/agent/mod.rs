//! The Workload API of an agent inside the test.

#[cfg(unix)]
mod authority;
mod builder;
mod bundles;
mod calls;
mod connection;
mod counts;
mod fault;
mod frames;
mod front;
mod life;
mod pings;
mod place;
mod replay;
mod rotation;
mod state;
mod tick;
mod tokens;
mod trouble;
mod validate;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};

pub use self::builder::FakeAgentBuilder;
use self::connection::Connections;
pub use self::counts::Counts;
pub use self::fault::{AgentCall, Fault, RawSvid};
use self::life::Presence;
pub use self::replay::Replay;
use self::state::{Agent, Entry, Federated};
use super::error::Error;
use super::issuer::Issuer;
use crate::clock::Clock;
use crate::identity::{SpiffeId, TrustDomain};
use crate::source::{JwtSource, JwtSourceError};
use crate::workload_api::Endpoint;

/// A SPIFFE agent for tests and local work: the JWT profile of the Workload API with its own issuer,
/// served on a Unix socket, a TCP port, or any byte stream. It responds like SPIRE's agent, and fails on
/// demand.
///
/// Clones are the same agent. When the last one is dropped, the socket is removed, connections are cut
/// and tasks end.
///
/// Until the first [`register`](Self::register), every client has the identity
/// `spiffe://<trust domain>/workload`.
///
/// ```
/// use tower_spiffe::testing::FakeAgent;
/// use tower_spiffe::Validator;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let agent = FakeAgent::start("example.org").await?;
/// let source = agent.source().await?;
///
/// // The token of this workload, from the agent ...
/// let token = source.get_jwt_svid(["reports"]).await?;
/// assert_eq!(token.spiffe_id().as_str(), "spiffe://example.org/workload");
///
/// // ... and the token of any caller.
/// let validator = Validator::builder(source).audience("reports").build()?;
/// let caller = validator.validate(&agent.token("spiffe://example.org/web", "reports"))?;
/// assert_eq!(caller.spiffe_id().as_str(), "spiffe://example.org/web");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FakeAgent {
    inner: Arc<Inner>,
}

struct Inner {
    agent: Arc<Agent>,
    connections: Arc<Connections>,
    presence: Mutex<Presence>,
    /// Timers that remove old keys.
    timers: Mutex<JoinSet<()>>,
    /// The rotation schedule.
    schedule: Mutex<Option<AbortHandle>>,
    runtime: Handle,
}

impl FakeAgent {
    /// Starts an agent of this trust domain on a Unix socket in its own directory.
    ///
    /// # Errors
    /// The trust domain is malformed, there are no Unix sockets here, or this one cannot be
    /// opened.
    pub async fn start(trust_domain: &str) -> Result<Self, Error> {
        Self::builder(trust_domain).start().await
    }

    /// Starts an agent on a free TCP port of this machine.
    ///
    /// # Errors
    /// The trust domain is malformed, or no port can be opened.
    pub async fn start_tcp(trust_domain: &str) -> Result<Self, Error> {
        Self::builder(trust_domain).start_tcp().await
    }

    /// Starts an agent without a socket, for paused time.
    ///
    /// # Errors
    /// The trust domain is malformed, or there is no tokio runtime here.
    pub async fn start_in_memory(trust_domain: &str) -> Result<Self, Error> {
        Self::builder(trust_domain).start_in_memory().await
    }

    /// Creates a builder, for options such as the clock, the algorithm and the token lifetime.
    pub fn builder(trust_domain: &str) -> FakeAgentBuilder {
        FakeAgentBuilder::new(trust_domain)
    }

    /// Returns where it listens, for [`JwtSourceBuilder::endpoint`]. Its `Display` is the value of
    /// `SPIFFE_ENDPOINT_SOCKET`.
    ///
    /// # Panics
    /// Panics if the agent was started in memory: use [`connector`](Self::connector).
    ///
    /// [`JwtSourceBuilder::endpoint`]: crate::source::JwtSourceBuilder::endpoint
    #[track_caller]
    pub fn endpoint(&self) -> Endpoint {
        match self.presence().place.endpoint() {
            Some(endpoint) => endpoint,
            None => super::misuse("an agent in memory has no endpoint; use its `connector`"),
        }
    }

    /// Creates a source that is connected to this agent, with the agent's clock (without the
    /// [offset](Self::set_clock_offset)).
    ///
    /// # Errors
    /// As [`JwtSourceBuilder::build`](crate::source::JwtSourceBuilder::build), for example during a
    /// [`fail`](Self::fail).
    pub async fn source(&self) -> Result<JwtSource, JwtSourceError> {
        let builder = JwtSource::builder().clock(self.inner.agent.clock.base().clone());
        let endpoint = self.presence().place.endpoint();
        let source = match endpoint {
            Some(endpoint) => builder.endpoint(endpoint),
            None => builder.connector(self.connector()),
        }
        .build()
        .await?;
        self.inner.agent.state().sources.push(source.updated());
        Ok(source)
    }

    /// Returns the issuer of the agent's trust domain, for its keys and for tokens of every kind.
    pub fn issuer(&self) -> &Issuer {
        &self.inner.agent.issuer
    }

    /// Returns a valid token of this ID for this audience, as a caller would send it. The ID needs no
    /// registration. A token of a federated trust domain is signed by the issuer of that domain.
    pub fn token(&self, spiffe_id: &str, audience: &str) -> String {
        let issuer = self.inner.agent.issuer_of(spiffe_id);
        issuer.token(spiffe_id, audience).sign()
    }

    /// Returns such a token as the value of an `authorization` header, marked sensitive.
    pub fn bearer(&self, spiffe_id: &str, audience: &str) -> HeaderValue {
        let issuer = self.inner.agent.issuer_of(spiffe_id);
        issuer.token(spiffe_id, audience).bearer()
    }

    /// Adds an identity, which every client gets. Earlier ones stay. Its tokens have the lifetime
    /// `token_life`. The hint may be empty; of two identities with the same hint, the older one
    /// counts.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_spiffe::testing::FakeAgent;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    /// let hour = Duration::from_secs(3600);
    /// agent.register("spiffe://example.org/web", "", hour)?;
    /// agent.register("spiffe://example.org/cron", "nightly", hour)?;
    ///
    /// let cron = "spiffe://example.org/cron".parse()?;
    /// let token = source.get_jwt_svid_with_id(["db"], Some(&cron)).await?;
    /// assert_eq!(*token.spiffe_id(), cron);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The ID is malformed, or of another trust domain.
    pub fn register(&self, spiffe_id: &str, hint: &str, token_life: Duration) -> Result<(), Error> {
        let id = SpiffeId::parse(spiffe_id)?;
        if !id.is_member_of(self.issuer().trust_domain()) {
            return Err(Error::ForeignTrustDomain);
        }
        self.inner.agent.change(|state| {
            if std::mem::take(&mut state.stand_in) {
                state.entries.clear();
                state.withdrawn.clear();
            }
            state.entries.retain(|entry| entry.id != id);
            state.entries.push(Entry {
                id,
                hint: hint.to_owned(),
                token_life,
            });
        });
        Ok(())
    }

    /// Removes this identity. With the last one, everything is withdrawn: see
    /// [`withdraw`](Self::withdraw).
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # use tower_spiffe::token::GrpcCode;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// agent.unregister("spiffe://example.org/workload");
    /// let error = source.fetch_jwt_svid(["db"]).await.unwrap_err();
    /// assert_eq!(error.code(), Some(GrpcCode::PermissionDenied));
    /// # Ok(())
    /// # }
    /// ```
    pub fn unregister(&self, spiffe_id: &str) {
        self.inner.agent.change(|state| {
            let stays = |entry: &Entry| entry.id.as_str() != spiffe_id;
            state.entries.retain(stays);
            state.withdrawn.retain(stays);
        });
    }

    /// Federates with another trust domain: its bundle is served in addition to the agent's own. Returns
    /// its issuer, whose rotations take effect here at once.
    ///
    /// ```
    /// use tower_spiffe::Validator;
    /// use tower_spiffe::testing::FakeAgent;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start("example.org").await?;
    /// let other = agent.federate("other.test")?;
    /// let source = agent.source().await?;
    /// assert_eq!(source.bundle_set()?.len(), 2);
    ///
    /// let validator = Validator::builder(source).audience("reports").build()?;
    /// let token = other.token("spiffe://other.test/web", "reports").sign();
    /// assert!(validator.validate(&token).is_ok());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The trust domain is malformed.
    pub fn federate(&self, trust_domain: &str) -> Result<Issuer, Error> {
        let clock: Arc<dyn Clock> = self.inner.agent.clock.clone();
        let issuer = Issuer::with_clock(trust_domain, clock)?;
        self.federate_with(&issuer);
        Ok(issuer)
    }

    /// Federates with an existing issuer, for example that of another agent.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # use tower_spiffe::Validator;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let ours = FakeAgent::start_in_memory("example.org").await?;
    /// let theirs = FakeAgent::start_in_memory("other.test").await?;
    /// ours.federate_with(theirs.issuer());
    ///
    /// let validator = Validator::builder(ours.source().await?).audience("reports").build()?;
    /// let token = theirs.source().await?.get_jwt_svid(["reports"]).await?;
    /// assert!(validator.validate(token.token()).is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn federate_with(&self, issuer: &Issuer) {
        let trust_domain = issuer.trust_domain().clone();
        self.inner.agent.follow(issuer);
        self.inner.agent.change(|state| {
            let issuer = Federated::Issuer(issuer.clone());
            state.federated.insert(trust_domain, issuer);
        });
    }

    /// Federates with a trust domain whose JWK Set is these bytes. They are not checked.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// agent.federate_raw("broken.test", "{\"keys\": [7]}")?;
    ///
    /// // Other trust domains are not affected.
    /// let source = agent.source().await?;
    /// assert!(source.bundle_for_trust_domain(&"broken.test".parse()?)?.is_empty());
    /// assert!(!source.bundle_for_trust_domain(&"example.org".parse()?)?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The trust domain is malformed.
    pub fn federate_raw(&self, trust_domain: &str, jwks: impl Into<Bytes>) -> Result<(), Error> {
        let trust_domain = TrustDomain::parse(trust_domain)?;
        let jwks = Federated::Bytes(jwks.into());
        self.inner.agent.change(|state| {
            state.federated.insert(trust_domain, jwks);
        });
        Ok(())
    }

    /// Ends the federation: the trust domain is no longer in the set.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # use tower_spiffe::Validator;
    /// # use tower_spiffe::verify::ValidateReason;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let other = agent.federate("other.test")?;
    /// let source = agent.source().await?;
    /// let validator = Validator::builder(source.clone()).audience("reports").build()?;
    /// let token = other.token("spiffe://other.test/web", "reports").sign();
    /// assert!(validator.validate(&token).is_ok());
    ///
    /// let mut updates = source.updated();
    /// agent.unfederate("other.test");
    /// updates.changed().await?;
    /// assert_eq!(validator.validate(&token).unwrap_err().reason(), ValidateReason::TrustDomainUnknown);
    /// # Ok(())
    /// # }
    /// ```
    pub fn unfederate(&self, trust_domain: &str) {
        self.inner.agent.change(|state| {
            state.federated.remove(trust_domain);
        });
    }

    /// Returns what the agent received so far, and what is open now.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    ///
    /// for _ in 0..50 {
    ///     source.get_jwt_svid(["db"]).await?;
    /// }
    /// assert_eq!(agent.counts().fetch_jwt_svid, 1); // the others came from the source's cache
    /// # Ok(())
    /// # }
    /// ```
    pub fn counts(&self) -> Counts {
        self.inner.agent.counters.read()
    }

    fn presence(&self) -> MutexGuard<'_, Presence> {
        lock(&self.inner.presence)
    }
}

impl fmt::Debug for FakeAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeAgent")
            .field("trust_domain", self.issuer().trust_domain())
            .field("endpoint", &self.presence().place.endpoint())
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
