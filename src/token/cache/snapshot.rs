//! The state of the cache for operators.

use std::time::Duration;

use super::entry::Entry;
use super::error::TokenError;
use super::moment::Moment;
use crate::identity::SpiffeId;
use crate::token::SvidRequest;

/// The stage of an audience's token in its lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenState {
    /// There is no token yet.
    Empty,
    /// It is sent.
    Fresh,
    /// It is sent, and the next request starts a refresh.
    Due,
    /// It is about to expire, a service rejected it, or its signing key was removed: requests wait
    /// briefly for the next one.
    Critical,
    /// It is no longer sent.
    Expired,
}

/// The state of one audience of a [`SvidCache`](super::SvidCache) at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AudienceSnapshot {
    /// The request of the token.
    pub request: SvidRequest,
    /// The stage of its token.
    pub state: TokenState,
    /// The `sub` of the token.
    pub spiffe_id: Option<SpiffeId>,
    /// The key that signed it.
    pub key_id: Option<String>,
    /// The time until it expires.
    pub expires_in: Option<Duration>,
    /// The time until it is due for a refresh; zero if it is due.
    pub refresh_in: Option<Duration>,
    /// Whether a fetch is in progress.
    pub fetching: bool,
    /// The error of the last fetch. `None` if it succeeded.
    pub last_error: Option<TokenError>,
    /// The time until the next call to the issuer is allowed, after a failure or an unchanged
    /// token.
    pub next_try_in: Option<Duration>,
    /// Whether a layer uses it or it is kept warm, so that it is never evicted.
    pub pinned: bool,
    /// The number of tokens received so far.
    pub generation: u64,
    /// The number of fetches that ended.
    pub fetches: u64,
    /// The number of these fetches that failed.
    pub failures: u64,
    /// The number of these fetches that returned the token that the cache already had.
    pub unchanged: u64,
}

impl AudienceSnapshot {
    pub(crate) fn of(entry: &Entry, now: Moment) -> Self {
        let state = entry.state();
        let token = entry.token.load();
        let token = token.as_deref();
        let next = state
            .pace
            .next(token.is_some_and(|token| token.usable(now)));
        Self {
            request: entry.request.clone(),
            state: token.map_or(TokenState::Empty, |token| entry.stage(token, now)),
            spiffe_id: token.map(|token| token.svid.spiffe_id().clone()),
            key_id: token.and_then(|token| token.svid.key_id().map(str::to_owned)),
            expires_in: token.map(|token| token.expires_in(now)),
            refresh_in: token.map(|token| entry.due(token).until(now)),
            fetching: state.flight.is_some(),
            last_error: state.last_error().cloned(),
            next_try_in: (next > now.mono()).then(|| Duration::from_nanos(next - now.mono())),
            pinned: entry.pins.load(std::sync::atomic::Ordering::Relaxed) > 0,
            generation: token.map_or(0, |token| token.generation),
            fetches: state.counts.fetches.into(),
            failures: state.counts.failures.into(),
            unchanged: state.counts.unchanged.into(),
        }
    }
}
