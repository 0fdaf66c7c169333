//! The contract of `BundleSource`: default methods, and forwarding by `Arc`.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tower_spiffe::bundle::{BundleAnswer, BundleSource, BundlesUnavailable, FixedBundles};
use tower_spiffe::metrics::{MetricsRecorder, Verification};
use tower_spiffe::verify::Validator;

use crate::signer::{AUDIENCE, claims};
use crate::support::{es256, keys_of};

type Change = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Only the required methods.
struct Minimal(Result<u64, BundlesUnavailable>);

impl BundleSource for Minimal {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.0
    }

    fn bundle(&self, _: &str) -> BundleAnswer {
        BundleAnswer::UnknownTrustDomain
    }
}

/// All methods, with results unlike the defaults.
struct Complete {
    revision: Result<u64, BundlesUnavailable>,
    recorder: Arc<Recorder>,
    unknown: Mutex<Vec<String>>,
}

impl BundleSource for Complete {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.revision
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        match trust_domain {
            "stale" => BundleAnswer::Unavailable(BundlesUnavailable::Stale),
            _ => FixedBundles::new(keys_of(&[&es256()])).bundle(trust_domain),
        }
    }

    fn is_healthy(&self) -> bool {
        self.revision.is_err()
    }

    fn changed_since(&self, seen: u64) -> Option<Change> {
        (seen == 7).then(|| Box::pin(std::future::ready(())) as Change)
    }

    fn metrics(&self) -> Option<Arc<dyn MetricsRecorder>> {
        Some(self.recorder.clone())
    }

    fn unknown_key(&self, trust_domain: &str, key_id: &str) {
        let mut unknown = self.unknown.lock().unwrap();
        unknown.push(format!("{trust_domain} {key_id}"));
    }
}

#[derive(Default)]
struct Recorder {
    verdicts: AtomicU64,
    last: Mutex<String>,
}

impl MetricsRecorder for Recorder {
    fn record_verification(&self, verification: &Verification<'_>) {
        self.verdicts.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap() = format!("{verification:?}");
    }
}

fn complete(revision: Result<u64, BundlesUnavailable>) -> Arc<Complete> {
    Arc::new(Complete {
        revision,
        recorder: Arc::default(),
        unknown: Mutex::default(),
    })
}

#[test]
fn minimal_source_is_healthy_if_it_has_bundles() {
    assert!(Minimal(Ok(0)).is_healthy());
    assert!(!Minimal(Err(BundlesUnavailable::NotReady)).is_healthy());
    assert!(Minimal(Ok(0)).changed_since(0).is_none());
    assert!(Minimal(Ok(0)).metrics().is_none());
}

#[test]
fn arc_of_a_source_forwards_every_method() {
    let why = BundlesUnavailable::Stale;
    let shared: Arc<dyn BundleSource> = complete(Ok(7));
    assert_eq!(BundleSource::revision(&shared), Ok(7));
    assert!(!BundleSource::is_healthy(&shared));
    let unwell: Arc<dyn BundleSource> = complete(Err(why));
    assert_eq!(BundleSource::revision(&unwell), Err(why));
    assert!(BundleSource::is_healthy(&unwell));
    assert!(matches!(
        BundleSource::bundle(&shared, "stale"),
        BundleAnswer::Unavailable(BundlesUnavailable::Stale)
    ));
    assert!(matches!(
        BundleSource::bundle(&shared, "td.test"),
        BundleAnswer::Ready(_)
    ));
    assert!(BundleSource::changed_since(&shared, 7).is_some());
    assert!(BundleSource::changed_since(&shared, 8).is_none());
    assert!(BundleSource::metrics(&shared).is_some());
}

#[test]
fn unknown_keys_and_results_are_recorded() {
    let source = complete(Ok(7));
    let validator = Validator::builder(source.clone()).audience(AUDIENCE);
    let clock = crate::support::HandClock::at(crate::signer::NOW);
    let validator = validator.clock(clock).build().unwrap();
    let signer = es256().with_key_id("missing");
    let error = validator.validate(&signer.sign(&claims())).unwrap_err();
    assert_eq!(error.key_id(), Some("missing"));
    assert_eq!(*source.unknown.lock().unwrap(), ["td.test missing"]);
    assert_eq!(source.recorder.verdicts.load(Ordering::Relaxed), 1);
    // The reason for unavailable bundles is recorded too.
    let source = complete(Err(BundlesUnavailable::Withdrawn));
    let clock = crate::support::HandClock::at(crate::signer::NOW);
    let validator = Validator::builder(source.clone()).audience(AUDIENCE);
    let validator = validator.clock(clock).build().unwrap();
    validator.validate(&es256().token()).unwrap_err();
    assert!(source.recorder.last.lock().unwrap().contains("withdrawn"));
}

#[test]
fn reasons_have_a_label_and_a_sentence() {
    for (why, word, sentence) in [
        (BundlesUnavailable::NotReady, "not-ready", "no bundles"),
        (BundlesUnavailable::Withdrawn, "withdrawn", "withdrew"),
        (BundlesUnavailable::Stale, "stale", "older than allowed"),
        (BundlesUnavailable::Closed, "closed", "shut down"),
    ] {
        assert_eq!(why.as_str(), word);
        assert!(why.to_string().contains(sentence), "{why}");
    }
}

#[test]
fn fixed_bundles_do_not_change() {
    let set = keys_of(&[&es256()]);
    assert_eq!(set.len(), 1);
    let fixed = FixedBundles::new(set.clone());
    assert_eq!(fixed.bundle_set().len(), 1);
    assert_eq!(*fixed.bundle_set(), set);
}
