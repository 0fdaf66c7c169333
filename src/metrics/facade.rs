//! A ready recorder: everything goes to the `metrics` crate.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Unit};
use arc_swap::ArcSwap;

use super::{MetricsRecorder, SvidCacheEvent, Verification};
use crate::clock::UnixTime;

/// Hands every count to the recorder that is installed for the `metrics` crate, from where an
/// exporter takes it (feature `metrics`).
///
/// Install the exporter first: a count that nobody takes is lost, and the counter of a verdict
/// stays with the exporter that was there at the first of its kind.
///
/// | name | kind | unit | labels | what |
/// | --- | --- | --- | --- | --- |
/// | `spiffe_bundle_updates_total` | counter | count | | bundle sets taken in that differ from the one before |
/// | `spiffe_bundle_reconnects_total` | counter | count | | times the bundle stream was opened anew |
/// | `spiffe_bundle_withdrawn` | gauge | count | | 1 while the issuer has withdrawn the bundles, else 0 |
/// | `spiffe_bundle_age_seconds` | gauge | seconds | | time since something last came from the agent, when last looked at |
/// | `spiffe_bundle_last_contact_timestamp_seconds` | gauge | seconds | | when something last came from the agent, in seconds since 1970 |
/// | `spiffe_source_errors_total` | counter | count | `kind` | troubles with the bundle stream or with what came over it |
/// | `spiffe_svid_fetches_total` | counter | count | `outcome` | calls to the agent for tokens of our own |
/// | `spiffe_svid_fetch_duration_seconds` | histogram | seconds | `outcome` | how long they took |
/// | `spiffe_svid_cache_events_total` | counter | count | `event` | what the token cache did: `hit`, `miss`, `refresh` |
/// | `spiffe_verifications_total` | counter | count | `outcome`, `cached`, `trust_domain` | verdicts on callers' tokens |
///
/// `kind` is one of [`SOURCE_ERROR_KINDS`](super::SOURCE_ERROR_KINDS). `outcome` is `ok` or the
/// class of the error. `trust_domain` is one of the bundle set, or `unknown`.
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
    // Verdicts are counted on the hot path: their counters are looked up once.
    verdicts: ArcSwap<HashMap<Verdict, HashMap<Box<str>, Counter>>>,
}

/// The outcome, and whether it was cached.
type Verdict = (&'static str, bool);

/// One metric: a row of the table at [`FacadeRecorder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetricInfo {
    /// Its name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// `count` or `seconds`.
    pub unit: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub what: &'static str,
}

const UPDATES: &str = "spiffe_bundle_updates_total";
const RECONNECTS: &str = "spiffe_bundle_reconnects_total";
const WITHDRAWN: &str = "spiffe_bundle_withdrawn";
const AGE: &str = "spiffe_bundle_age_seconds";
const LAST_CONTACT: &str = "spiffe_bundle_last_contact_timestamp_seconds";
const ERRORS: &str = "spiffe_source_errors_total";
const FETCHES: &str = "spiffe_svid_fetches_total";
const FETCH_TIME: &str = "spiffe_svid_fetch_duration_seconds";
const CACHE: &str = "spiffe_svid_cache_events_total";
const VERDICTS: &str = "spiffe_verifications_total";

/// Every metric that [`FacadeRecorder`] gives.
pub const METRICS: [MetricInfo; 10] = [
    row(
        UPDATES,
        "counter",
        "count",
        &[],
        "bundle sets taken in that differ from the one before",
    ),
    row(
        RECONNECTS,
        "counter",
        "count",
        &[],
        "times the bundle stream was opened anew",
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
        "time since something last came from the agent, when last looked at",
    ),
    row(
        LAST_CONTACT,
        "gauge",
        "seconds",
        &[],
        "when something last came from the agent, in seconds since 1970",
    ),
    row(
        ERRORS,
        "counter",
        "count",
        &["kind"],
        "troubles with the bundle stream or with what came over it",
    ),
    row(
        FETCHES,
        "counter",
        "count",
        &["outcome"],
        "calls to the agent for tokens of our own",
    ),
    row(
        FETCH_TIME,
        "histogram",
        "seconds",
        &["outcome"],
        "how long they took",
    ),
    row(
        CACHE,
        "counter",
        "count",
        &["event"],
        "what the token cache did: `hit`, `miss`, `refresh`",
    ),
    row(
        VERDICTS,
        "counter",
        "count",
        &["outcome", "cached", "trust_domain"],
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
    }
}

impl FacadeRecorder {
    /// A recorder; describes its metrics to the exporter that is installed.
    pub fn new() -> Self {
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
        Self {
            verdicts: ArcSwap::default(),
        }
    }

    fn new_verdict(&self, verification: &Verification<'_>) {
        let counter = ::metrics::counter!(
            VERDICTS,
            "outcome" => verification.outcome,
            "cached" => if verification.cached { "true" } else { "false" },
            "trust_domain" => verification.trust_domain.to_owned(),
        );
        counter.increment(1);
        self.verdicts.rcu(|verdicts| {
            let mut verdicts = HashMap::clone(verdicts);
            verdicts
                .entry((verification.outcome, verification.cached))
                .or_default()
                .insert(verification.trust_domain.into(), counter.clone());
            Arc::new(verdicts)
        });
    }
}

impl Default for FacadeRecorder {
    fn default() -> Self {
        Self::new()
    }
}

impl MetricsRecorder for FacadeRecorder {
    fn record_update(&self) {
        ::metrics::counter!(UPDATES).increment(1);
    }

    fn record_reconnect(&self) {
        ::metrics::counter!(RECONNECTS).increment(1);
    }

    fn record_error(&self, kind: &'static str) {
        ::metrics::counter!(ERRORS, "kind" => kind).increment(1);
    }

    fn record_withdrawal(&self, withdrawn: bool) {
        ::metrics::gauge!(WITHDRAWN).set(if withdrawn { 1.0 } else { 0.0 });
    }

    fn record_bundle_age(&self, age: Duration) {
        ::metrics::gauge!(AGE).set(age.as_secs_f64());
    }

    fn record_contact(&self, at: UnixTime) {
        // To the millisecond, which a double holds for longer than this crate lasts.
        let millis = at.subsec_nanos() / 1_000_000;
        let seconds = at.secs() as f64 + f64::from(millis) / 1e3;
        ::metrics::gauge!(LAST_CONTACT).set(seconds);
    }

    fn record_svid_fetch(&self, outcome: &'static str, latency: Duration) {
        ::metrics::counter!(FETCHES, "outcome" => outcome).increment(1);
        ::metrics::histogram!(FETCH_TIME, "outcome" => outcome).record(latency.as_secs_f64());
    }

    fn record_svid_cache(&self, event: SvidCacheEvent) {
        ::metrics::counter!(CACHE, "event" => event.as_str()).increment(1);
    }

    fn record_verification(&self, verification: &Verification<'_>) {
        let verdicts = self.verdicts.load();
        let known = verdicts
            .get(&(verification.outcome, verification.cached))
            .and_then(|by_domain| by_domain.get(verification.trust_domain));
        match known {
            Some(counter) => counter.increment(1),
            None => self.new_verdict(verification),
        }
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
    fn the_documented_table_is_what_the_code_gives() {
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
