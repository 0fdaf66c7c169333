//! The cached decisions.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;

use crate::clock::{Clock, UnixTime};
use crate::identity::SpiffeId;
use crate::server::async_policy::AsyncDecision;
use crate::verify::VerifiedSvid;

pub(super) struct Decisions {
    entries: Cache<Key, Entry>,
    ttl: Duration,
    clock: Arc<dyn Clock>,
}

/// The caller, and the policy's cache key.
pub(super) type Key = (Option<SpiffeId>, String);

#[derive(Clone)]
struct Entry {
    decision: AsyncDecision,
    /// The end of the entry, on the monotonic clock.
    until: Duration,
    /// The expiry of the token that the decision was made for.
    expires_at: UnixTime,
}

impl Decisions {
    pub(super) fn new(capacity: usize, ttl: Duration, clock: Arc<dyn Clock>) -> Self {
        Self {
            entries: Cache::new(capacity),
            ttl,
            clock,
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<AsyncDecision> {
        let entry = self.entries.get(key)?;
        let (now, monotonic) = self.clock.both();
        let is_good = monotonic < entry.until && now < entry.expires_at;
        is_good.then_some(entry.decision)
    }

    pub(super) fn insert(&self, key: Key, caller: Option<&VerifiedSvid>, decision: &AsyncDecision) {
        let entry = Entry {
            decision: decision.clone(),
            until: self.clock.monotonic().saturating_add(self.ttl),
            expires_at: caller.map_or(UnixTime::MAX, VerifiedSvid::expires_at),
        };
        self.entries.insert(key, entry);
    }
}
