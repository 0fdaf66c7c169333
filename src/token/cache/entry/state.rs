//! The state behind the lock of an entry: the fetch in progress, the retry delay, the counts.

use std::sync::Arc;

use tokio::sync::Notify;

use super::super::error::TokenError;
use super::super::flight::Flight;
use super::super::moment::Moment;
use super::super::settings::Settings;
use super::super::single_use::Sent;
use crate::token::{FetchSvidError, FetchSvidReason};

/// Used only to start or end a fetch.
#[derive(Default)]
pub(crate) struct EntryState {
    pub(crate) flight: Option<Box<Flight>>,
    pub(in crate::token::cache) flights: u64,
    pub(in crate::token::cache) generation: u64,
    pub(crate) pace: Paced,
    /// Boxed, because most audiences never need it.
    pub(in crate::token::cache) rare: Option<Box<Rare>>,
    /// The logged classes of failures, one bit each.
    pub(crate) warned: u16,
    /// Whether its refreshes return no newer token, or are slow.
    pub(crate) stalled: bool,
    /// Keys were removed during the fetch in progress: one of them may have signed its token.
    pub(in crate::token::cache) doubtful: bool,
    /// The entry was evicted: a request that still holds it looks it up again.
    pub(in crate::token::cache) retired: bool,
    pub(crate) counts: Counts,
}

#[derive(Default)]
pub(in crate::token::cache) struct Rare {
    pub(in crate::token::cache) last_error: Option<TokenError>,
    pub(in crate::token::cache) rejected_at: Option<u64>,
    /// When a token without requests is due because the key that signed it was removed.
    pub(in crate::token::cache) removed_at: Option<u64>,
    /// When the first request arrived after the key of the token was removed.
    pub(in crate::token::cache) asked_at: Option<u64>,
    /// When the first call without a response began; `None` after a response.
    pub(in crate::token::cache) silent_since: Option<u64>,
    /// Flights up to this number began before the token was rejected or its key was removed, so
    /// their token does not count as a replacement.
    pub(in crate::token::cache) asked_before: u64,
    /// Wakes the waiters for a newer token.
    pub(in crate::token::cache) news: Option<Arc<Notify>>,
    /// Single-use tokens that were sent.
    pub(in crate::token::cache) sent: Option<Box<Sent>>,
}

/// When the next call to the issuer is allowed.
#[derive(Default)]
pub(crate) struct Paced {
    pub(in crate::token::cache) failures: u32,
    unchanged: u32,
    pub(in crate::token::cache) with_token: u64,
    without_token: u64,
}

#[derive(Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) fetches: u32,
    pub(crate) failures: u32,
    pub(crate) unchanged: u32,
}

/// Adds one; saturates.
pub(in crate::token::cache) fn count(counter: &mut u32) {
    *counter = counter.saturating_add(1);
}

impl EntryState {
    pub(in crate::token::cache) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub(in crate::token::cache) fn news(&self) -> Option<Arc<Notify>> {
        self.rare.as_ref()?.news.clone()
    }

    pub(in crate::token::cache) fn silent_since(&self) -> Option<u64> {
        self.rare.as_ref()?.silent_since
    }

    pub(crate) fn last_error(&self) -> Option<&TokenError> {
        self.rare.as_ref()?.last_error.as_ref()
    }
}

impl Paced {
    /// No call starts before this.
    pub(crate) fn next(&self, usable: bool) -> u64 {
        if usable {
            self.with_token
        } else {
            self.without_token
        }
    }

    pub(in crate::token::cache) fn failed(
        &mut self,
        settings: &Settings,
        error: &FetchSvidError,
        now: Moment,
    ) {
        self.failures = self.failures.saturating_add(1);
        let (with, without) = match error.reason() {
            FetchSvidReason::InvalidRequest => (settings.invalid, settings.invalid),
            FetchSvidReason::Denied => (
                settings.with_token.after(self.failures),
                settings.denied.after(self.failures),
            ),
            _ => (
                settings.with_token.after(self.failures),
                settings.without_token.after(self.failures),
            ),
        };
        // A response may request a longer delay, up to the longest delay of the cache.
        let asked = error.retry_after().unwrap_or_default();
        let asked = asked.min(settings.invalid);
        self.with_token = now.plus(with.max(asked)).mono();
        self.without_token = now.plus(without.max(asked)).mono();
    }

    pub(in crate::token::cache) fn unchanged(&mut self, settings: &Settings, now: Moment) {
        self.unchanged = self.unchanged.saturating_add(1);
        self.with_token = now.plus(settings.unchanged.after(self.unchanged)).mono();
        // After the token has expired, the next call is allowed at once.
        self.without_token = 0;
    }
}
