//! Which identity has a hint, by the last response of the agent.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::identity::SpiffeId;

/// `FetchJWTSVID` has no field for a hint, so a request by hint fetches a token for every identity of
/// the workload. Once a hint is resolved, its tokens are requested by SPIFFE ID.
#[derive(Default)]
pub(crate) struct Hints(Mutex<HashMap<Box<str>, SpiffeId>>);

impl Hints {
    /// A workload has few; beyond this number, all are resolved again.
    const MAX: usize = 256;

    pub(crate) fn get(&self, hint: &str) -> Option<SpiffeId> {
        self.known().get(hint).cloned()
    }

    pub(crate) fn learn(&self, hint: &str, id: &SpiffeId) {
        let mut known = self.known();
        if known.len() >= Self::MAX && !known.contains_key(hint) {
            known.clear();
        }
        known.insert(hint.into(), id.clone());
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Box<str>, SpiffeId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
