//! The state of a source of access tokens, for operators.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::token::{AudienceSnapshot, FetchSvidError, SvidCache, SvidCacheStats};

/// The state of [`AccessTokens`](super::AccessTokens) at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AccessTokensState {
    /// The token endpoint, without its query.
    pub token_endpoint: Box<str>,
    /// The number of exchanges that ended.
    pub exchanges: u64,
    /// The number of them without an access token.
    pub failures: u64,
    /// The error of the last exchange. `None` if it succeeded.
    pub last_error: Option<FetchSvidError>,
    /// The time since an exchange last succeeded.
    pub last_success: Option<Duration>,
    /// The counts of the cache, with the state of its breaker.
    pub cache: SvidCacheStats,
    /// The access tokens in the cache, in no particular order.
    pub tokens: Vec<AudienceSnapshot>,
}

/// The results of exchanges so far.
#[derive(Default)]
pub(super) struct History(Mutex<Past>);

#[derive(Default)]
struct Past {
    exchanges: u64,
    failures: u64,
    last_error: Option<FetchSvidError>,
    last_success: Option<Duration>,
}

impl History {
    /// Records an exchange that ended at this time on the monotonic clock.
    pub(super) fn ended(&self, error: Option<FetchSvidError>, at: Duration) {
        let mut past = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        past.exchanges += 1;
        match error {
            Some(error) => {
                past.failures += 1;
                past.last_error = Some(error);
            }
            None => {
                past.last_error = None;
                past.last_success = Some(at);
            }
        }
    }

    pub(super) fn state(
        &self,
        token_endpoint: Box<str>,
        cache: &SvidCache,
        now: Duration,
    ) -> AccessTokensState {
        let (stats, tokens) = (cache.stats(), cache.snapshot());
        let past = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        AccessTokensState {
            token_endpoint,
            exchanges: past.exchanges,
            failures: past.failures,
            last_error: past.last_error.clone(),
            last_success: past.last_success.map(|at| now.saturating_sub(at)),
            cache: stats,
            tokens,
        }
    }
}
