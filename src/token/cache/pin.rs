//! A handle on one audience, and what it gives out.

use std::any::Any;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use http::HeaderValue;

use super::Core;
use super::context::Context;
use super::entry::{Entry, Resolved};
use super::error::TokenError;
use super::hot;
use super::token::Token;
use super::wait::Waiter;
use crate::token::{JwtSvid, SvidRequest};

/// The token of one audience, without a look-up. Clones are the same handle.
#[derive(Clone)]
pub struct PinnedSvid {
    pin: Arc<Pin>,
}

struct Pin {
    entry: Arc<Entry>,
    core: Weak<Core>,
    _alive: Option<Arc<dyn Any + Send + Sync>>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let last = self.entry.pins.fetch_sub(1, Ordering::Relaxed) == 1;
        if last && let Some(core) = self.core.upgrade() {
            core.table.unpinned(&self.entry);
        }
    }
}

impl PinnedSvid {
    /// Takes over a pin that was counted already.
    pub(super) fn new(
        entry: Arc<Entry>,
        core: Weak<Core>,
        alive: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Self {
        Self {
            pin: Arc::new(Pin {
                entry,
                core,
                _alive: alive,
            }),
        }
    }

    /// What is asked for.
    pub fn request(&self) -> &SvidRequest {
        &self.pin.entry.request
    }

    /// The token: the cached one, or the one that a fetch brings.
    ///
    /// # Errors
    /// A [`TokenError`] where there is nothing to send, and none came in time.
    pub async fn get(&self) -> Result<JwtSvid, TokenError> {
        Ok(self.issue()?.settle().await?.svid())
    }

    /// The token as the value of an `authorization` header: `Bearer …`, marked sensitive.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn header(&self) -> Result<HeaderValue, TokenError> {
        Ok(self.issue()?.settle().await?.header())
    }

    /// The header that can be sent at once; `None` where there is none, and then a fetch begins.
    /// Never waits.
    pub fn try_header(&self) -> Option<HeaderValue> {
        self.issue().ok()?.at_once().map(|issued| issued.header())
    }

    #[inline]
    pub(crate) fn issue(&self) -> Result<Issue, TokenError> {
        let entry = &self.pin.entry;
        // A pinned entry is not evicted, so there is nothing to look up anew.
        issue(entry).unwrap_or_else(|| Err(TokenError::closed()))
    }

    pub(crate) fn entry(&self) -> &Arc<Entry> {
        &self.pin.entry
    }
}

impl fmt::Debug for PinnedSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedSvid")
            .field("request", self.request())
            .finish_non_exhaustive()
    }
}

/// A token, or the wait for one.
pub(crate) enum Issue {
    Ready(Issued),
    Wait(Waiter),
}

/// A token that goes out with one request.
pub(crate) struct Issued(Arc<Token>);

impl Issue {
    pub(crate) async fn settle(self) -> Result<Issued, TokenError> {
        match self {
            Self::Ready(issued) => Ok(issued),
            Self::Wait(waiter) => waiter.token().await.map(Issued),
        }
    }

    /// What can be sent without waiting.
    pub(crate) fn at_once(self) -> Option<Issued> {
        match self {
            Self::Ready(issued) => Some(issued),
            Self::Wait(waiter) => waiter.at_once().map(Issued),
        }
    }
}

impl Issued {
    #[inline]
    pub(crate) fn header(&self) -> HeaderValue {
        self.0.header.clone()
    }

    pub(crate) fn svid(&self) -> JwtSvid {
        self.0.svid.clone()
    }

    /// Whether it may still be sent.
    pub(crate) fn is_usable(&self) -> bool {
        // Without its entry there is nobody to tell the time: another is asked for.
        let entry = self.0.entry.upgrade();
        entry.is_some_and(|entry| self.0.usable(entry.cx.moment()))
    }

    /// A service refused it.
    pub(crate) fn refused(&self) {
        if let Some(entry) = self.0.entry.upgrade() {
            refused(&entry, self.0.generation);
        }
    }
}

/// Asks an entry; `None` where it was evicted.
#[inline]
pub(crate) fn issue(entry: &Arc<Entry>) -> Option<Result<Issue, TokenError>> {
    let cx = &*entry.cx;
    if cx.is_closed() {
        return Some(Err(missed(cx, TokenError::closed())));
    }
    let now = cx.moment();
    entry.touch(now);
    if let Some(token) = hot::fresh(entry, now, Arc::clone) {
        cx.hit();
        return Some(Ok(Issue::Ready(Issued(token))));
    }
    match entry.resolve(now) {
        Resolved::Token(token) => {
            cx.hit();
            Some(Ok(Issue::Ready(Issued(token))))
        }
        Resolved::Wait(waiter) => {
            cx.missed();
            Some(Ok(Issue::Wait(waiter)))
        }
        Resolved::Fail(error) => Some(Err(missed(cx, error))),
        Resolved::Retired => None,
    }
}

fn missed(cx: &Context, error: TokenError) -> TokenError {
    cx.missed();
    cx.no_token();
    error
}

pub(crate) fn refused(entry: &Entry, generation: u64) -> bool {
    let now = entry.cx.moment();
    let due = entry.reject(generation, now);
    if due {
        entry.cx.refused();
        entry.cx.nudge.notify_waiters();
    }
    due
}
