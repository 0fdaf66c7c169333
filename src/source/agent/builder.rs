//! The builder of a source.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::backoff::Backoff;
use super::error::JwtSourceError;
use super::fetch::Fetcher;
use super::jwt_source::{Inner, JwtSource};
use super::limits::{ResourceLimits, WithdrawalPolicy};
use super::shared::Shared;
use super::supervisor::Supervisor;
use crate::clock::{Clock, SystemClock};
use crate::metrics::{MetricsRecorder, Shielded};
use crate::source::trust_clock::TrustClock;
use crate::token::{SvidCache, SvidCacheBuilder};
use crate::workload_api::{Connector, Endpoint, EndpointError, Timing, WorkloadApiClientBuilder};

const BUILDING: &str = "a source cannot be built";

/// The options of a [`JwtSource`]. All defaults are in one [table](crate::source#defaults).
#[must_use]
pub struct JwtSourceBuilder {
    connector: Option<Result<Connector, EndpointError>>,
    timing: Timing,
    backoff: (Duration, Duration),
    seed: Option<u64>,
    limits: ResourceLimits,
    withdrawal: WithdrawalPolicy,
    max_staleness: Option<Duration>,
    initial_sync: Option<Duration>,
    shutdown: Option<Duration>,
    clock: Arc<dyn Clock>,
    metrics: Option<Arc<dyn MetricsRecorder>>,
    cache: Box<dyn FnOnce(SvidCacheBuilder) -> SvidCacheBuilder + Send>,
}

impl JwtSourceBuilder {
    pub(crate) fn new() -> Self {
        Self {
            connector: None,
            timing: Timing::default(),
            backoff: (Duration::from_millis(200), Duration::from_secs(10)),
            seed: None,
            limits: ResourceLimits::default(),
            withdrawal: WithdrawalPolicy::default(),
            max_staleness: None,
            initial_sync: Some(Duration::from_secs(30)),
            shutdown: Some(Duration::from_secs(30)),
            clock: SystemClock::shared(),
            metrics: None,
            cache: Box::new(|cache| cache),
        }
    }

    /// Sets the endpoint of the agent: `unix:///path/to/socket` or `tcp://IP:port`. The default is
    /// the value of the environment variable `SPIFFE_ENDPOINT_SOCKET`. A malformed endpoint is an
    /// error when the source is built.
    pub fn endpoint<E>(mut self, endpoint: E) -> Self
    where
        E: TryInto<Endpoint>,
        E::Error: Into<EndpointError>,
    {
        let endpoint = endpoint.try_into().map_err(Into::into);
        self.connector = Some(endpoint.map(|endpoint| Connector::to_endpoint(&endpoint)));
        self
    }

    /// Connects to the agent by `dial` instead of an endpoint. `dial` is called for every connection.
    pub fn connector<F, Fut, T>(mut self, dial: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<T>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.connector = Some(Ok(Connector::new("a given connector".into(), false, dial)));
        self
    }

    /// Sets the shortest and the longest wait before the bundle stream is opened again. Each wait is
    /// random between the shortest and a ceiling, which doubles up to the longest. 200 ms and 10 s by
    /// default. A stream that was open for at least the longest wait is opened again immediately.
    ///
    /// In the first 10 s after the issuer withdrew the bundles, the waits grow from 250 ms to 1 s
    /// only, unless the shortest is longer than 250 ms. A token call that succeeds while the stream
    /// is down ends the wait, at most four times a second.
    pub fn reconnect_backoff(mut self, shortest: Duration, longest: Duration) -> Self {
        self.backoff = (shortest, longest);
        self
    }

    /// Limits the messages of the agent. See [`ResourceLimits`] for the defaults.
    pub fn resource_limits(mut self, limits: ResourceLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets what happens when the issuer withdraws the bundles. [`WithdrawalPolicy::Immediate`] by
    /// default.
    pub fn withdrawal(mut self, policy: WithdrawalPolicy) -> Self {
        self.withdrawal = policy;
        self
    }

    /// Limits the age of the bundles that validation uses. The age counts from the last bundle
    /// message that was accepted: tokens, keepalives and discarded messages do not extend it.
    ///
    /// `None` by default: a service stays available while its agent is unreachable, and a key that
    /// is revoked in that time stays trusted here until the agent is back. With a limit, tokens
    /// cannot be verified once it has passed (checked at every validation). If the stream is
    /// quiet for half of the limit, the source opens it again, at the cost of an attestation each
    /// time. The limit also applies to each trust domain whose keys could not be read since.
    ///
    /// The age is the longer of the ages on the monotonic clock and on the wall clock, so the time
    /// of a suspend counts. After a forward step of the wall clock by 1 s or more the source
    /// opens the stream again within a second, with or without a limit. With a limit, tokens cannot be
    /// verified until the agent has sent its bundles. A backward step counts as zero.
    pub fn max_staleness(mut self, max: impl Into<Option<Duration>>) -> Self {
        self.max_staleness = max.into();
        self
    }

    /// Sets how long [`build`](Self::build) waits for the first bundles. 30 s by default; `None` waits
    /// without a limit.
    pub fn initial_sync_timeout(mut self, within: impl Into<Option<Duration>>) -> Self {
        self.initial_sync = within.into();
        self
    }

    /// Sets how long [`JwtSource::shutdown_configured`] waits. 30 s by default; `None` waits without a
    /// limit.
    pub fn shutdown_timeout(mut self, within: impl Into<Option<Duration>>) -> Self {
        self.shutdown = within.into();
        self
    }

    /// Limits each call to the agent for a token, by the source or by its cache. 35 s by default:
    /// SPIRE's agent takes up to 30 s while its server is unreachable. Connecting may take 5 s, and
    /// the first message of a bundle stream 10 s, but never longer than this limit.
    pub fn fetch_timeout(mut self, limit: Duration) -> Self {
        let default = Timing::default();
        self.timing.call = limit;
        self.timing.connect = default.connect.min(limit);
        self.timing.first_message = default.first_message.min(limit);
        self
    }

    /// Sets the HTTP/2 keepalive: the interval of pings while the stream is open, and how long to wait
    /// for the response. 305 s and 20 s by default: a half-open connection is noticed within six
    /// minutes. A default grpc-go server, such as SPIRE's agent, closes connections that ping more
    /// often than every 5 minutes.
    pub fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.timing.ping_interval = interval;
        self.timing.ping_timeout = timeout;
        self
    }

    /// Sets the clock. The system clock by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Sets the recorder of the source, of its token cache, and of the validators and server layers
    /// that are built on it, unless they are given one of their own. None by default. A panic in it
    /// is caught.
    pub fn metrics(mut self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.metrics = Some(recorder);
        self
    }

    /// Configures the cache of this workload's tokens. Its clock, recorder and fetch timeout are
    /// already those of the source.
    pub fn svid_cache(
        mut self,
        set_up: impl FnOnce(SvidCacheBuilder) -> SvidCacheBuilder + Send + 'static,
    ) -> Self {
        self.cache = Box::new(set_up);
        self
    }

    /// Seeds the random waits, so that they are the same in every run.
    #[cfg(feature = "testing")]
    pub(crate) fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Creates the source and waits for its first bundles.
    ///
    /// Temporary errors are retried with backoff: an agent that is not running or cannot serve yet, a
    /// workload that is not registered yet.
    ///
    /// # Errors
    /// Immediately for permanent errors: no endpoint or a malformed one, `InvalidArgument` or
    /// `Unimplemented` from the agent, no tokio runtime with timers and I/O. All others after the
    /// [`initial_sync_timeout`](Self::initial_sync_timeout), with the last error.
    pub async fn build(self) -> Result<JwtSource, JwtSourceError> {
        let within = self.initial_sync;
        let source = self.build_lazy()?;
        let ready = source.ready();
        let outcome = match within {
            None => ready.await,
            Some(within) => match tokio::time::timeout(within, ready).await {
                Ok(outcome) => outcome,
                Err(_) => Err(source.initial_sync_error(within)),
            },
        };
        match outcome {
            Ok(()) => Ok(source),
            Err(error) => {
                source.shutdown().await;
                Err(error)
            }
        }
    }

    /// Creates the source without waiting for the agent. Until the first bundles arrive, tokens
    /// cannot be verified and [`JwtSource::ready`] waits.
    ///
    /// # Errors
    /// No endpoint or a malformed one, no tokio runtime with timers and I/O (a
    /// [`connector`](Self::connector) needs timers only).
    pub fn build_lazy(self) -> Result<JwtSource, JwtSourceError> {
        let connector = match self.connector {
            Some(connector) => connector?,
            None => Connector::to_endpoint(&Endpoint::from_env()?),
        };
        let runtime = connector.runtime();
        let runtime = runtime.map_err(|missing| JwtSourceError::no_runtime(BUILDING, missing))?;
        let clock = Arc::new(TrustClock::new(self.clock.clone()));
        let recorder = self.metrics.clone().unwrap_or_else(|| Arc::new(()));
        let metrics: Arc<dyn MetricsRecorder> = Arc::new(Shielded::new(recorder.clone()));
        let client = WorkloadApiClientBuilder::new(connector)
            .timing(self.timing)
            .max_message_bytes(self.limits.max_message_bytes)
            .clock(clock.clone())
            .build_on(runtime.clone());
        let shared = Arc::new(Shared::new(
            client,
            clock,
            metrics.clone(),
            self.withdrawal,
            self.max_staleness,
        ));
        metrics.record_ready(false);
        let cache = SvidCache::builder(Fetcher(shared.clone()))
            .clock(self.clock)
            .fetch_timeout(self.timing.call)
            .metrics(recorder);
        let cache = (self.cache)(cache).build();
        let draw = self
            .seed
            .map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let backoff = Backoff::new(self.backoff.0, self.backoff.1, draw);
        let task =
            Supervisor::new(shared.clone(), cache.clone(), self.limits, backoff).spawn(&runtime);
        let inner = Arc::new(Inner {
            shared,
            cache,
            task,
            shutdown_timeout: self.shutdown,
            metrics: self.metrics,
        });
        Ok(JwtSource { inner })
    }
}

impl From<Infallible> for EndpointError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl fmt::Debug for JwtSourceBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSourceBuilder")
            .field("connector", &self.connector)
            .field("limits", &self.limits)
            .field("withdrawal", &self.withdrawal)
            .field("max_staleness", &self.max_staleness)
            .finish_non_exhaustive()
    }
}
