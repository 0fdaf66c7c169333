//! Announcements of newer tokens by a fetcher.

use std::sync::{Arc, Weak};

use super::{Core, SvidCache};
use crate::token::JwtSvid;

/// Where a fetcher announces newer tokens. It does not keep the cache alive.
pub(crate) struct Successors(Weak<Core>);

impl SvidCache {
    pub(crate) fn successors(&self) -> Successors {
        Successors(Arc::downgrade(&self.core))
    }
}

impl Successors {
    pub(crate) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Announces that a fetch would return `newer`: other tokens for the same audiences are due.
    pub(crate) fn announce(&self, newer: &JwtSvid) {
        let Some(core) = self.0.upgrade() else {
            return;
        };
        let now = core.cx.moment();
        for entry in core.table.all() {
            if entry.request.has_audiences_of(newer) {
                entry.succeeded(|token| token.svid.token() != newer.token(), now);
            }
        }
        core.cx.nudge.notify_waiters();
    }
}
