//! A recorder over the `metrics` crate.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Label, Unit};
use arc_swap::ArcSwap;

use super::table::{
    ADMISSIONS, AGE, CACHE, DRY_RUN, ENDED, ERRORS, EXCHANGE_TIME, EXCHANGES, FETCH_TIME, FETCHES,
    KEY_WAITS, LAST_CONTACT, METRICS, READY, RECONNECT_ATTEMPTS, RECONNECTS, TOKEN_FILES, UPDATES,
    VERDICTS, WITHDRAWN,
};
use super::{
    Admission, DRY_RUN_OUTCOMES, EXCHANGE_OUTCOMES, KEY_WAIT_OUTCOMES, MetricsRecorder,
    SOURCE_ERROR_KINDS, SvidCacheEvent, Verification,
};
use crate::clock::UnixTime;

/// Forwards all counts to the recorder that is installed for the `metrics` crate, usually an
/// exporter (feature `metrics`).
///
/// Install the exporter first. Counts without an exporter are lost. A counter of verdicts always
/// uses the exporter that was installed at its first count. Use one recorder for the whole process:
/// pass it to the source (its validators and layers inherit it), to token files and to sources of
/// access tokens. With several sources of bundles, give each one [its own
/// recorder](Self::for_source). Otherwise a gauge shows the source that recorded last.
///
/// | name | kind | unit | labels | what |
/// | --- | --- | --- | --- | --- |
/// | `spiffe_bundle_updates_total` | counter | count | | new bundle sets that differ from the one before |
/// | `spiffe_bundle_reconnects_total` | counter | count | | times that the bundle stream was opened again after it was lost |
/// | `spiffe_bundle_reconnect_attempts_total` | counter | count | | attempts to open the bundle stream after the first one |
/// | `spiffe_bundle_ready` | gauge | count | | 1 while tokens can be verified, else 0 |
/// | `spiffe_bundle_withdrawn` | gauge | count | | 1 while the issuer has withdrawn the bundles, else 0 |
/// | `spiffe_bundle_age_seconds` | gauge | seconds | | time since the last contact with the agent or endpoint, at the time of recording |
/// | `spiffe_bundle_last_contact_timestamp_seconds` | gauge | seconds | | the last contact with the agent or endpoint, in seconds since 1970 |
/// | `spiffe_source_errors_total` | counter | count | `kind` | errors of the bundle stream, of polls, of bundles, and of policy files |
/// | `spiffe_svid_fetches_total` | counter | count | `outcome` | calls to the agent for this workload's tokens |
/// | `spiffe_svid_fetch_duration_seconds` | histogram | seconds | `outcome` | the duration of these calls |
/// | `spiffe_svid_cache_events_total` | counter | count | `event` | events of the cache of this workload's tokens |
/// | `spiffe_token_file_writes_total` | counter | count | `outcome` | writes of token files |
/// | `spiffe_token_exchanges_total` | counter | count | `outcome` | requests for access tokens of an OAuth authorization server |
/// | `spiffe_token_exchange_duration_seconds` | histogram | seconds | `outcome` | the duration of these requests |
/// | `spiffe_admissions_total` | counter | count | `outcome`, `enforced`, `trust_domain`, `why` | verdicts of the server layers on requests |
/// | `spiffe_unknown_key_waits_total` | counter | count | `outcome` | requests that waited for a key that is not in the bundle |
/// | `spiffe_policy_dry_run_denials_total` | counter | count | `outcome` | requests that a policy file in a dry run would have denied |
/// | `spiffe_ended_answers_total` | counter | count | | responses that ended early because the caller's token expired |
/// | `spiffe_verifications_total` | counter | count | `outcome`, `cached`, `trust_domain`, `why` | verdicts on callers' tokens |
///
/// The values of labels are fixed words, never values from a caller:
///
/// - `kind` is one of [`SOURCE_ERROR_KINDS`](super::SOURCE_ERROR_KINDS), `event` one of
///   [`SvidCacheEvent::ALL`].
/// - `outcome` is:
///   - of a fetch, `ok` or a [`TokenErrorReason`](crate::token::TokenErrorReason);
///   - of the write of a token file, `ok` or `error`;
///   - of a request for an access token, one of [`EXCHANGE_OUTCOMES`](super::EXCHANGE_OUTCOMES);
///   - of a wait for a key, one of [`KEY_WAIT_OUTCOMES`](super::KEY_WAIT_OUTCOMES);
///   - of a denial in a dry run, one of [`DRY_RUN_OUTCOMES`](super::DRY_RUN_OUTCOMES);
///   - of a verification, `ok` or a [`ValidateReason`](crate::verify::ValidateReason);
///   - of an admission, `verified`, `anonymous` or a
///     [`RejectionReason`](crate::server::RejectionReason).
/// - `enforced` is `false` if audit mode allowed a request that it would reject; `cached` is `true`
///   if the token was in the verified cache.
/// - `why` is the reason if the outcome is `cannot-judge` (`not-ready`, `withdrawn`, `stale` or
///   `closed`) or `policy-unavailable` (`failed`, `timed-out` or `too-many-in-flight`). It is empty
///   otherwise.
/// - `trust_domain` is a trust domain of the bundle set, or `unknown`.
/// - `source` is an additional label of a recorder [for one source](Self::for_source), on
///   `spiffe_source_errors_total` and the metrics whose name begins with `spiffe_bundle_`.
///
/// Counters of rare events are created at zero, so that their first count is visible as an
/// increase. These are the counters of errors, waits for keys, dry-run denials, ended responses,
/// cache events, token files, access tokens, and the bundle stream.
///
/// A Grafana dashboard and alert rules over these names are in `examples/observability`.
///
/// ```
/// use std::sync::Arc;
/// use tower_spiffe::metrics::{FacadeRecorder, MetricsRecorder};
///
/// // Install your exporter here.
/// let recorder: Arc<dyn MetricsRecorder> = Arc::new(FacadeRecorder::new());
/// recorder.record_update();
/// ```
pub struct FacadeRecorder {
    /// The labels of the metrics of a bundle source: its name, or none.
    source: Vec<Label>,
    // Verdicts are counted on the hot path, so their counters are cached.
    verifications: Verdicts,
    admissions: Verdicts,
}

/// Counters of verdicts.
struct Verdicts {
    name: &'static str,
    /// The name of the boolean label.
    flag: &'static str,
    /// By their fixed labels and then by trust domain.
    counters: ArcSwap<HashMap<Verdict, HashMap<Box<str>, Counter>>>,
}

/// The outcome, its boolean label, and its `why`.
type Verdict = (&'static str, bool, &'static str);

impl Verdicts {
    fn new(name: &'static str, flag: &'static str) -> Self {
        let counters = ArcSwap::default();
        Self {
            name,
            flag,
            counters,
        }
    }

    fn count(&self, verdict: Verdict, trust_domain: &str) {
        let known = self.counters.load();
        let counter = known
            .get(&verdict)
            .and_then(|by_domain| by_domain.get(trust_domain));
        match counter {
            Some(counter) => counter.increment(1),
            None => {
                let (outcome, flag, why) = verdict;
                let counter = ::metrics::counter!(
                    self.name,
                    "outcome" => outcome,
                    self.flag => if flag { "true" } else { "false" },
                    "trust_domain" => trust_domain.to_owned(),
                    "why" => why,
                );
                counter.increment(1);
                self.counters.rcu(|verdicts| {
                    let mut verdicts = HashMap::clone(verdicts);
                    verdicts
                        .entry(verdict)
                        .or_default()
                        .insert(trust_domain.into(), counter.clone());
                    Arc::new(verdicts)
                });
            }
        }
    }
}

impl FacadeRecorder {
    /// Creates a recorder, and describes its metrics to the installed exporter.
    pub fn new() -> Self {
        Self::with_labels(Vec::new())
    }

    /// Creates the recorder of one of several sources of bundles. The metrics of the source have
    /// the label `source` with this name, so that readiness, contacts and errors of the sources are
    /// separate. Verdicts and the tokens of this workload are counted without this label.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use tower_spiffe::metrics::FacadeRecorder;
    /// use tower_spiffe::source::{FileBundles, MergedBundles};
    /// # use tower_spiffe::source::MemoryBundles;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let partner = FileBundles::builder()
    ///     .jwks("partner.example".parse()?, "/run/partner/jwks.json")
    ///     .metrics(Arc::new(FacadeRecorder::for_source("partner")));
    /// # let (partner, own) = (MemoryBundles::default(), MemoryBundles::default());
    /// let bundles = MergedBundles::builder()
    ///     .default_member("own", own)
    ///     .member("partner", partner, ["partner.example".parse()?])
    ///     .metrics(Arc::new(FacadeRecorder::new()))
    ///     .build()?;
    /// # drop(bundles);
    /// # Ok(())
    /// # }
    /// ```
    pub fn for_source(name: impl Into<String>) -> Self {
        Self::with_labels(vec![Label::new("source", name.into())])
    }

    fn with_labels(source: Vec<Label>) -> Self {
        for metric in METRICS {
            let unit = if metric.unit == "seconds" {
                Unit::Seconds
            } else {
                Unit::Count
            };
            match metric.kind {
                "counter" => ::metrics::describe_counter!(metric.name, unit, metric.what),
                "gauge" => ::metrics::describe_gauge!(metric.name, unit, metric.what),
                _ => ::metrics::describe_histogram!(metric.name, unit, metric.what),
            }
        }
        // A counter that first appears with a value above zero shows no increase.
        let recorder = Self {
            source,
            verifications: Verdicts::new(VERDICTS, "cached"),
            admissions: Verdicts::new(ADMISSIONS, "enforced"),
        };
        for counter in [UPDATES, RECONNECTS, RECONNECT_ATTEMPTS] {
            ::metrics::counter!(counter, recorder.source.iter()).increment(0);
        }
        for kind in SOURCE_ERROR_KINDS {
            recorder.errors(kind).increment(0);
        }
        for event in SvidCacheEvent::ALL {
            ::metrics::counter!(CACHE, "event" => event.as_str()).increment(0);
        }
        for (counter, outcomes) in [
            (TOKEN_FILES, &["ok", "error"][..]),
            (EXCHANGES, EXCHANGE_OUTCOMES),
            (KEY_WAITS, KEY_WAIT_OUTCOMES),
            (DRY_RUN, DRY_RUN_OUTCOMES),
        ] {
            for outcome in outcomes {
                ::metrics::counter!(counter, "outcome" => *outcome).increment(0);
            }
        }
        ::metrics::counter!(ENDED).increment(0);
        // Not set: another recorder may have recorded a withdrawal.
        ::metrics::gauge!(WITHDRAWN, recorder.source.iter()).increment(0.0);
        recorder
    }

    fn errors(&self, kind: &'static str) -> Counter {
        let mut labels = vec![Label::from_static_parts("kind", kind)];
        labels.extend_from_slice(&self.source);
        ::metrics::counter!(ERRORS, labels)
    }
}

impl Default for FacadeRecorder {
    fn default() -> Self {
        Self::new()
    }
}

impl MetricsRecorder for FacadeRecorder {
    fn record_update(&self) {
        ::metrics::counter!(UPDATES, self.source.iter()).increment(1);
    }

    fn record_reconnect(&self) {
        ::metrics::counter!(RECONNECTS, self.source.iter()).increment(1);
    }

    fn record_reconnect_attempt(&self) {
        ::metrics::counter!(RECONNECT_ATTEMPTS, self.source.iter()).increment(1);
    }

    fn record_error(&self, kind: &'static str) {
        self.errors(kind).increment(1);
    }

    fn record_ready(&self, ready: bool) {
        ::metrics::gauge!(READY, self.source.iter()).set(if ready { 1.0 } else { 0.0 });
    }

    fn record_withdrawal(&self, withdrawn: bool) {
        ::metrics::gauge!(WITHDRAWN, self.source.iter()).set(if withdrawn { 1.0 } else { 0.0 });
    }

    fn record_bundle_age(&self, age: Duration) {
        ::metrics::gauge!(AGE, self.source.iter()).set(age.as_secs_f64());
    }

    fn record_contact(&self, at: UnixTime) {
        // In milliseconds, which a double can represent exactly.
        let millis = at.subsec_nanos() / 1_000_000;
        let seconds = at.secs() as f64 + f64::from(millis) / 1e3;
        ::metrics::gauge!(LAST_CONTACT, self.source.iter()).set(seconds);
    }

    fn record_svid_fetch(&self, outcome: &'static str, latency: Duration) {
        ::metrics::counter!(FETCHES, "outcome" => outcome).increment(1);
        ::metrics::histogram!(FETCH_TIME, "outcome" => outcome).record(latency.as_secs_f64());
    }

    fn record_svid_cache(&self, event: SvidCacheEvent) {
        ::metrics::counter!(CACHE, "event" => event.as_str()).increment(1);
    }

    fn record_token_file(&self, outcome: &'static str) {
        ::metrics::counter!(TOKEN_FILES, "outcome" => outcome).increment(1);
    }

    fn record_token_exchange(&self, outcome: &'static str, latency: Duration) {
        ::metrics::counter!(EXCHANGES, "outcome" => outcome).increment(1);
        ::metrics::histogram!(EXCHANGE_TIME, "outcome" => outcome).record(latency.as_secs_f64());
    }

    fn record_admission(&self, it: &Admission<'_>) {
        let verdict = (it.outcome, it.enforced, it.why);
        self.admissions.count(verdict, it.trust_domain);
    }

    fn record_key_wait(&self, outcome: &'static str) {
        ::metrics::counter!(KEY_WAITS, "outcome" => outcome).increment(1);
    }

    fn record_dry_run_denial(&self, outcome: &'static str) {
        ::metrics::counter!(DRY_RUN, "outcome" => outcome).increment(1);
    }

    fn record_ended_answer(&self) {
        ::metrics::counter!(ENDED).increment(1);
    }

    fn record_verification(&self, it: &Verification<'_>) {
        let verdict = (it.outcome, it.cached, it.why);
        self.verifications.count(verdict, it.trust_domain);
    }
}

impl std::fmt::Debug for FacadeRecorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FacadeRecorder").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_metrics_match_the_code() {
        let documented: Vec<String> = include_str!("facade.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("/// | `"))
            .map(|row| format!("| `{row}"))
            .collect();
        let given: Vec<String> = METRICS
            .iter()
            .map(|metric| {
                let labels: Vec<String> = metric
                    .labels
                    .iter()
                    .map(|label| format!("`{label}`"))
                    .collect();
                let labels = match labels.as_slice() {
                    [] => String::new(),
                    some => format!(" {}", some.join(", ")),
                };
                format!(
                    "| `{}` | {} | {} |{labels} | {} |",
                    metric.name, metric.kind, metric.unit, metric.what
                )
            })
            .collect();
        assert_eq!(documented, given);
    }
}
