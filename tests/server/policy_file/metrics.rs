//! The recorder of a policy file.

use std::sync::{Arc, Mutex};

use tower_spiffe::metrics::MetricsRecorder;
use tower_spiffe::server::{
    Allow, AllowCallersLayer, FilePolicy, SwapPolicy, ValidateJwtSvidLayer,
};
use tower_spiffe_test_support::temp::TempDir;

use super::web_rule;
use crate::support::World;

#[derive(Default)]
pub(super) struct Counts(Mutex<Vec<&'static str>>);

impl Counts {
    pub(super) fn count(&self, what: &str) -> usize {
        let counted = self.0.lock().unwrap();
        counted.iter().filter(|one| **one == what).count()
    }

    pub(super) fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl MetricsRecorder for Counts {
    fn record_error(&self, kind: &'static str) {
        self.0.lock().unwrap().push(kind);
    }

    fn record_dry_run_denial(&self, outcome: &'static str) {
        self.0.lock().unwrap().push(outcome);
    }
}

#[tokio::test]
async fn p04_the_layers_recorder_is_inherited() {
    let counts = Arc::new(Counts::default());
    let world = World::with(|builder| builder.metrics(counts.clone()));
    let dir = TempDir::new();
    let path = dir.join("policy.toml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    let errors = |policy: &FilePolicy| {
        write("x");
        policy.reload().unwrap_err();
        write(&web_rule("/", "['GET']"));
        policy.reload().unwrap();
    };
    let open = || {
        write(&web_rule("/", "['GET']"));
        FilePolicy::builder(&path)
    };
    let layer = |policy: Allow| ValidateJwtSvidLayer::required(world.validator.clone(), policy);

    // Through all combinators around it.
    let policy = open().open().unwrap();
    errors(&policy);
    assert!(counts.take().is_empty());
    let swapped = SwapPolicy::new(Arc::new(policy.clone()));
    let _ = layer(Allow::policy(swapped).not().not().and(Allow::anyone()));
    errors(&policy);
    assert_eq!(counts.take(), ["policy-file"]);
    let policy = open().open().unwrap();
    let _ = layer(Allow::anyone()).allow_callers(policy.clone());
    errors(&policy);
    assert_eq!(counts.take(), ["policy-file"]);

    // The layer's recorder replaces the validator's; the policy's own recorder replaces both.
    let other = Arc::new(Counts::default());
    let policy = open().open().unwrap();
    let _ = layer(Allow::policy(policy.clone())).metrics(other.clone());
    errors(&policy);
    assert_eq!((counts.take(), other.take()), (vec![], vec!["policy-file"]));
    let policy = open().open().unwrap();
    let _ = AllowCallersLayer::new(policy.clone()).metrics(other.clone());
    errors(&policy);
    assert_eq!(other.take(), ["policy-file"]);
    let policy = open().metrics(other.clone()).open().unwrap();
    let _ = layer(Allow::policy(policy.clone()));
    errors(&policy);
    assert_eq!((counts.take(), other.take()), (vec![], vec!["policy-file"]));

    // A policy that replaces another one later.
    let swapped = SwapPolicy::new(Allow::anyone());
    let _ = layer(Allow::policy(swapped.clone()));
    let policy = open().open().unwrap();
    swapped.replace(policy.clone());
    errors(&policy);
    assert_eq!(counts.take(), ["policy-file"]);
}
