//! What an entry keeps behind its lock: the fetch under way, the pace, the counts.

use super::error::TokenError;
use super::flight::Flight;
use super::moment::Moment;
use super::settings::Settings;
use crate::token::FetchSvidReason;

/// What only those look at who would start a fetch, or end one.
#[derive(Default)]
pub(crate) struct Gate {
    pub(crate) flight: Option<Box<Flight>>,
    pub(super) flights: u64,
    pub(super) generation: u64,
    pub(crate) pace: Paced,
    /// What most audiences never need.
    pub(super) rare: Option<Box<Rare>>,
    /// The classes of failure already warned of, one bit each.
    pub(crate) warned: u16,
    /// Its refreshes bring no newer token, or are slow.
    pub(super) stalled: bool,
    /// Keys went while the fetch is under way: one of them may have signed what it brings.
    pub(super) doubtful: bool,
    /// Evicted: whoever still holds it must look again.
    pub(super) retired: bool,
    pub(crate) counts: Counts,
}

#[derive(Default)]
pub(super) struct Rare {
    pub(super) last_error: Option<TokenError>,
    pub(super) rejected_at: Option<u64>,
    /// From when on the token is due because the key that signed it was removed, even if no request
    /// asks for it.
    pub(super) gone_at: Option<u64>,
    /// When the first request asked for the token after its key was removed.
    pub(super) asked_at: Option<u64>,
    /// When the first of the calls began that were not answered; none once one is.
    pub(super) silent_since: Option<u64>,
    /// Flights up to this one began before the token was refused or its key removed: they are no
    /// answer to that.
    pub(super) asked_before: u64,
}

/// When to ask again.
#[derive(Default)]
pub(crate) struct Paced {
    pub(super) failures: u32,
    unchanged: u32,
    pub(super) with_token: u64,
    without_token: u64,
}

#[derive(Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) fetches: u32,
    pub(crate) failures: u32,
    pub(crate) unchanged: u32,
}

/// One more; there is nobody left to whom it would matter where that ends.
pub(super) fn count(counter: &mut u32) {
    *counter = counter.saturating_add(1);
}

impl Gate {
    pub(super) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub(super) fn silent_since(&self) -> Option<u64> {
        self.rare.as_ref()?.silent_since
    }

    pub(crate) fn last_error(&self) -> Option<&TokenError> {
        self.rare.as_ref()?.last_error.as_ref()
    }
}

impl Paced {
    /// Before this, nobody asks.
    pub(crate) fn next(&self, usable: bool) -> u64 {
        if usable {
            self.with_token
        } else {
            self.without_token
        }
    }

    pub(super) fn failed(&mut self, settings: &Settings, reason: FetchSvidReason, now: Moment) {
        self.failures = self.failures.saturating_add(1);
        let (with, without) = match reason {
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
        self.with_token = now.plus(with).mono();
        self.without_token = now.plus(without).mono();
    }

    pub(super) fn unchanged(&mut self, settings: &Settings, now: Moment) {
        self.unchanged = self.unchanged.saturating_add(1);
        self.with_token = now.plus(settings.unchanged.after(self.unchanged)).mono();
        // Once it is expired, the issuer is asked at once.
        self.without_token = 0;
    }
}
