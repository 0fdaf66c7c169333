//! The metrics of `FacadeRecorder` in one table.

/// One metric: a row of the table at [`FacadeRecorder`](super::FacadeRecorder).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct MetricInfo {
    /// The name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// `count` or `seconds`.
    pub unit: &'static str,
    /// The names of its labels. A recorder [for one source](super::FacadeRecorder::for_source) adds
    /// `source`.
    pub labels: &'static [&'static str],
    /// The description.
    pub what: &'static str,
    /// Suitable upper bounds of a histogram, in its unit, in rising order; empty for the other
    /// kinds. Pass them to the exporter. Otherwise it exports quantiles, which cannot be added up
    /// over many processes.
    pub buckets: &'static [f64],
}

pub(super) const UPDATES: &str = "spiffe_bundle_updates_total";
pub(super) const RECONNECTS: &str = "spiffe_bundle_reconnects_total";
pub(super) const RECONNECT_ATTEMPTS: &str = "spiffe_bundle_reconnect_attempts_total";
pub(super) const READY: &str = "spiffe_bundle_ready";
pub(super) const WITHDRAWN: &str = "spiffe_bundle_withdrawn";
pub(super) const AGE: &str = "spiffe_bundle_age_seconds";
pub(super) const LAST_CONTACT: &str = "spiffe_bundle_last_contact_timestamp_seconds";
pub(super) const ERRORS: &str = "spiffe_source_errors_total";
pub(super) const FETCHES: &str = "spiffe_svid_fetches_total";
pub(super) const FETCH_TIME: &str = "spiffe_svid_fetch_duration_seconds";
pub(super) const CACHE: &str = "spiffe_svid_cache_events_total";
pub(super) const TOKEN_FILES: &str = "spiffe_token_file_writes_total";
pub(super) const EXCHANGES: &str = "spiffe_token_exchanges_total";
pub(super) const EXCHANGE_TIME: &str = "spiffe_token_exchange_duration_seconds";
pub(super) const ADMISSIONS: &str = "spiffe_admissions_total";
pub(super) const KEY_WAITS: &str = "spiffe_unknown_key_waits_total";
pub(super) const DRY_RUN: &str = "spiffe_policy_dry_run_denials_total";
pub(super) const ENDED: &str = "spiffe_ended_answers_total";
pub(super) const VERDICTS: &str = "spiffe_verifications_total";

/// From a cached token of an agent over a Unix socket up to the deadline of a fetch.
const FETCH_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Every metric of [`FacadeRecorder`](super::FacadeRecorder).
pub const METRICS: &[MetricInfo] = &[
    row(
        UPDATES,
        "counter",
        "count",
        &[],
        "new bundle sets that differ from the one before",
    ),
    row(
        RECONNECTS,
        "counter",
        "count",
        &[],
        "times that the bundle stream was opened again after it was lost",
    ),
    row(
        RECONNECT_ATTEMPTS,
        "counter",
        "count",
        &[],
        "attempts to open the bundle stream after the first one",
    ),
    row(
        READY,
        "gauge",
        "count",
        &[],
        "1 while tokens can be verified, else 0",
    ),
    row(
        WITHDRAWN,
        "gauge",
        "count",
        &[],
        "1 while the issuer has withdrawn the bundles, else 0",
    ),
    row(
        AGE,
        "gauge",
        "seconds",
        &[],
        "time since the last contact with the agent or endpoint, at the time of recording",
    ),
    row(
        LAST_CONTACT,
        "gauge",
        "seconds",
        &[],
        "the last contact with the agent or endpoint, in seconds since 1970",
    ),
    row(
        ERRORS,
        "counter",
        "count",
        &["kind"],
        "errors of the bundle stream, of polls, of bundles, and of policy files",
    ),
    row(
        FETCHES,
        "counter",
        "count",
        &["outcome"],
        "calls to the agent for this workload's tokens",
    ),
    MetricInfo {
        buckets: FETCH_BUCKETS,
        ..row(
            FETCH_TIME,
            "histogram",
            "seconds",
            &["outcome"],
            "the duration of these calls",
        )
    },
    row(
        CACHE,
        "counter",
        "count",
        &["event"],
        "events of the cache of this workload's tokens",
    ),
    row(
        TOKEN_FILES,
        "counter",
        "count",
        &["outcome"],
        "writes of token files",
    ),
    row(
        EXCHANGES,
        "counter",
        "count",
        &["outcome"],
        "requests for access tokens of an OAuth authorization server",
    ),
    MetricInfo {
        buckets: FETCH_BUCKETS,
        ..row(
            EXCHANGE_TIME,
            "histogram",
            "seconds",
            &["outcome"],
            "the duration of these requests",
        )
    },
    row(
        ADMISSIONS,
        "counter",
        "count",
        &["outcome", "enforced", "trust_domain", "why"],
        "verdicts of the server layers on requests",
    ),
    row(
        KEY_WAITS,
        "counter",
        "count",
        &["outcome"],
        "requests that waited for a key that is not in the bundle",
    ),
    row(
        DRY_RUN,
        "counter",
        "count",
        &["outcome"],
        "requests that a policy file in a dry run would have denied",
    ),
    row(
        ENDED,
        "counter",
        "count",
        &[],
        "responses that ended early because the caller's token expired",
    ),
    row(
        VERDICTS,
        "counter",
        "count",
        &["outcome", "cached", "trust_domain", "why"],
        "verdicts on callers' tokens",
    ),
];

const fn row(
    name: &'static str,
    kind: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    what: &'static str,
) -> MetricInfo {
    MetricInfo {
        name,
        kind,
        unit,
        labels,
        what,
        buckets: &[],
    }
}
