//! An OAuth authorization server inside the test.

mod endpoint;
mod fault;
mod serve;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;

pub use self::endpoint::FakeTokenEndpoint;
pub use self::fault::TokenEndpointFault;
use super::error::Error;
use super::must;
use crate::bundle::BundleSource;
use crate::clock::{Clock, SystemClock, UnixTime};
use crate::identity::SpiffeId;
use crate::verify::Validator;

/// An OAuth authorization server for tests and local work: a token endpoint that authenticates
/// clients by JWT-SVID, issues opaque access tokens, and fails on demand.
///
/// It accepts the grants `client_credentials` and token exchange (RFC 8693), and the assertion
/// types `jwt-spiffe` and `jwt-bearer`. Each workload of the given trust domains is a client. The
/// issuer must be the only audience of its JWT-SVID
/// ([`sole_audience`](crate::verify::ValidatorBuilder::sole_audience)).
///
/// Clones are the same server. When the last one is dropped, its port is closed.
///
/// ```
/// use tower_spiffe::oauth::AccessTokens;
/// use tower_spiffe::testing::{FakeAgent, FakeAuthorizationServer, TokenEndpointFault};
/// use tower_spiffe::token::{SvidRequest, TokenErrorReason};
/// use tower_spiffe::SvidCache;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let agent = FakeAgent::start("example.org").await?;
/// let source = agent.source().await?;
/// let server = FakeAuthorizationServer::new("https://as.example.org", source.clone());
/// let tokens = AccessTokens::builder(source)
///     .issuer(server.issuer())
///     .token_endpoint(server.token_endpoint())
///     .http_client(server.service())
///     .build()?;
/// let cache = SvidCache::from(&tokens);
///
/// let token = cache.get(&SvidRequest::new(["api"])?).await?;
/// let issued = server.find(token.token()).unwrap();
/// assert_eq!(issued.client.as_str(), "spiffe://example.org/workload");
///
/// server.fail(TokenEndpointFault::error(400, "invalid_target"));
/// let error = cache.get(&SvidRequest::new(["other"])?).await.unwrap_err();
/// assert_eq!(error.reason(), TokenErrorReason::InvalidRequest);
/// assert_eq!(error.fetch_error().unwrap().oauth().unwrap().error(), Some("invalid_target"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FakeAuthorizationServer {
    state: Arc<State>,
    _serving: Option<Arc<Serving>>,
}

/// Options of a [`FakeAuthorizationServer`].
#[must_use = "a builder does nothing until the server is built or started"]
pub struct FakeAuthorizationServerBuilder {
    bundles: Arc<dyn BundleSource>,
    clock: Arc<dyn Clock>,
    issuer: Option<String>,
    token_life: Duration,
    subject_audiences: Vec<String>,
    client_ids: HashMap<String, String>,
}

/// An access token that a [`FakeAuthorizationServer`] issued.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IssuedToken {
    /// The client that authenticated.
    pub client: SpiffeId,
    /// The subject of the token: the client, or the `sub` of the subject token.
    pub subject: SpiffeId,
    /// The `sub` of the actor token, if there was one.
    pub actor: Option<SpiffeId>,
    /// The `audience` and `resource` parameters, in their order.
    pub audiences: Vec<String>,
    /// The `scope` parameter.
    pub scope: Option<String>,
    /// The `grant_type` parameter.
    pub grant_type: String,
    /// The `client_assertion_type` parameter.
    pub assertion_type: String,
    /// When it expires.
    pub expires_at: UnixTime,
}

/// The requests that a [`FakeAuthorizationServer`] received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct AuthorizationCounts {
    /// Requests to the token endpoint.
    pub requests: u64,
    /// Requests that got an access token.
    pub granted: u64,
    /// Requests that were rejected because of their content.
    pub rejected: u64,
}

struct State {
    issuer: String,
    clock: Arc<dyn Clock>,
    /// Verifies client assertions and actor tokens.
    clients: Validator,
    /// Verifies subject tokens.
    subjects: Validator,
    /// The SPIFFE IDs of clients by `client_id`.
    client_ids: HashMap<String, String>,
    inner: Mutex<Inner>,
}

struct Inner {
    token_life: Duration,
    fault: Option<TokenEndpointFault>,
    counts: AuthorizationCounts,
    issued: HashMap<String, IssuedToken>,
    last: Option<String>,
    bodies: Vec<String>,
}

/// Ends the server's task when it is dropped.
struct Serving(AbortHandle);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl FakeAuthorizationServer {
    /// Creates a server with this issuer identifier and without a port: requests reach it through
    /// [`service`](Self::service). `bundles` verify its clients.
    ///
    /// # Panics
    /// The issuer is empty.
    #[track_caller]
    pub fn new(issuer: &str, bundles: impl BundleSource) -> Self {
        Self::builder(bundles).issuer(issuer).build()
    }

    /// Starts a server on a free TCP port of this machine, over http.
    ///
    /// # Errors
    /// No port can be opened.
    pub async fn start(bundles: impl BundleSource) -> Result<Self, Error> {
        Self::builder(bundles).start().await
    }

    /// Creates a builder, to set its clock and the lifetime of tokens.
    pub fn builder(bundles: impl BundleSource) -> FakeAuthorizationServerBuilder {
        FakeAuthorizationServerBuilder {
            bundles: Arc::new(bundles),
            clock: SystemClock::shared(),
            issuer: None,
            token_life: Duration::from_secs(300),
            subject_audiences: Vec::new(),
            client_ids: HashMap::new(),
        }
    }

    /// Returns its issuer identifier.
    pub fn issuer(&self) -> &str {
        &self.state.issuer
    }

    /// Returns the URL of its token endpoint.
    pub fn token_endpoint(&self) -> String {
        format!("{}/token", self.state.issuer)
    }

    /// Returns the token endpoint as a tower service, for an HTTP client without a network.
    pub fn service(&self) -> FakeTokenEndpoint {
        FakeTokenEndpoint::new(self.state.clone())
    }

    /// Returns the data of an access token, as a resource server would get it by token
    /// introspection. `None` if this server did not issue it, it has expired, or it was revoked.
    pub fn find(&self, access_token: &str) -> Option<IssuedToken> {
        let now = self.state.clock.now();
        let inner = self.state.inner();
        let issued = inner.issued.get(access_token)?;
        (now < issued.expires_at).then(|| issued.clone())
    }

    /// Revokes an access token. Returns whether it was known.
    pub fn revoke(&self, access_token: &str) -> bool {
        self.state.inner().issued.remove(access_token).is_some()
    }

    /// Sets the lifetime of access tokens from now on.
    pub fn set_token_life(&self, life: Duration) {
        self.state.inner().token_life = life;
    }

    /// Fails in this way until [`recover`](Self::recover) or the next `fail`.
    pub fn fail(&self, fault: TokenEndpointFault) {
        self.state.inner().fault = Some(fault);
    }

    /// Ends the fault.
    pub fn recover(&self) {
        self.state.inner().fault = None;
    }

    /// Returns the counts of requests so far.
    pub fn counts(&self) -> AuthorizationCounts {
        self.state.inner().counts
    }

    /// Returns the bodies of the requests so far. They contain tokens.
    pub fn bodies(&self) -> Vec<String> {
        self.state.inner().bodies.clone()
    }
}

impl FakeAuthorizationServerBuilder {
    /// Sets the issuer identifier. By default it is the origin of the port.
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.issuer = Some(issuer.into());
        self
    }

    /// Sets the clock. The system clock by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Sets the lifetime of access tokens. 5 minutes by default.
    pub fn token_life(mut self, life: Duration) -> Self {
        self.token_life = life;
        self
    }

    /// Accepts subject tokens for this audience too: the service whose callers' tokens are
    /// exchanged. The issuer is always accepted.
    pub fn subject_audience(mut self, audience: impl Into<String>) -> Self {
        self.subject_audiences.push(audience.into());
        self
    }

    /// Accepts this `client_id` from the workload with this SPIFFE ID. Its SPIFFE ID is always
    /// accepted.
    pub fn client_id(mut self, client_id: impl Into<String>, spiffe_id: impl Into<String>) -> Self {
        self.client_ids.insert(client_id.into(), spiffe_id.into());
        self
    }

    /// Builds the server without a port.
    ///
    /// # Panics
    /// There is no issuer, or it is empty.
    #[track_caller]
    pub fn build(self) -> FakeAuthorizationServer {
        FakeAuthorizationServer {
            state: Arc::new(self.state(None)),
            _serving: None,
        }
    }

    /// Starts the server on a free TCP port of this machine, over http.
    ///
    /// # Errors
    /// No port can be opened.
    pub async fn start(self) -> Result<FakeAuthorizationServer, Error> {
        let (listener, origin) = serve::listen().await?;
        let state = Arc::new(self.state(Some(origin)));
        let serving = tokio::spawn(serve::serve(listener, state.clone()));
        Ok(FakeAuthorizationServer {
            state,
            _serving: Some(Arc::new(Serving(serving.abort_handle()))),
        })
    }

    #[track_caller]
    fn state(self, origin: Option<String>) -> State {
        let issuer = self.issuer.or(origin).unwrap_or_default();
        let validator = || Validator::builder(self.bundles.clone()).clock(self.clock.clone());
        let clients = validator().audience(&issuer).sole_audience().build();
        let subjects = validator()
            .audience(&issuer)
            .audiences(self.subject_audiences);
        State {
            clients: must(clients, "the issuer can be an audience"),
            subjects: must(subjects.build(), "the subject audiences can be audiences"),
            issuer,
            clock: self.clock.clone(),
            client_ids: self.client_ids,
            inner: Mutex::new(Inner {
                token_life: self.token_life,
                fault: None,
                counts: AuthorizationCounts::default(),
                issued: HashMap::new(),
                last: None,
                bodies: Vec::new(),
            }),
        }
    }
}

impl State {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for FakeAuthorizationServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeAuthorizationServer")
            .field("issuer", &self.state.issuer)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for FakeAuthorizationServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeAuthorizationServerBuilder")
            .field("issuer", &self.issuer)
            .field("token_life", &self.token_life)
            .finish_non_exhaustive()
    }
}
