//! Checks a Prometheus scrape of the week against the documented table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tower_spiffe::metrics::{
    DRY_RUN_OUTCOMES, FacadeRecorder, KEY_WAIT_OUTCOMES, METRICS, SvidCacheEvent,
};

use crate::week::{PARTNER, TRUST_DOMAIN, WEEK};
use crate::words;

pub(crate) struct Scrape {
    pub(crate) kinds: BTreeMap<String, String>,
    pub(crate) help: BTreeMap<String, String>,
    pub(crate) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Scrape {
    /// Parses the text format as far as these labels need it: no value has a quote or a comma.
    pub(crate) fn read(text: &str) -> Self {
        let mut scrape = Self {
            kinds: BTreeMap::new(),
            help: BTreeMap::new(),
            samples: Vec::new(),
        };
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                scrape.kinds.insert(name.to_owned(), kind.to_owned());
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                scrape.help.insert(name.to_owned(), help.to_owned());
            } else {
                scrape.samples.push(Sample::read(line));
            }
        }
        scrape
    }

    /// Returns the sum of all samples with this name and these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = |sample: &&Sample| {
            let says = |(label, value): &(&str, &str)| {
                sample.labels.get(*label).is_some_and(|is| is == value)
            };
            sample.name == name && labels.iter().all(says)
        };
        self.samples
            .iter()
            .filter(wanted)
            .map(|sample| sample.value)
            .sum()
    }
}

impl Sample {
    fn read(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
            None => (series, ""),
        };
        let labels = labels.split(',').filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (label, value) = label.split_once('=').unwrap();
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
            (label.to_owned(), value.unwrap().to_owned())
        });
        Self {
            name: name.to_owned(),
            labels: labels.collect(),
            value: value.parse().unwrap(),
        }
    }
}

#[test]
fn scrape_matches_the_documented_metrics() {
    let scrape = Scrape::read(&WEEK.scrape);
    let documented: BTreeMap<&str, &str> = METRICS.iter().map(|m| (m.name, m.kind)).collect();
    let seen: BTreeMap<&str, &str> = scrape
        .kinds
        .iter()
        .map(|(name, kind)| (name.as_str(), kind.as_str()))
        .collect();
    assert_eq!(seen, documented);
    let texts: BTreeMap<&str, &str> = METRICS.iter().map(|m| (m.name, m.what)).collect();
    let seen: BTreeMap<&str, &str> = scrape
        .help
        .iter()
        .map(|(name, what)| (name.as_str(), what.as_str()))
        .collect();
    assert_eq!(seen, texts);

    for sample in &scrape.samples {
        let metric = words::metric_of(&sample.name).expect(&sample.name);
        let labels: BTreeSet<&str> = sample.labels.keys().map(String::as_str).collect();
        let mut documented: BTreeSet<&str> = metric.labels.iter().copied().collect();
        if sample.name.ends_with("_bucket") {
            documented.insert("le");
        }
        assert_eq!(labels, documented, "{sample:?}");
    }
}

#[test]
fn labels_have_only_documented_values() {
    for sample in Scrape::read(&WEEK.scrape).samples {
        let metric = words::metric_of(&sample.name).unwrap();
        for (label, value) in sample.labels.iter().filter(|(label, _)| *label != "le") {
            let known = match words::of(metric.name, label) {
                Some(words) => words.contains(value.as_str()),
                None => [TRUST_DOMAIN, PARTNER, "unknown"].contains(&value.as_str()),
            };
            assert!(known, "{label}={value} of {}", sample.name);
        }
    }
}

#[test]
fn week_changes_every_metric() {
    let scrape = Scrape::read(&WEEK.scrape);
    for metric in METRICS {
        let name = match metric.kind {
            "histogram" => format!("{}_count", metric.name),
            _ => metric.name.to_owned(),
        };
        let scrapes = [
            &WEEK.scrape_while_well,
            &WEEK.scrape_while_withdrawn,
            &WEEK.scrape,
        ];
        let moved = |text: &&String| Scrape::read(text).sum(&name, &[]) > 0.0;
        assert!(scrapes.iter().any(moved), "{name}");
    }
    let well = Scrape::read(&WEEK.scrape_while_well);
    assert_eq!(well.sum("spiffe_bundle_ready", &[]), 1.0);
    let withdrawn = Scrape::read(&WEEK.scrape_while_withdrawn);
    assert_eq!(withdrawn.sum("spiffe_bundle_ready", &[]), 0.0);
    assert_eq!(withdrawn.sum("spiffe_bundle_withdrawn", &[]), 1.0);
    assert_eq!(scrape.sum("spiffe_bundle_withdrawn", &[]), 0.0);

    for event in SvidCacheEvent::ALL {
        let labels = [("event", event.as_str())];
        let count = scrape.sum("spiffe_svid_cache_events_total", &labels);
        assert!(count > 0.0, "{event:?}");
    }
    for outcome in ["ok", "error"] {
        let labels = [("outcome", outcome)];
        let count = scrape.sum("spiffe_token_file_writes_total", &labels);
        assert!(count > 1.0, "{outcome}");
    }
    for outcome in ["ok", "invalid-client", "unavailable", "no-svid"] {
        let labels = [("outcome", outcome)];
        let count = scrape.sum("spiffe_token_exchanges_total", &labels);
        assert!(count > 0.0, "{outcome}");
    }
    for outcome in KEY_WAIT_OUTCOMES {
        let labels = [("outcome", *outcome)];
        let count = scrape.sum("spiffe_unknown_key_waits_total", &labels);
        assert_eq!(count, 1.0, "{outcome}");
    }
    for outcome in DRY_RUN_OUTCOMES {
        let labels = [("outcome", *outcome)];
        let count = scrape.sum("spiffe_policy_dry_run_denials_total", &labels);
        assert_eq!(count, 1.0, "{outcome}");
    }
    let policy = [("kind", "policy-file")];
    assert!(scrape.sum("spiffe_source_errors_total", &policy) > 1.0);
    assert_eq!(scrape.sum("spiffe_ended_answers_total", &[]), 1.0);
    for why in ["not-ready", "withdrawn", "stale", "closed"] {
        for name in ["spiffe_admissions_total", "spiffe_verifications_total"] {
            let labels = [("outcome", "cannot-judge"), ("why", why)];
            assert!(scrape.sum(name, &labels) > 0.0, "{name} {why}");
        }
    }
    for outcome in [
        "verified",
        "anonymous",
        "missing",
        "malformed-header",
        "expired",
        "not-allowed",
        "not-wired",
    ] {
        let labels = [("outcome", outcome), ("enforced", "true")];
        assert!(
            scrape.sum("spiffe_admissions_total", &labels) > 0.0,
            "{outcome}"
        );
    }
    let audited = [("outcome", "missing"), ("enforced", "false")];
    assert_eq!(scrape.sum("spiffe_admissions_total", &audited), 1.0);
    for cached in ["true", "false"] {
        let labels = [("outcome", "ok"), ("cached", cached)];
        assert!(scrape.sum("spiffe_verifications_total", &labels) > 0.0);
    }
    for kind in [
        "unavailable",
        "permission-denied",
        "connect",
        "doubtful-connection",
        "bundle-unreadable",
        "bundle-file",
    ] {
        let labels = [("kind", kind)];
        assert!(
            scrape.sum("spiffe_source_errors_total", &labels) > 0.0,
            "{kind}"
        );
    }
}

/// The kind, the unit and the text.
type Description = (&'static str, Option<Unit>, String);

/// The descriptions of metrics before they have a value.
#[derive(Default)]
struct Described(Mutex<BTreeMap<String, Description>>);

impl Described {
    fn note(&self, kind: &'static str, key: KeyName, unit: Option<Unit>, what: SharedString) {
        let description = (kind, unit, what.to_string());
        self.0
            .lock()
            .unwrap()
            .insert(key.as_str().to_owned(), description);
    }
}

impl Recorder for Described {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, what: SharedString) {
        self.note("counter", key, unit, what);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, what: SharedString) {
        self.note("gauge", key, unit, what);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, what: SharedString) {
        self.note("histogram", key, unit, what);
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn exporter_gets_the_documented_kinds_and_units() {
    let described = Described::default();
    metrics::with_local_recorder(&described, FacadeRecorder::new);
    let documented = METRICS.iter().map(|metric| {
        let unit = match metric.unit {
            "seconds" => Unit::Seconds,
            "count" => Unit::Count,
            other => panic!("{other}"),
        };
        let description = (metric.kind, Some(unit), metric.what.to_owned());
        (metric.name.to_owned(), description)
    });
    assert_eq!(described.0.into_inner().unwrap(), documented.collect());
    for metric in METRICS {
        // Names follow Prometheus conventions.
        assert_eq!(
            metric.name.ends_with("_total"),
            metric.kind == "counter",
            "{}",
            metric.name
        );
        assert_eq!(
            metric.name.ends_with("_seconds"),
            metric.unit == "seconds",
            "{}",
            metric.name
        );
        assert_eq!(metric.buckets.is_empty(), metric.kind != "histogram");
        assert!(metric.buckets.is_sorted());
    }
}

#[test]
fn rare_counters_start_at_zero() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, FacadeRecorder::new);
    let scrape = Scrape::read(&recorder.handle().render());
    let count = |name: &str| scrape.samples.iter().filter(|s| s.name == name).count();
    assert_eq!(count("spiffe_bundle_reconnects_total"), 1);
    assert_eq!(count("spiffe_bundle_withdrawn"), 1);
    assert_eq!(count("spiffe_ended_answers_total"), 1);
    assert_eq!(count("spiffe_token_file_writes_total"), 2);
    assert_eq!(
        count("spiffe_token_exchanges_total"),
        tower_spiffe::metrics::EXCHANGE_OUTCOMES.len()
    );
    assert_eq!(
        count("spiffe_source_errors_total"),
        tower_spiffe::metrics::SOURCE_ERROR_KINDS.len()
    );
    assert!(scrape.samples.iter().all(|sample| sample.value == 0.0));
}

#[test]
fn second_recorder_keeps_the_withdrawal_of_the_first() {
    use tower_spiffe::metrics::MetricsRecorder as _;
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        FacadeRecorder::new().record_withdrawal(true);
        FacadeRecorder::new()
    });
    let scrape = Scrape::read(&recorder.handle().render());
    assert_eq!(scrape.sum("spiffe_bundle_withdrawn", &[]), 1.0);
}
