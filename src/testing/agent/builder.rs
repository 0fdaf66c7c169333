//! The options of the agent.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::connection::Connections;
use super::place::Place;
use super::state::{Agent, Entry, OffsetClock};
use super::tokens::TokenCache;
use super::{FakeAgent, Inner, Presence};
use crate::clock::{Clock, SystemClock};
use crate::identity::{SpiffeId, TrustDomain};
use crate::jwt::Algorithm;
use crate::testing::error::Error;
use crate::testing::issuer::{DEFAULT_TOKEN_LIFE, Issuer};

/// Options of a [`FakeAgent`].
///
/// ```
/// use std::time::Duration;
/// use tower_spiffe::bundle::Algorithm;
/// use tower_spiffe::testing::FakeAgent;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let agent = FakeAgent::builder("example.org")
///     .algorithm(Algorithm::ES384)
///     .token_life(Duration::from_secs(60))
///     .start_tcp()
///     .await?;
/// assert!(agent.endpoint().tcp_address().is_some());
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is started before one of the `start` methods"]
pub struct FakeAgentBuilder {
    trust_domain: String,
    clock: Arc<dyn Clock>,
    algorithm: Algorithm,
    token_life: Duration,
    cache: bool,
    enforce_pings: bool,
    seed: u64,
}

impl FakeAgentBuilder {
    pub(super) fn new(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            clock: SystemClock::shared(),
            algorithm: Algorithm::ES256,
            token_life: DEFAULT_TOKEN_LIFE,
            cache: true,
            enforce_pings: true,
            seed: 1,
        }
    }

    /// Sets the clock of tokens and keys. The system clock by default. Sources of
    /// [`source`](FakeAgent::source) use it too.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Sets the algorithm of the first key. ES256 by default.
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Sets the lifetime of tokens of the default identity, and of tokens that the test takes from
    /// [`token`](FakeAgent::token) and [`bearer`](FakeAgent::bearer). Five minutes by default.
    pub fn token_life(mut self, life: Duration) -> Self {
        self.token_life = life;
        self
    }

    /// Sets whether the agent returns the same token for about half of its lifetime, as SPIRE's
    /// agent does. It signs a new one when less than 45 % to 55 % of the lifetime is left; the
    /// share is random for each fetch. `true` by default.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_spiffe::clock::UnixTime;
    /// # use tower_spiffe::testing::{PausedClock, FakeAgent};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000)).shared();
    /// let builder = || FakeAgent::builder("example.org").clock(clock.clone());
    ///
    /// // Tokens of five minutes: the same one until 45 % to 55 % of the lifetime is left.
    /// let agent = builder().start_in_memory().await?;
    /// let source = agent.source().await?;
    /// let first = source.fetch_jwt_svid(["db"]).await?;
    /// tokio::time::sleep(Duration::from_secs(130)).await; // of paused time
    /// assert_eq!(source.fetch_jwt_svid(["db"]).await?.token(), first.token());
    /// tokio::time::sleep(Duration::from_secs(40)).await;
    /// assert_ne!(source.fetch_jwt_svid(["db"]).await?.token(), first.token());
    ///
    /// let agent = builder().cache_tokens(false).start_in_memory().await?;
    /// let source = agent.source().await?;
    /// let first = source.fetch_jwt_svid(["db"]).await?;
    /// assert_ne!(source.fetch_jwt_svid(["db"]).await?.token(), first.token());
    /// # Ok(())
    /// # }
    /// ```
    pub fn cache_tokens(mut self, cache: bool) -> Self {
        self.cache = cache;
        self
    }

    /// Sets whether a client that pings too often is disconnected, as by a grpc-go server with
    /// default settings: at the third HTTP/2 ping that comes less than five minutes after the
    /// previous one (two hours while no call is open). Data or headers sent to the client reset
    /// this count. `true` by default.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_spiffe::testing::FakeAgent;
    /// # use tower_spiffe::JwtSource;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cut_off = async |enforce| -> Result<u64, Box<dyn std::error::Error>> {
    ///     let builder = FakeAgent::builder("example.org").enforce_keepalive(enforce);
    ///     let agent = builder.start_in_memory().await?;
    ///     let (often, patience) = (Duration::from_secs(60), Duration::from_secs(20));
    ///     let source = JwtSource::builder().connector(agent.connector()).keepalive(often, patience);
    ///     let _source = source.build().await?;
    ///     tokio::time::sleep(Duration::from_secs(600)).await; // of paused time
    ///     Ok(agent.counts().too_many_pings)
    /// };
    /// assert!(cut_off(true).await? > 0);
    /// assert_eq!(cut_off(false).await?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn enforce_keepalive(mut self, enforce: bool) -> Self {
        self.enforce_pings = enforce;
        self
    }

    /// Sets the seed of the agent's random choices: how fresh a cached token must be.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Starts it on a Unix socket in its own directory, which is removed with the agent.
    ///
    /// # Errors
    /// The trust domain is malformed, there are no Unix sockets here, or this one cannot be
    /// opened.
    pub async fn start(self) -> Result<FakeAgent, Error> {
        self.start_at(Place::unix()?).await
    }

    /// Starts it on a free TCP port of this machine.
    ///
    /// # Errors
    /// The trust domain is malformed, or no port can be opened.
    pub async fn start_tcp(self) -> Result<FakeAgent, Error> {
        self.start_at(Place::tcp()).await
    }

    /// Starts it without a socket: clients reach it only through
    /// [`connector`](FakeAgent::connector) and [`serve_stream`](FakeAgent::serve_stream). Use it in
    /// paused time, which advances during a wait for a real socket.
    ///
    /// # Errors
    /// The trust domain is malformed, or there is no tokio runtime here.
    pub async fn start_in_memory(self) -> Result<FakeAgent, Error> {
        self.start_at(Place::Memory).await
    }

    async fn start_at(self, place: Place) -> Result<FakeAgent, Error> {
        let runtime = Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let trust_domain = TrustDomain::parse(&self.trust_domain)?;
        let entry = Entry {
            id: SpiffeId::parse(&format!("spiffe://{trust_domain}/workload"))?,
            hint: String::new(),
            token_life: self.token_life,
        };
        let clock = OffsetClock::new(self.clock);
        let issuer = Issuer::build(trust_domain, clock.clone(), self.algorithm);
        issuer.set_token_life(self.token_life);
        let cache = TokenCache::new(self.cache, self.seed);
        let api = FakeAgent {
            inner: Arc::new(Inner {
                agent: Agent::new(issuer, clock, entry, cache, self.enforce_pings),
                connections: Arc::new(Connections::new(runtime.clone())),
                presence: Mutex::new(Presence::new(place)),
                timers: Mutex::new(JoinSet::new()),
                schedule: Mutex::new(None),
                runtime,
            }),
        };
        api.start_again().await?;
        Ok(api)
    }
}

impl fmt::Debug for FakeAgentBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeAgentBuilder")
            .field("trust_domain", &self.trust_domain)
            .field("algorithm", &self.algorithm)
            .field("token_life", &self.token_life)
            .finish_non_exhaustive()
    }
}
