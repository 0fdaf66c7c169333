//! The recorder of a policy file: its own, or the recorder of the layer.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::metrics::{MetricsRecorder, Shielded};

pub(super) struct Recorder {
    own: Option<Shielded>,
    inherited: ArcSwapOption<Shielded>,
}

impl Recorder {
    pub(super) fn new(own: Option<Arc<dyn MetricsRecorder>>) -> Self {
        Self {
            own: own.map(Shielded::new),
            inherited: ArcSwapOption::empty(),
        }
    }

    pub(super) fn inherit(&self, recorder: &Arc<dyn MetricsRecorder>) {
        if self.own.is_none() {
            let recorder = Arc::new(Shielded::new(recorder.clone()));
            self.inherited.store(Some(recorder));
        }
    }

    fn with(&self, record: impl FnOnce(&Shielded)) {
        match &self.own {
            Some(own) => record(own),
            None => {
                if let Some(inherited) = &*self.inherited.load() {
                    record(inherited);
                }
            }
        }
    }
}

impl MetricsRecorder for Recorder {
    fn record_error(&self, kind: &'static str) {
        self.with(|recorder| recorder.record_error(kind));
    }

    fn record_dry_run_denial(&self, outcome: &'static str) {
        self.with(|recorder| recorder.record_dry_run_denial(outcome));
    }
}
