//! A bundle source that a test changes.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tower_spiffe::bundle::{
    BundleAnswer, BundleSource, BundlesUnavailable, JwtBundle, JwtBundleSet,
};

/// The bundles of a source, or why it has none.
pub type Answer = Result<JwtBundleSet, BundlesUnavailable>;

/// Bundles that a test changes. Clones share the same bundles.
#[derive(Clone)]
pub struct Bundles(Arc<Inner>);

struct Inner {
    answer: Mutex<Answer>,
    revision: watch::Sender<u64>,
    waits: AtomicU64,
}

impl Bundles {
    pub fn new(set: JwtBundleSet) -> Self {
        Self(Arc::new(Inner {
            answer: Mutex::new(Ok(set)),
            revision: watch::Sender::new(0),
            waits: AtomicU64::new(0),
        }))
    }

    pub fn of(bundles: impl IntoIterator<Item = JwtBundle>) -> Self {
        Self::new(bundles.into_iter().collect())
    }

    pub fn set(&self, bundles: impl IntoIterator<Item = JwtBundle>) {
        self.answer(Ok(bundles.into_iter().collect()));
    }

    pub fn bundles_unavailable(&self, why: BundlesUnavailable) {
        self.answer(Err(why));
    }

    /// Changes the answer, then raises the revision.
    pub fn answer(&self, answer: Answer) {
        *self.0.answer.lock().unwrap() = answer;
        self.0.revision.send_modify(|revision| *revision += 1);
    }

    /// Returns how often a validator began to wait for a change.
    pub fn waits(&self) -> u64 {
        self.0.waits.load(Ordering::SeqCst)
    }
}

impl BundleSource for Bundles {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        match &*self.0.answer.lock().unwrap() {
            Ok(_) => Ok(*self.0.revision.borrow()),
            Err(why) => Err(*why),
        }
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        match &*self.0.answer.lock().unwrap() {
            Ok(set) => match set.get(trust_domain) {
                Some(bundle) => BundleAnswer::Ready(bundle.clone()),
                None => BundleAnswer::UnknownTrustDomain,
            },
            Err(why) => BundleAnswer::Unavailable(*why),
        }
    }

    fn changed_since(&self, seen: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        self.0.waits.fetch_add(1, Ordering::SeqCst);
        let mut revision = self.0.revision.subscribe();
        Some(Box::pin(async move {
            let _ = revision.wait_for(|now| *now != seen).await;
        }))
    }
}
