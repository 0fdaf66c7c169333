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

/// Defines the name of each metric, and the table of all.
macro_rules! metrics {
    ($($id:ident $name:literal $kind:literal $unit:literal $labels:tt $buckets:ident $what:literal;)*) => {
        $(pub(super) const $id: &str = $name;)*

        /// Every metric of [`FacadeRecorder`](super::FacadeRecorder).
        pub const METRICS: &[MetricInfo] = &[$(MetricInfo {
            name: $name,
            kind: $kind,
            unit: $unit,
            labels: &$labels,
            what: $what,
            buckets: $buckets,
        }),*];
    };
}

const NONE: &[f64] = &[];

/// From a cached token of an agent over a Unix socket up to the deadline of a fetch.
const FETCH: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

metrics! {
    UPDATES "spiffe_bundle_updates_total" "counter" "count" [] NONE
        "new bundle sets that differ from the one before";
    RECONNECTS "spiffe_bundle_reconnects_total" "counter" "count" [] NONE
        "times that the bundle stream was opened again after it was lost";
    RECONNECT_ATTEMPTS "spiffe_bundle_reconnect_attempts_total" "counter" "count" [] NONE
        "attempts to open the bundle stream after the first one";
    READY "spiffe_bundle_ready" "gauge" "count" [] NONE
        "1 while tokens can be verified, else 0";
    WITHDRAWN "spiffe_bundle_withdrawn" "gauge" "count" [] NONE
        "1 while the issuer has withdrawn the bundles, else 0";
    AGE "spiffe_bundle_age_seconds" "gauge" "seconds" [] NONE
        "time since the last contact with the agent or endpoint, at the time of recording";
    LAST_CONTACT "spiffe_bundle_last_contact_timestamp_seconds" "gauge" "seconds" [] NONE
        "the last contact with the agent or endpoint, in seconds since 1970";
    ERRORS "spiffe_source_errors_total" "counter" "count" ["kind"] NONE
        "errors of the bundle stream, of polls, of bundles, and of policy files";
    FETCHES "spiffe_svid_fetches_total" "counter" "count" ["outcome"] NONE
        "calls to the agent for this workload's tokens";
    FETCH_TIME "spiffe_svid_fetch_duration_seconds" "histogram" "seconds" ["outcome"] FETCH
        "the duration of these calls";
    CACHE "spiffe_svid_cache_events_total" "counter" "count" ["event"] NONE
        "events of the cache of this workload's tokens";
    TOKEN_FILES "spiffe_token_file_writes_total" "counter" "count" ["outcome"] NONE
        "writes of token files";
    EXCHANGES "spiffe_token_exchanges_total" "counter" "count" ["outcome"] NONE
        "requests for access tokens of an OAuth authorization server";
    EXCHANGE_TIME "spiffe_token_exchange_duration_seconds" "histogram" "seconds" ["outcome"] FETCH
        "the duration of these requests";
    ADMISSIONS "spiffe_admissions_total" "counter" "count" ["outcome", "enforced", "trust_domain", "why"] NONE
        "verdicts of the server layers on requests";
    KEY_WAITS "spiffe_unknown_key_waits_total" "counter" "count" ["outcome"] NONE
        "requests that waited for a key that is not in the bundle";
    DRY_RUN "spiffe_policy_dry_run_denials_total" "counter" "count" ["outcome"] NONE
        "requests that a policy file in a dry run would have denied";
    ENDED "spiffe_ended_answers_total" "counter" "count" [] NONE
        "responses that ended early because the caller's token expired";
    VERDICTS "spiffe_verifications_total" "counter" "count" ["outcome", "cached", "trust_domain", "why"] NONE
        "verdicts on callers' tokens";
}
