//! A request that waits for a fetch, and no longer than it should.

use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::error::{TokenError, TokenErrorReason};
use super::flight::Outcome;
use super::token::Token;

/// Waits for a flight until it ends or the wait does; then takes the newest token there is.
pub(crate) struct Waiter {
    entry: Arc<Entry>,
    outcome: Outcome,
    wait: Duration,
}

impl Waiter {
    pub(crate) fn new(entry: Arc<Entry>, outcome: Outcome) -> Self {
        let wait = entry.cx.settings.max_wait;
        Self {
            entry,
            outcome,
            wait,
        }
    }

    /// Waits no longer than this many nanoseconds.
    pub(crate) fn until(self, nanos: u64) -> Self {
        Self {
            wait: Duration::from_nanos(nanos),
            ..self
        }
    }

    /// What may be sent without waiting.
    pub(crate) fn at_once(self) -> Option<Arc<Token>> {
        self.entry.usable(self.entry.cx.moment())
    }

    pub(crate) async fn token(self) -> Result<Arc<Token>, TokenError> {
        let ended = tokio::time::timeout(self.wait, self.outcome).await;
        let now = self.entry.cx.moment();
        if let Ok(Ok(token)) = &ended
            && token.usable(now)
        {
            return Ok(token.clone());
        }
        if self.entry.cx.is_closed() {
            return Err(TokenError::closed());
        }
        // An error, or no answer yet: never a reason not to send what may still be sent.
        if let Some(token) = self.entry.usable(now) {
            return Ok(token);
        }
        match ended {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) => Err(TokenError::for_request(
                TokenErrorReason::ClockSkew,
                &self.entry.request,
                "the token that came has expired already",
            )),
            Err(_) => Err(TokenError::for_request(
                TokenErrorReason::Timeout,
                &self.entry.request,
                format_args!(
                    "the issuer did not answer within {:.1} s",
                    self.wait.as_secs_f64()
                ),
            )),
        }
    }
}
