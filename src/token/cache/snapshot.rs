//! What operators look at.

use std::time::Duration;

use super::entry::Entry;
use super::error::TokenError;
use super::moment::Moment;
use super::token::Stage;
use crate::identity::SpiffeId;
use crate::token::SvidRequest;

/// Where an audience's token is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenState {
    /// There is none yet.
    Empty,
    /// It is sent without another thought.
    Fresh,
    /// It is sent, and the next request has it refreshed.
    Due,
    /// It is near its end, a service rejected it, or its signing key was removed: requests wait a
    /// little for the next one.
    Critical,
    /// It is not sent any more.
    Expired,
}

/// One audience of a [`SvidCache`](super::SvidCache), as it was when it was looked at.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AudienceSnapshot {
    /// What is asked for.
    pub request: SvidRequest,
    /// Where its token is in its life.
    pub state: TokenState,
    /// Whom the token names.
    pub spiffe_id: Option<SpiffeId>,
    /// The key that signed it.
    pub key_id: Option<String>,
    /// How long until it expires.
    pub expires_in: Option<Duration>,
    /// How long until it is to be refreshed; zero where it is already.
    pub refresh_in: Option<Duration>,
    /// Whether a fetch is under way.
    pub fetching: bool,
    /// Why the last fetch failed; `None` where it did not.
    pub last_error: Option<TokenError>,
    /// How long until the issuer may be asked again, after a failure or an unchanged token.
    pub next_try_in: Option<Duration>,
    /// Whether a layer was made for it, or it is kept warm, so that it is never evicted.
    pub pinned: bool,
    /// Tokens that it had.
    pub generation: u64,
    /// Fetches that ended.
    pub fetches: u64,
    /// Of them, those that failed.
    pub failures: u64,
    /// Of them, those that brought the token that was there already.
    pub unchanged: u64,
}

impl AudienceSnapshot {
    pub(crate) fn of(entry: &Entry, now: Moment) -> Self {
        let gate = entry.gate();
        let token = entry.token.load();
        let token = token.as_deref();
        let stage = token.map(|token| entry.stage(token, now));
        let usable = stage.is_some_and(|stage| stage != Stage::Expired);
        let next = gate.pace.next(usable);
        Self {
            request: entry.request.clone(),
            state: match stage {
                None => TokenState::Empty,
                Some(Stage::Fresh) => TokenState::Fresh,
                Some(Stage::Due) => TokenState::Due,
                Some(Stage::Critical) => TokenState::Critical,
                Some(Stage::Expired) => TokenState::Expired,
            },
            spiffe_id: token.map(|token| token.svid.spiffe_id().clone()),
            key_id: token.and_then(|token| token.svid.key_id().map(str::to_owned)),
            expires_in: token.map(|token| token.expires_in(now)),
            refresh_in: token.map(|token| entry.due(token).until(now)),
            fetching: gate.flight.is_some(),
            last_error: gate.last_error().cloned(),
            next_try_in: (next > now.mono()).then(|| Duration::from_nanos(next - now.mono())),
            pinned: entry.pins.load(std::sync::atomic::Ordering::Relaxed) > 0,
            generation: token.map_or(0, |token| token.generation),
            fetches: gate.counts.fetches.into(),
            failures: gate.counts.failures.into(),
            unchanged: gate.counts.unchanged.into(),
        }
    }
}
