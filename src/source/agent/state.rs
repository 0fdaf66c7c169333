//! The state of a source, for operators.

use std::time::Duration;

use crate::bundle::BundlesUnavailable;
use crate::identity::TrustDomain;
use crate::token::{AudienceSnapshot, SvidCacheStats};
use crate::workload_api::WorkloadApiError;

/// The state of a [`JwtSource`](crate::JwtSource) at one moment. All ages were taken at that
/// moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SourceState {
    /// How often the bundles changed; zero before the first sync.
    pub revision: u64,
    /// Why tokens cannot be verified now; `None` if they can.
    pub bundles_unavailable: Option<BundlesUnavailable>,
    /// The withdrawal of the bundles until the issuer restores them, under every
    /// [`WithdrawalPolicy`](super::WithdrawalPolicy).
    pub withdrawn: Option<Withdrawal>,
    /// Whether the bundle stream is open and has sent bundles. Always `false` while the source is
    /// [overdue](Self::overdue).
    pub connected: bool,
    /// Whether the background task of the source is overdue: it has not run for 5 s, or a
    /// message of the agent has waited for 5 s. Revocations may not be applied then.
    ///
    /// The task reports once a second. The age is the longer of the ages on the monotonic clock and
    /// on the wall clock. The usual causes are a runtime that is not driven and a task
    /// that blocks it. After a suspend it is `true` until the task runs again.
    pub overdue: bool,
    /// Whether the newest message of the agent was discarded as a whole: the bundles may no longer
    /// be current. [`last_error`](Self::last_error) has the reason.
    pub discarding: bool,
    /// The time since the bundle stream was lost; `None` while it is open, and before the first
    /// bundles.
    pub down_for: Option<Duration>,
    /// The time since the agent last sent anything: a message, an error status, a token, or the
    /// response to a keepalive of the open bundle stream (every 305 s by default).
    pub last_contact: Option<Duration>,
    /// The time since the last accepted message. It grows on a quiet stream: an agent sends only
    /// when something changes.
    pub last_message: Option<Duration>,
    /// The last error of the bundle stream since the last accepted message.
    pub last_error: Option<LastError>,
    /// The number of reconnections that succeeded: the bundle stream was lost, and another one has
    /// sent bundles. The first connection is not counted.
    pub reconnects: u64,
    /// The number of attempts to open the bundle stream after the first one, failed ones included.
    /// Renewals of a quiet stream, such as for
    /// [`max_staleness`](super::JwtSourceBuilder::max_staleness), are not counted.
    pub reconnect_attempts: u64,
    /// The trust domains, by name.
    pub trust_domains: Vec<TrustDomainState>,
    /// The entries of the last message whose name is not a trust domain: the escaped name, and why
    /// it is invalid.
    pub unnamed: Vec<(Box<str>, Box<str>)>,
    /// The counters of the cache of this workload's tokens, and whether its circuit breaker is open.
    pub svid_cache: SvidCacheStats,
    /// Each audience that there is or was a token for, in no particular order.
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
    /// assert_eq!(state.svid_cache.fetches, 1);
    /// let [reports] = &*state.audiences else { panic!() };
    /// assert_eq!(reports.state, TokenState::Fresh);
    /// assert!(reports.refresh_in < reports.expires_in && reports.last_error.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub audiences: Vec<AudienceSnapshot>,
}

/// A withdrawal of the bundles by the issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Withdrawal {
    /// How long ago it was.
    pub age: Duration,
    /// The message of the agent.
    pub why: Box<str>,
    /// Whether it already prevents validation (see [`WithdrawalPolicy`](super::WithdrawalPolicy)).
    pub in_force: bool,
}

/// The last error of the bundle stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastError {
    /// How long ago it was.
    pub age: Duration,
    /// The class, the label of [`record_error`](crate::metrics::MetricsRecorder::record_error).
    pub kind: &'static str,
    /// The details.
    pub text: Box<str>,
    /// The error of the call, if a call failed.
    pub rpc: Option<WorkloadApiError>,
}

/// One trust domain of the set, or one whose keys cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrustDomainState {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The IDs of its keys, sorted.
    pub key_ids: Vec<Box<str>>,
    /// The number of elements of its JWK Set that are not used as keys; at most 256.
    pub ignored_keys: usize,
    /// The time since its keys were last received, changed or not; `None` if they were never
    /// readable.
    pub last_update: Option<Duration>,
    /// The time since its keys last changed.
    pub last_change: Option<Duration>,
    /// Why the keys of the last message could not be read; the keys before it stay.
    pub last_error: Option<Box<str>>,
}

impl LastError {
    pub(crate) fn new(kind: &'static str, text: impl Into<Box<str>>) -> Self {
        Self {
            age: Duration::ZERO,
            kind,
            text: text.into(),
            rpc: None,
        }
    }

    pub(crate) fn of(error: &WorkloadApiError) -> Self {
        Self {
            rpc: Some(error.clone()),
            ..Self::new(error.kind(), error.to_string())
        }
    }
}

impl SourceState {
    /// Returns whether tokens can be verified now.
    pub fn is_ready(&self) -> bool {
        self.bundles_unavailable.is_none()
    }

    /// Returns whether the source is healthy: tokens can be verified; the issuer has not withdrawn
    /// the bundles; the bundle stream is open, or has been down for less than a minute, as during a
    /// restart of the agent; all of the newest message could be read; and the source is not
    /// [overdue](Self::overdue).
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
