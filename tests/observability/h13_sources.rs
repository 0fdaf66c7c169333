//! Metrics of bundle sources without an agent.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use serde_json::{Value, json};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::bundle::BundleSource;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::metrics::{FacadeRecorder, METRICS, MetricsRecorder, SOURCE_ERROR_KINDS};
use tower_spiffe::source::{HttpsBundles, MemoryBundles, MergedBundles};
use tower_spiffe::testing::{Issuer, PausedClock};
use tower_spiffe::{Allow, FileBundles, TrustDomain, ValidateJwtSvidLayer, Validator};
use tower_spiffe_test_support::temp::TempDir;

use crate::scrape::Scrape;
use crate::words;

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

/// Runs this in paused time, and returns the metrics until then. Its sources are kept until the
/// scrape.
fn recorded<F: Future>(work: impl FnOnce(PausedClock) -> F) -> Scrape {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
        let _sources = runtime.block_on(work(clock));
        Scrape::read(&recorder.handle().render())
    })
}

/// A server that returns this status and body.
type Answer = Arc<Mutex<(u16, String)>>;

/// A source for the bundle of this trust domain, with this name in metrics.
fn polled(name: &str, domain: &str, answer: &Answer, clock: &PausedClock) -> HttpsBundles {
    let answer = answer.clone();
    HttpsBundles::https_web(td(domain), format!("https://{domain}/bundle"))
        .client(move |_: Request<()>| {
            let (status, body) = answer.lock().unwrap().clone();
            let response = Response::builder().status(status).body(body);
            std::future::ready(Ok::<_, Infallible>(response.unwrap()))
        })
        .clock(clock.shared())
        .max_staleness(Duration::from_secs(3600))
        .metrics(Arc::new(FacadeRecorder::for_source(name)))
        .build_lazy()
        .unwrap()
}

fn bundle(issuer: &Issuer, sequence: u64, usage: &str) -> String {
    let mut bundle: Value = serde_json::from_slice(&issuer.spiffe_bundle()).unwrap();
    bundle["spiffe_sequence"] = json!(sequence);
    bundle["keys"][0]["use"] = json!(usage);
    bundle.to_string()
}

const PARTNER: (&str, &str) = ("source", "partner");

#[test]
fn h13_polled_sources_record_every_metric() {
    let scrape = recorded(|clock| async move {
        let issuer = Issuer::new("partner.test").unwrap();
        let good = |sequence| bundle(&issuer, sequence, "jwt-svid");
        let answer = Answer::new(Mutex::new((200, good(7))));
        let bundles = polled("partner", "partner.test", &answer, &clock);
        bundles.ready().await.unwrap();
        for (status, body) in [
            (500, String::new()),
            (200, "junk".to_owned()),
            (200, "x".repeat(2 << 20)),
            (200, good(6)),
            (200, bundle(&issuer, 8, "enc")),
            (200, good(9)),
            (503, String::new()),
        ] {
            *answer.lock().unwrap() = (status, body);
            tokio::time::sleep(Duration::from_secs(300)).await;
        }
        assert!(bundles.revision().is_ok());
        tokio::time::sleep(Duration::from_secs(1800)).await;
        bundles
    });
    for (kind, least) in [
        ("bundle-fetch", 5.0),
        ("bundle-unreadable", 1.0),
        ("bundle-too-large", 1.0),
        ("bundle-rollback", 1.0),
        ("bundle-unusable", 1.0),
    ] {
        let labels = [PARTNER, ("kind", kind)];
        let count = scrape.sum("spiffe_source_errors_total", &labels);
        assert!(count >= least, "{kind}: {count}");
    }
    let value = |name: &str| scrape.sum(name, &[PARTNER]);
    assert_eq!(value("spiffe_bundle_updates_total"), 3.0);
    assert_eq!(value("spiffe_bundle_ready"), 1.0);
    let age = value("spiffe_bundle_age_seconds");
    assert!((1500.0..3600.0).contains(&age), "{age}");
    let contact = value("spiffe_bundle_last_contact_timestamp_seconds") - 1_790_000_000.0;
    assert!((1500.0..2200.0).contains(&contact), "{contact}");
    // Each metric of a source has the label; no other metric has it.
    let of_source = METRICS.iter().filter(|it| words::is_of_a_source(it.name));
    for metric in of_source {
        assert!(scrape.kinds.contains_key(metric.name), "{}", metric.name);
    }
    for sample in &scrape.samples {
        let metric = words::metric_of(&sample.name).unwrap();
        let labels = sample.labels.keys().map(String::as_str);
        let (source, others): (Vec<_>, Vec<_>) = labels.partition(|label| *label == "source");
        assert_eq!(
            source.len(),
            usize::from(words::is_of_a_source(metric.name))
        );
        assert_eq!(others, metric.labels, "{sample:?}");
    }
}

#[test]
fn h13_stale_polled_bundles_are_not_ready() {
    let scrape = recorded(|clock| async move {
        let issuer = Issuer::new("partner.test").unwrap();
        let answer = Answer::new(Mutex::new((200, bundle(&issuer, 7, "jwt-svid"))));
        let bundles = polled("partner", "partner.test", &answer, &clock);
        bundles.ready().await.unwrap();
        *answer.lock().unwrap() = (500, String::new());
        tokio::time::sleep(Duration::from_secs(4000)).await;
        bundles
    });
    assert_eq!(scrape.sum("spiffe_bundle_ready", &[PARTNER]), 0.0);
}

#[test]
fn h13_alert_counts_what_failed_polls_record() {
    let scrape = recorded(|clock| async move {
        let answer = Answer::new(Mutex::new((500, String::new())));
        let bundles = polled("partner", "partner.test", &answer, &clock);
        tokio::time::sleep(Duration::from_secs(1200)).await;
        bundles
    });
    let count = |kind: &str| {
        let labels = [PARTNER, ("kind", kind)];
        scrape.sum("spiffe_source_errors_total", &labels)
    };
    assert!(count("bundle-fetch") > 2.0);
    let others = SOURCE_ERROR_KINDS
        .iter()
        .filter(|it| **it != "bundle-fetch");
    assert_eq!(others.map(|kind| count(kind)).sum::<f64>(), 0.0);
    let alerts = include_str!("../../examples/observability/alerts.yaml");
    let (_, rule) = alerts.split_once("- alert: SpiffeBundlePollsFail").unwrap();
    let (rule, _) = rule.split_once("- alert: ").unwrap();
    assert!(rule.contains(r#"(spiffe_source_errors_total{kind="bundle-fetch"}[20m])"#));
}

#[test]
fn h13_sources_with_names_stay_apart() {
    let scrape = recorded(|clock| async move {
        let issuer = Issuer::new("own.test").unwrap();
        let good = Answer::new(Mutex::new((200, bundle(&issuer, 7, "jwt-svid"))));
        let down = Answer::new(Mutex::new((500, String::new())));
        let merged = MergedBundles::builder()
            .default_member("own", polled("own", "own.test", &good, &clock))
            .member(
                "partner",
                polled("partner", "partner.test", &down, &clock),
                [td("partner.test")],
            )
            .build()
            .unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(merged.is_ready() && !merged.is_healthy());
        merged
    });
    let value = |name: &str, source: &str| scrape.sum(name, &[("source", source)]);
    assert_eq!(value("spiffe_bundle_ready", "own"), 1.0);
    assert_eq!(value("spiffe_bundle_ready", "partner"), 0.0);
    assert_eq!(value("spiffe_bundle_updates_total", "own"), 1.0);
    assert_eq!(value("spiffe_bundle_updates_total", "partner"), 0.0);
    assert_eq!(value("spiffe_source_errors_total", "own"), 0.0);
    assert!(value("spiffe_source_errors_total", "partner") > 0.0);
}

/// Records every call of a source.
#[derive(Default)]
struct Everything(Mutex<Vec<String>>);

impl Everything {
    fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }
}

impl MetricsRecorder for Everything {
    fn record_update(&self) {
        self.add("update");
    }
    fn record_error(&self, kind: &'static str) {
        self.add(kind);
    }
    fn record_ready(&self, ready: bool) {
        self.add(format!("ready {ready}"));
    }
    fn record_bundle_age(&self, _: Duration) {
        self.add("age");
    }
    fn record_contact(&self, _: UnixTime) {
        self.add("contact");
    }
}

#[tokio::test(start_paused = true)]
async fn h13_files_record_updates_readiness_and_errors() {
    let dir = TempDir::new();
    let path = dir.join("own.json");
    let issuer = Issuer::new("own.test").unwrap();
    std::fs::write(&path, issuer.spiffe_bundle()).unwrap();
    let recorder = Arc::new(Everything::default());
    let files = FileBundles::builder()
        .spiffe_bundle(td("own.test"), &path)
        .metrics(recorder.clone())
        .open()
        .unwrap();
    issuer.rotate_now();
    for content in [issuer.spiffe_bundle(), b"half a bund".to_vec()] {
        std::fs::write(&path, content).unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let mut recorded = recorder.0.lock().unwrap().clone();
    recorded.dedup();
    assert_eq!(recorded, ["ready true", "update", "bundle-file"]);
    drop(files);
}

#[derive(Default)]
struct Count(Mutex<u64>);

impl MetricsRecorder for Count {
    fn record_verification(&self, _: &tower_spiffe::metrics::Verification<'_>) {
        *self.0.lock().unwrap() += 1;
    }
    fn record_admission(&self, _: &tower_spiffe::metrics::Admission<'_>) {
        *self.0.lock().unwrap() += 1;
    }
}

/// Returns what a layer with this source counts for one request.
async fn one_request(source: MergedBundles, counts: [&Count; 3]) -> [u64; 3] {
    let validator = Validator::builder(source)
        .audience("reports")
        .build()
        .unwrap();
    let layer = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain());
    let inner =
        service_fn(async |_: Request<String>| Ok::<_, Infallible>(Response::new(String::new())));
    let token = Issuer::new("own.test").unwrap();
    let token = token.token("spiffe://own.test/web", "reports").sign();
    let request = Request::get("/").header("authorization", format!("Bearer {token}"));
    let request = request.body(String::new()).unwrap();
    let _ = layer.layer(inner).oneshot(request).await.unwrap();
    counts.map(|count| std::mem::take(&mut *count.0.lock().unwrap()))
}

#[tokio::test]
async fn h13_merged_sources_share_a_recorder() {
    let [first, second, own] = [(); 3].map(|()| Arc::new(Count::default()));
    let dir = TempDir::new();
    let path = dir.join("own.json");
    std::fs::write(&path, Issuer::new("own.test").unwrap().spiffe_bundle()).unwrap();
    let file = |recorder: &Arc<Count>, domain| {
        let files = FileBundles::builder().spiffe_bundle(td(domain), &path);
        files.metrics(recorder.clone()).open().unwrap()
    };
    let builder = || {
        MergedBundles::builder()
            .member("memory", MemoryBundles::default(), [td("memory.test")])
            .member("first", file(&first, "own.test"), [td("own.test")])
            .member("second", file(&second, "other.test"), [td("other.test")])
    };
    let counts = || [&*first, &*second, &*own];
    // Of the first member with a recorder.
    let merged = builder().build().unwrap();
    assert_eq!(one_request(merged, counts()).await, [2, 0, 0]);
    let merged = builder().metrics(own.clone()).build().unwrap();
    assert_eq!(one_request(merged, counts()).await, [0, 0, 2]);
    let none = MergedBundles::builder().default_member("memory", MemoryBundles::default());
    assert!(none.build().unwrap().metrics().is_none());
}
