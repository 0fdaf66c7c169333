//! Single-use tokens.
//!
//! Each request has its own entry outside the table, so that its fetch has the same deadlines,
//! limits and breaker as any other. The entry in the table never has a token. It stores the retry
//! delay after failures, the state of the log, and the tokens that were sent.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use super::entry::{Entry, Resolved};
use super::entry::{Paced, count};
use super::moment::Moment;
use super::token::Token;
use crate::token::{FetchSvidError, FetchSvidReason};

/// The number of sent tokens that are remembered for each audience.
const MOST_REMEMBERED: usize = 64 * 1024;

/// The tokens that were sent, by a hash with a key of this process.
#[derive(Default)]
pub(super) struct Sent {
    hasher: RandomState,
    hashes: HashSet<u64>,
    /// In order of arrival, with their expiry on the monotonic clock.
    order: VecDeque<(u64, u64)>,
}

impl Sent {
    /// Whether this token was not seen before.
    fn is_new(&mut self, token: &Token, now: Moment) -> bool {
        let has_ended = |end: u64| now.mono() >= end;
        while let Some((hash, end)) = self.order.front()
            && (has_ended(*end) || self.order.len() >= MOST_REMEMBERED)
        {
            self.hashes.remove(hash);
            self.order.pop_front();
        }
        let hash = self.hasher.hash_one(token.header.as_bytes());
        if !self.hashes.insert(hash) {
            return false;
        }
        let end = now.plus(token.expires_in(now)).mono();
        self.order.push_back((hash, end));
        true
    }
}

/// Starts a fetch for one request.
pub(super) fn fetch(shared: &Arc<Entry>, now: Moment) -> Resolved {
    let not_now = {
        let gate = shared.state();
        let next = gate.pace.next(false);
        let error = gate.last_error().filter(|_| now.mono() < next);
        error.map(|error| error.clone().retry_in(next - now.mono()))
    };
    if let Some(error) = not_now {
        return Resolved::Fail(error);
    }
    // Entries of the table have IDs from 1.
    let mut own = Entry::new(0, shared.request.clone(), shared.cx.clone(), now);
    own.shared = Some(shared.clone());
    Arc::new(own).resolve(now)
}

impl Entry {
    /// Takes a token for one request: it must not have been sent before.
    pub(super) fn spend(&self, token: &Token, now: Moment) -> Result<(), FetchSvidError> {
        let mut state = self.state();
        if !state.rare().sent.get_or_insert_default().is_new(token, now) {
            return Err(FetchSvidError::new(
                FetchSvidReason::Unacceptable,
                "the issuer returned the same token twice for a single-use audience; set \
                 `jwt_svid_include_jti` on the registration entry, so that the agent does not cache it",
            ));
        }
        count(&mut state.counts.fetches);
        state.pace = Paced::default();
        state.rare().last_error = None;
        state.warned = 0;
        Ok(())
    }
}
