//! Bundle files that appear after the service starts.

use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use tower_spiffe::Validator;
use tower_spiffe::bundle::{BundleAnswer, BundleSource as _, BundlesUnavailable};
use tower_spiffe::metrics::MetricsRecorder;
use tower_spiffe::source::{FileBundles, FileBundlesErrorReason};
use tower_spiffe::testing::Issuer;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe_test_support::temp::{TempDir, replace};

use crate::h08_bundle_files::{document, set_with, verdict};
use crate::support::{AUD, OTHER, TD, WEB, millis, secs, td};

const NOT_READY: Option<ValidateReason> = Some(ValidateReason::BundlesUnavailable(
    BundlesUnavailable::NotReady,
));

fn jwks(issuer: &Issuer) -> String {
    document("jwks", &set_with(issuer, "use", None))
}

/// Writes a file after this delay.
fn later(path: &Path, at: std::time::Duration, text: impl Into<Vec<u8>>) {
    let (path, text) = (path.to_owned(), text.into());
    tokio::spawn(async move {
        tokio::time::sleep(at).await;
        std::fs::write(path, text).unwrap();
    });
}

/// Waits for the condition; returns the elapsed paused time.
async fn time_until(condition: impl Fn() -> bool) -> std::time::Duration {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < secs(3600), "the condition was never true");
        tokio::time::sleep(millis(1)).await;
    }
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn build_waits_for_a_late_file() {
    let dir = TempDir::new();
    let (issuer, path) = (Issuer::new(TD).unwrap(), dir.join("late"));
    let whole = jwks(&issuer);
    let began = Instant::now();
    later(&path, secs(10), "");
    later(&path, secs(12), &whole[..whole.len() / 2]);
    later(&path, secs(14), whole);
    let files = FileBundles::builder().jwks(td(TD), &path).build();
    let files = files.await.unwrap();
    let took = began.elapsed();
    assert!((secs(14)..=millis(14_300)).contains(&took), "{took:?}");
    assert_eq!(verdict(&files, &issuer), None);
    assert!(files.is_ready() && files.is_healthy());
    assert_eq!(files.state().revision, 1);
}

#[tokio::test(start_paused = true)]
async fn build_times_out_with_the_cause() {
    let dir = TempDir::new();
    let missing = dir.join("missing");
    let half = dir.join("half");
    std::fs::write(&half, r#"{"keys": ["#).unwrap();
    for (path, why) in [(&missing, "cannot be read"), (&half, "ends too early")] {
        let began = Instant::now();
        let files = FileBundles::builder().jwks(td(TD), path).build();
        let error = files.await.unwrap_err();
        let took = began.elapsed();
        assert!((secs(30)..=millis(30_300)).contains(&took), "{took:?}");
        assert_eq!(error.reason(), FileBundlesErrorReason::InitialSync);
        assert_eq!(error.path(), Some(path.as_path()));
        let error = format!("{error:#}");
        for part in [
            &*path.to_string_lossy(),
            "30s",
            why,
            "`initial_sync_timeout`",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
    let files = FileBundles::builder().jwks(td(TD), &missing);
    let began = Instant::now();
    let error = files.initial_sync_timeout(secs(2)).build().await;
    assert!(error.is_err() && began.elapsed() < secs(3));

    // Without a limit it waits until the file appears.
    later(&missing, secs(40), r#"{"keys": []}"#);
    let files = FileBundles::builder().jwks(td(TD), &missing);
    assert!(files.initial_sync_timeout(None).build().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn lazy_source_is_unavailable_at_first() {
    let dir = TempDir::new();
    let (issuer, path) = (Issuer::new(TD).unwrap(), dir.join("late"));
    let files = FileBundles::builder().jwks(td(TD), &path).build_lazy();
    let files = files.unwrap();
    let validator = Validator::builder(files.clone())
        .audience(AUD)
        .build()
        .unwrap();
    let verdict = || {
        let verdict = validator.validate(&issuer.token(WEB, AUD).sign());
        verdict.err().map(|error| error.reason())
    };
    for _ in 0..2 {
        assert_eq!(files.revision(), Err(BundlesUnavailable::NotReady));
        assert_eq!(verdict(), NOT_READY);
        assert!(files.bundle_set().is_err() && !files.is_ready() && !files.is_healthy());
        let state = files.state();
        assert_eq!((state.revision, state.is_ready()), (0, false));
        assert!(!state.files[0].read && state.files[0].trust_domains.is_empty());
        tokio::time::sleep(secs(60)).await;
    }
    let state = files.state();
    let error = state.files[0].last_error.as_ref().unwrap();
    assert!(error.contains("cannot be read"), "{error}");
    assert!(!state.overdue);

    let changed = files.changed_since(0).unwrap();
    later(&path, secs(1), jwks(&issuer));
    let began = Instant::now();
    changed.await;
    assert!(began.elapsed() <= millis(1_300));
    files.ready().await.unwrap();
    assert_eq!(verdict(), None);
    assert!(files.is_ready() && files.is_healthy() && files.state().files[0].read);

    // After the first read, a missing file makes the source unhealthy, not unready.
    std::fs::remove_file(&path).unwrap();
    time_until(|| !files.is_healthy()).await;
    assert!(files.is_ready() && verdict().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_missing_file_affects_its_domain_only() {
    let dir = TempDir::new();
    let (own, other) = (Issuer::new(TD).unwrap(), Issuer::new(OTHER).unwrap());
    let stranger = Issuer::new("stranger.test").unwrap();
    let (there, late) = (dir.join("there"), dir.join("late"));
    std::fs::write(&there, jwks(&own)).unwrap();
    let files = FileBundles::builder()
        .jwks(td(TD), &there)
        .jwks(td(OTHER), &late)
        .build_lazy()
        .unwrap();
    time_until(|| files.revision() == Ok(1)).await;
    assert!(!files.is_ready());
    assert_eq!(verdict(&files, &own), None);
    assert_eq!(reason(&files, &other), NOT_READY);
    let unknown = Some(ValidateReason::TrustDomainUnknown);
    assert_eq!(reason(&files, &stranger), unknown);

    later(&late, secs(1), jwks(&other));
    files.ready().await.unwrap();
    assert_eq!(files.revision(), Ok(2), "readiness is a change");
    assert_eq!(reason(&files, &other), None);
}

/// A missing map may contain any trust domain: no caller's trust domain is reported as unknown.
#[tokio::test(start_paused = true)]
async fn missing_map_makes_unknown_domains_unavailable() {
    let dir = TempDir::new();
    let (own, other) = (Issuer::new(TD).unwrap(), Issuer::new(OTHER).unwrap());
    let (there, late) = (dir.join("there"), dir.join("late"));
    std::fs::write(&there, jwks(&own)).unwrap();
    let files = FileBundles::builder()
        .jwks(td(TD), &there)
        .spiffe_helper(&late)
        .build_lazy()
        .unwrap();
    time_until(|| files.revision() == Ok(1)).await;
    assert_eq!(verdict(&files, &own), None);
    assert_eq!(reason(&files, &other), NOT_READY);
    later(&late, secs(1), "{}");
    files.ready().await.unwrap();
    let unknown = Some(ValidateReason::TrustDomainUnknown);
    assert_eq!(reason(&files, &other), unknown);
}

fn reason(files: &FileBundles, issuer: &Issuer) -> Option<ValidateReason> {
    let validator = Validator::builder(files.clone()).audience(AUD).build();
    let id = issuer.trust_domain().to_spiffe_id();
    let token = issuer.token(&format!("{id}/web"), AUD).sign();
    let verdict = validator.unwrap().validate(&token);
    verdict.err().map(|error| error.reason())
}

/// A map that is read first does not claim the trust domain of a missing file.
#[tokio::test(start_paused = true)]
async fn a_configured_domain_belongs_to_its_file() {
    let dir = TempDir::new();
    let (issuer, intruder) = (Issuer::new(TD).unwrap(), Issuer::new(TD).unwrap());
    let (own, map) = (dir.join("own"), dir.join("map"));
    let of_intruder = set_with(&intruder, "use", None);
    std::fs::write(&map, document("spiffe_helper", &of_intruder)).unwrap();
    let files = FileBundles::builder()
        .jwks(td(TD), &own)
        .spiffe_helper(&map)
        .build_lazy()
        .unwrap();
    time_until(|| files.state().files[1].last_error.is_some()).await;
    assert_eq!(verdict(&files, &intruder), NOT_READY);
    later(&own, secs(1), jwks(&issuer));
    time_until(|| verdict(&files, &issuer).is_none()).await;
    assert!(verdict(&files, &intruder).is_some() && !files.is_ready());
    let state = files.state();
    let error = state.files[1].last_error.as_ref().unwrap();
    assert!(error.contains("another file has"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn permanent_errors_fail_at_once() {
    let dir = TempDir::new();
    let missing = dir.join("missing");
    let two = || {
        let files = FileBundles::builder().jwks(td(TD), &missing);
        files.spiffe_bundle(td(TD), &missing)
    };
    let reason = FileBundlesErrorReason::TwoForOneTrustDomain;
    assert_eq!(two().build_lazy().unwrap_err().reason(), reason);
    assert_eq!(two().open().unwrap_err().reason(), reason);
    assert_eq!(two().build().await.unwrap_err().reason(), reason);
    let reason = FileBundlesErrorReason::NoFile;
    let none = FileBundles::builder().build().await;
    assert_eq!(none.unwrap_err().reason(), reason);
    let missing = FileBundles::builder().jwks(td(TD), &missing).open();
    assert_eq!(missing.unwrap_err().reason(), FileBundlesErrorReason::Io);
}

#[test]
fn a_wait_ends_with_its_runtime() {
    let dir = TempDir::new();
    let runtime = || {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(1).enable_all().build().unwrap()
    };
    let (of_files, other) = (runtime(), runtime());
    let files = {
        let _inside = of_files.enter();
        let files = FileBundles::builder().spire_agent(dir.join("missing"));
        files.build_lazy().unwrap()
    };
    let waiting = files.clone();
    let wait = other.spawn(async move { waiting.ready().await });
    let changed = files.changed_since(0).unwrap();
    drop(of_files);
    let error = other.block_on(wait).unwrap().unwrap_err();
    assert_eq!(error.reason(), FileBundlesErrorReason::Closed);
    other.block_on(changed);
    assert_eq!(files.revision(), Err(BundlesUnavailable::Closed));
    assert!(matches!(
        files.bundle(TD),
        BundleAnswer::Unavailable(BundlesUnavailable::Closed)
    ));
}

#[derive(Default)]
struct Ready(Mutex<Vec<bool>>);

impl MetricsRecorder for Ready {
    fn record_ready(&self, ready: bool) {
        self.0.lock().unwrap().push(ready);
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_is_recorded() {
    let dir = TempDir::new();
    let path = dir.join("late");
    let recorder = Arc::new(Ready::default());
    let files = FileBundles::builder()
        .spiffe_helper(&path)
        .metrics(recorder.clone())
        .build_lazy()
        .unwrap();
    assert_eq!(*recorder.0.lock().unwrap(), [false]);
    later(&path, secs(1), "{}");
    time_until(|| recorder.0.lock().unwrap().len() > 1).await;
    assert_eq!(*recorder.0.lock().unwrap(), [false, true]);
    assert!(files.is_ready());
}

/// A file that exists is read in the background, without a delay.
#[tokio::test(start_paused = true)]
async fn a_lazy_source_reads_at_once() {
    let dir = TempDir::new();
    let path = dir.join("there");
    replace(&path, "{}");
    let began = Instant::now();
    let files = FileBundles::builder().spiffe_helper(&path);
    files.poll_interval(secs(3600)).build().await.unwrap();
    assert_eq!(began.elapsed(), secs(0));
}
