//! The recorder of a policy file: its own, or the recorder of the layer.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::metrics::{MetricsRecorder, Shielded};

pub(super) struct Recorder {
    is_own: bool,
    recorder: ArcSwapOption<Shielded>,
}

impl Recorder {
    pub(super) fn new(own: Option<Arc<dyn MetricsRecorder>>) -> Self {
        Self {
            is_own: own.is_some(),
            recorder: ArcSwapOption::new(own.map(|own| Arc::new(Shielded::new(own)))),
        }
    }

    pub(super) fn inherit(&self, recorder: &Arc<dyn MetricsRecorder>) {
        if !self.is_own {
            let recorder = Arc::new(Shielded::new(recorder.clone()));
            self.recorder.store(Some(recorder));
        }
    }

    fn with(&self, record: impl FnOnce(&Shielded)) {
        if let Some(recorder) = &*self.recorder.load() {
            record(recorder);
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
