//! An agent in memory on paused time, a source that uses it, and waits with time limits.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tower_spiffe::bundle::JwtBundleSet;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::metrics::MetricsRecorder;
use tower_spiffe::source::JwtSourceBuilder;
use tower_spiffe::testing::{FakeAgent, Issuer, PausedClock};
use tower_spiffe::verify::{ValidateError, ValidateReason};
use tower_spiffe::{JwtSource, TrustDomain, Validator};
pub(crate) use tower_spiffe_test_support::wait::{eventually, millis, secs, settle, soon};

pub(crate) const TD: &str = "example.org";
pub(crate) const OTHER: &str = "other.test";
pub(crate) const AUD: &str = "spiffe://example.org/db";
/// An endpoint on which no agent listens.
pub(crate) const NO_AGENT: &str = if cfg!(unix) {
    "unix:///nowhere.sock"
} else {
    "tcp://127.0.0.1:1"
};
pub(crate) const WEB: &str = "spiffe://example.org/web";

/// An agent in memory; everything runs on its clock.
pub(crate) struct World {
    pub(crate) clock: PausedClock,
    pub(crate) agent: FakeAgent,
}

impl World {
    pub(crate) async fn new() -> Self {
        let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
        let agent = FakeAgent::builder(TD)
            .clock(clock.shared())
            .start_in_memory()
            .await
            .unwrap();
        Self { clock, agent }
    }

    /// Returns a builder for a source of this agent, with deterministic backoff.
    pub(crate) fn builder(&self) -> JwtSourceBuilder {
        let builder = JwtSource::builder()
            .connector(self.agent.connector())
            .clock(self.clock.shared());
        tower_spiffe::testing::internals::seeded(builder, 7)
    }

    pub(crate) async fn source(&self) -> JwtSource {
        self.builder().build().await.unwrap()
    }

    /// Returns a source whose events a new recorder records.
    pub(crate) async fn recorded_source<R>(&self) -> (JwtSource, Arc<R>)
    where
        R: MetricsRecorder + Default,
    {
        let recorder = Arc::new(R::default());
        let builder = self.builder().metrics(recorder.clone());
        (builder.build().await.unwrap(), recorder)
    }

    pub(crate) fn validator(&self, source: &JwtSource) -> Validator {
        Validator::builder(source.clone())
            .audience(AUD)
            .clock(self.clock.shared())
            .build()
            .unwrap()
    }

    /// Returns a caller's token that the current key signed.
    pub(crate) fn token(&self) -> String {
        self.agent.token(WEB, AUD)
    }

    /// Returns how long the condition takes to become true, to the millisecond.
    pub(crate) async fn time_until(&self, condition: impl Fn() -> bool) -> Duration {
        let began = Instant::now();
        while !condition() {
            assert!(began.elapsed() < secs(3600), "the condition was never true");
            tokio::time::sleep(millis(1)).await;
        }
        began.elapsed()
    }

    /// Returns when the bundle stream was opened within this time, from now, to the millisecond.
    pub(crate) async fn openings(&self, within: Duration) -> Vec<Duration> {
        let began = Instant::now();
        let mut seen = self.agent.counts().fetch_jwt_bundles;
        let mut moments = Vec::new();
        while began.elapsed() < within {
            tokio::time::sleep(millis(1)).await;
            let now = self.agent.counts().fetch_jwt_bundles;
            moments.extend((seen..now).map(|_| began.elapsed()));
            seen = now;
        }
        moments
    }
}

pub(crate) fn td(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

pub(crate) fn key_ids(source: &JwtSource, name: &str) -> Vec<String> {
    set_key_ids(&source.bundle_set().unwrap(), name)
}

pub(crate) fn set_key_ids(set: &JwtBundleSet, name: &str) -> Vec<String> {
    let bundle = set.get(name).unwrap_or_else(|| panic!("no {name}"));
    let authorities = bundle.authorities();
    authorities.map(|key| key.key_id().to_owned()).collect()
}

pub(crate) fn reason<T>(outcome: Result<T, ValidateError>) -> Option<ValidateReason> {
    outcome.err().map(|error| error.reason())
}

/// Returns a trust domain as the agent sends it: its name and its keys.
pub(crate) fn entry(issuer: &Issuer) -> (String, Vec<u8>) {
    (
        issuer.trust_domain().to_spiffe_id().to_string(),
        issuer.jwks(),
    )
}

/// Returns this JWK Set, padded to this size.
pub(crate) fn padded(jwks: &[u8], bytes: usize) -> Vec<u8> {
    let mut padded = jwks.to_vec();
    assert_eq!(padded.pop(), Some(b'}'));
    padded.extend_from_slice(b", \"padding\": \"");
    padded.resize(bytes - 2, b'x');
    padded.extend_from_slice(b"\"}");
    padded
}

/// Returns trust domains with P-256 keys, by name.
pub(crate) fn many_keys(domains: usize, keys: usize) -> Vec<(String, Vec<u8>)> {
    (0..domains)
        .map(|n| {
            let issuer = Issuer::new(&format!("td{n}.test")).unwrap();
            for _ in 1..keys {
                issuer.prepare(tower_spiffe::bundle::Algorithm::ES256);
            }
            entry(&issuer)
        })
        .collect()
}
