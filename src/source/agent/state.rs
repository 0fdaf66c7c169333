//! The state of a source, for operators.

use std::time::Duration;

use crate::bundle::BundlesUnavailable;
use crate::identity::TrustDomain;
use crate::token::{AudienceSnapshot, SvidCacheStats};
use crate::workload_api::WorkloadApiError;

/// The state of a [`JwtSource`](crate::JwtSource) at one moment. All ages were taken at that
/// moment.
#[derive(Debug, Clone)]
pub struct SourceState {
    pub(crate) revision: u64,
    pub(crate) verdict: Result<(), BundlesUnavailable>,
    pub(crate) withdrawn: Option<Withdrawal>,
    pub(crate) connected: bool,
    pub(crate) overdue: bool,
    pub(crate) discarding: bool,
    pub(crate) down_for: Option<Duration>,
    pub(crate) last_contact: Option<Duration>,
    pub(crate) last_message: Option<Duration>,
    pub(crate) last_error: Option<LastError>,
    pub(crate) reconnects: u64,
    pub(crate) reconnect_attempts: u64,
    pub(crate) trust_domains: Vec<TrustDomainState>,
    pub(crate) unnamed: Vec<(Box<str>, Box<str>)>,
    pub(crate) svid_cache: SvidCacheStats,
    pub(crate) audiences: Vec<AudienceSnapshot>,
}

/// A withdrawal of the bundles by the issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    pub(crate) age: Duration,
    pub(crate) why: Box<str>,
    pub(crate) in_force: bool,
}

/// The last error of the bundle stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    pub(crate) age: Duration,
    pub(crate) kind: &'static str,
    pub(crate) text: Box<str>,
    pub(crate) rpc: Option<WorkloadApiError>,
}

/// One trust domain of the set, or one whose keys cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDomainState {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) key_ids: Vec<Box<str>>,
    pub(crate) ignored_keys: usize,
    pub(crate) last_update: Option<Duration>,
    pub(crate) last_change: Option<Duration>,
    pub(crate) last_error: Option<Box<str>>,
}

impl SourceState {
    /// Returns how often the bundles changed; zero before the first sync.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Returns whether tokens can be verified now.
    pub fn is_ready(&self) -> bool {
        self.verdict.is_ok()
    }

    /// Returns why tokens cannot be verified now; `None` if they can.
    pub fn bundles_unavailable(&self) -> Option<BundlesUnavailable> {
        self.verdict.err()
    }

    /// Returns the withdrawal of the bundles until the issuer restores them, under every
    /// [`WithdrawalPolicy`](super::WithdrawalPolicy).
    pub fn withdrawn(&self) -> Option<&Withdrawal> {
        self.withdrawn.as_ref()
    }

    /// Returns whether the bundle stream is open and has sent bundles. Always `false` while the
    /// source [is overdue](Self::is_overdue).
    pub fn is_connected(&self) -> bool {
        self.connected && !self.overdue
    }

    /// Returns whether the background task of the source is overdue: it has not run for 5 s, or a
    /// message of the agent has waited for 5 s. Revocations may not be applied then.
    ///
    /// The task reports once a second. The age is the longer of the ages on the monotonic clock and
    /// on the wall clock. The usual causes are a runtime that is not driven and a task
    /// that blocks it. After a suspend it is `true` until the task runs again.
    pub fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// Returns the time since the agent last sent anything: a message, an error status, a token, or
    /// the response to a keepalive of the open bundle stream (every 305 s by default).
    pub fn last_contact(&self) -> Option<Duration> {
        self.last_contact
    }

    /// Returns the time since the last accepted message. It grows on a quiet stream: an agent sends
    /// only when something changes.
    pub fn last_message(&self) -> Option<Duration> {
        self.last_message
    }

    /// Returns the last error of the bundle stream since the last accepted message.
    pub fn last_error(&self) -> Option<&LastError> {
        self.last_error.as_ref()
    }

    /// Returns how many reconnections succeeded: the bundle stream was lost, and another one has sent
    /// bundles. The first connection is not counted.
    pub fn reconnects(&self) -> u64 {
        self.reconnects
    }

    /// Returns the number of attempts to open the bundle stream after the first one, failed ones included.
    /// Renewals of a quiet stream, such as for
    /// [`max_staleness`](super::JwtSourceBuilder::max_staleness), are not counted.
    pub fn reconnect_attempts(&self) -> u64 {
        self.reconnect_attempts
    }

    /// Returns the trust domains, by name.
    pub fn trust_domains(&self) -> &[TrustDomainState] {
        &self.trust_domains
    }

    /// Returns the entries of the last message whose name is not a trust domain: the escaped name, and
    /// why it is invalid.
    pub fn unnamed(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.unnamed.iter().map(|(name, why)| (&**name, &**why))
    }

    /// Returns the counters of the cache of this workload's tokens, and whether its circuit breaker is open.
    pub fn svid_cache(&self) -> &SvidCacheStats {
        &self.svid_cache
    }

    /// Returns each audience that there is or was a token for, in no particular order.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_spiffe::token::TokenState;
    /// use tower_spiffe::testing::FakeAgent;
    ///
    /// let agent = FakeAgent::start("example.org").await?;
    /// let source = agent.source().await?;
    /// source.authorization("reports").await?;
    ///
    /// let state = source.state();
    /// assert_eq!(state.svid_cache().fetches, 1);
    /// let [reports] = state.audiences() else { panic!() };
    /// assert_eq!(reports.state, TokenState::Fresh);
    /// assert!(reports.refresh_in < reports.expires_in && reports.last_error.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn audiences(&self) -> &[AudienceSnapshot] {
        &self.audiences
    }

    /// Returns whether the newest message of the agent was discarded as a whole: the bundles may no
    /// longer be current. [`last_error`](Self::last_error) has the reason.
    pub fn is_discarding(&self) -> bool {
        self.discarding
    }

    /// Returns whether the source is healthy: tokens can be verified; the issuer has not withdrawn
    /// the bundles; the bundle stream is open, or has been down for less than a minute, as during a
    /// restart of the agent; all of the newest message could be read; and the source is not
    /// [overdue](Self::is_overdue).
    ///
    /// For alerts. For a readiness probe use [`is_ready`](Self::is_ready): while the agent is
    /// unreachable, tokens are verified with the last bundles.
    pub fn is_healthy(&self) -> bool {
        const RESTART: Duration = Duration::from_secs(60);
        self.is_ready()
            && !self.overdue
            && self.withdrawn.is_none()
            && !self.discarding
            && self.unnamed.is_empty()
            && self.trust_domains.iter().all(|it| it.last_error.is_none())
            && (self.connected || self.down_for.is_some_and(|down| down < RESTART))
    }
}

impl Withdrawal {
    /// Returns how long ago it was.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Returns the message of the agent.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Returns whether it already prevents validation (see
    /// [`WithdrawalPolicy`](super::WithdrawalPolicy)).
    pub fn is_in_force(&self) -> bool {
        self.in_force
    }
}

impl LastError {
    /// Returns how long ago it was.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Returns its class, the label of
    /// [`record_error`](crate::metrics::MetricsRecorder::record_error).
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Returns the details as text.
    pub fn message(&self) -> &str {
        &self.text
    }

    /// Returns the error of the call, if a call failed.
    pub fn rpc(&self) -> Option<&WorkloadApiError> {
        self.rpc.as_ref()
    }
}

impl TrustDomainState {
    /// Returns the trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Returns the IDs of its keys, sorted.
    pub fn key_ids(&self) -> impl ExactSizeIterator<Item = &str> {
        self.key_ids.iter().map(AsRef::as_ref)
    }

    /// Returns the number of elements of its JWK Set that are not used as keys; at most 256.
    pub fn ignored_keys(&self) -> usize {
        self.ignored_keys
    }

    /// Returns the time since its keys were last received, changed or not; `None` if they were never
    /// readable.
    pub fn last_update(&self) -> Option<Duration> {
        self.last_update
    }

    /// Returns the time since its keys last changed.
    pub fn last_change(&self) -> Option<Duration> {
        self.last_change
    }

    /// Returns why the keys of the last message could not be read; the keys before it stay.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}
