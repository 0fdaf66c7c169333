//! A handle on one audience, and the tokens that it returns.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::HeaderValue;

use super::Core;
use super::entry::{Entry, Resolved};
use super::error::TokenError;
use super::hot;
use super::single_use;
use super::token::Token;
use super::wait::Waiter;
use crate::clock::{Clock, UnixTime};
use crate::metrics::SvidCacheEvent;
use crate::presentable::debug_fields;
use crate::token::{JwtSvid, SvidRequest};

/// A handle on the token of one audience, without a look-up. For clients that cannot use a layer:
/// drivers that request a token, and connections that authenticate again when it changes
/// ([`changed`](Self::changed), [`updates`](Self::updates)).
///
/// Clones share the token. Each clone tracks separately which token it returned last.
#[doc(alias = "subscribe")]
pub struct PinnedSvid {
    pin: Arc<Pin>,
    /// The generation of the newest token that this handle returned.
    pub(super) seen: AtomicU64,
}

impl Clone for PinnedSvid {
    fn clone(&self) -> Self {
        Self {
            pin: self.pin.clone(),
            seen: AtomicU64::new(self.seen.load(Ordering::Relaxed)),
        }
    }
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
    /// Creates the handle for a pin that is already counted.
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
            seen: AtomicU64::new(0),
        }
    }

    /// Returns the request of the token.
    pub fn request(&self) -> &SvidRequest {
        &self.pin.entry.request
    }

    /// Returns the token: the cached one, or a fetched one.
    ///
    /// # Errors
    /// Returns a [`TokenError`] if no token can be sent and none arrived in time.
    pub async fn get(&self) -> Result<JwtSvid, TokenError> {
        let issued = self.issue()?.settle().await?;
        self.has_seen(issued.token.generation);
        Ok(issued.svid())
    }

    /// Returns the token if it can be sent now; otherwise returns `None` and starts a fetch. Never
    /// waits and never blocks, so it can be used in synchronous callbacks of drivers.
    ///
    /// It starts no fetch if there is no tokio runtime, neither here nor where the cache was built.
    /// Always returns `None` for a [`single_use`](SvidRequest::single_use) request.
    pub fn try_get(&self) -> Option<JwtSvid> {
        let issued = self.at_once()?;
        self.has_seen(issued.token.generation);
        Some(issued.svid())
    }

    fn at_once(&self) -> Option<Issued> {
        if self.request().is_single_use() {
            return None;
        }
        self.issue().ok()?.at_once()
    }

    /// Returns when the current token expires, its `exp`. `None` if no token can be sent now.
    pub fn expires_at(&self) -> Option<UnixTime> {
        let token = self.current()?;
        Some(token.svid.expires_at())
    }

    /// Returns the time until the current token expires: the shorter of the times on the wall clock
    /// and on the monotonic clock. `None` if no token can be sent now.
    ///
    /// A token is not sent in the last 2 % of its lifetime, at most 2 s.
    pub fn expires_in(&self) -> Option<Duration> {
        let token = self.current()?;
        Some(token.expires_in(self.pin.entry.cx.moment()))
    }

    fn current(&self) -> Option<Arc<Token>> {
        let cx = &self.pin.entry.cx;
        if cx.is_closed() {
            return None;
        }
        self.pin.entry.usable(cx.moment())
    }

    pub(super) fn has_seen(&self, generation: u64) {
        self.seen.fetch_max(generation, Ordering::Relaxed);
    }

    /// Returns the token as the value of an `authorization` header: `Bearer …`, marked sensitive.
    ///
    /// # Errors
    /// Returns the same errors as [`get`](Self::get).
    pub async fn header(&self) -> Result<HeaderValue, TokenError> {
        Ok(self.issue()?.settle().await?.header())
    }

    /// Returns the header if a token can be sent now; otherwise returns `None` and starts a fetch.
    /// Never waits.
    pub fn try_header(&self) -> Option<HeaderValue> {
        Some(self.at_once()?.header())
    }

    #[inline]
    pub(crate) fn issue(&self) -> Result<Issue, TokenError> {
        let entry = &self.pin.entry;
        // A pinned entry is never evicted, so no look-up is needed.
        issue(entry).unwrap_or_else(|| Err(TokenError::closed()))
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.pin.entry.cx.clock
    }

    pub(crate) fn entry(&self) -> &Arc<Entry> {
        &self.pin.entry
    }
}

debug_fields!(PinnedSvid, |it| { request: it.request() });

/// A token, or the wait for one.
pub(crate) enum Issue {
    Ready(Issued),
    Wait(Waiter),
}

/// A token for one request.
pub(crate) struct Issued {
    token: Arc<Token>,
    /// The entry of a single-use token. Nothing else holds it.
    _own: Option<Arc<Entry>>,
}

impl Issue {
    pub(crate) async fn settle(self) -> Result<Issued, TokenError> {
        match self {
            Self::Ready(issued) => Ok(issued),
            Self::Wait(waiter) => {
                let own = waiter.single_use_entry();
                let token = waiter.token().await?;
                Ok(Issued { token, _own: own })
            }
        }
    }

    /// The token that can be sent without waiting.
    pub(crate) fn at_once(self) -> Option<Issued> {
        match self {
            Self::Ready(issued) => Some(issued),
            Self::Wait(waiter) => waiter.at_once().map(Issued::of),
        }
    }
}

impl Issued {
    #[inline]
    fn of(token: Arc<Token>) -> Self {
        Self { token, _own: None }
    }

    #[inline]
    pub(crate) fn header(&self) -> HeaderValue {
        self.token.header.clone()
    }

    pub(crate) fn svid(&self) -> JwtSvid {
        self.token.svid.clone()
    }

    /// Whether it may still be sent.
    pub(crate) fn is_usable(&self) -> bool {
        // Without its entry there is no clock, so another token is requested.
        let entry = self.token.entry.upgrade();
        entry.is_some_and(|entry| self.token.usable(entry.cx.moment()))
    }

    /// Reports that a service rejected it.
    pub(crate) fn rejected(&self) {
        if let Some(entry) = self.token.entry.upgrade() {
            rejected(&entry, self.token.generation);
        }
    }
}

/// Returns the token of an entry or the wait for it; `None` if the entry was evicted.
#[inline]
pub(crate) fn issue(entry: &Arc<Entry>) -> Option<Result<Issue, TokenError>> {
    let cx = &*entry.cx;
    let failed = |error| {
        cx.record(SvidCacheEvent::Miss);
        cx.record(SvidCacheEvent::Error);
        Some(Err(error))
    };
    if cx.is_closed() {
        return failed(TokenError::closed());
    }
    let now = cx.moment();
    entry.touch(now);
    if let Some(token) = hot::fresh(entry, now, Arc::clone) {
        cx.record(SvidCacheEvent::Hit);
        return Some(Ok(Issue::Ready(Issued::of(token))));
    }
    let resolved = if entry.request.is_single_use() {
        single_use::fetch(entry, now)
    } else {
        entry.resolve(now)
    };
    match resolved {
        Resolved::Token(token) => {
            cx.record(SvidCacheEvent::Hit);
            Some(Ok(Issue::Ready(Issued::of(token))))
        }
        Resolved::Wait(waiter) => {
            cx.record(SvidCacheEvent::Miss);
            Some(Ok(Issue::Wait(waiter)))
        }
        Resolved::Fail(error) => failed(error),
        Resolved::Retired => None,
    }
}

pub(crate) fn rejected(entry: &Entry, generation: u64) -> bool {
    // A single-use token has no successor.
    if entry.shared.is_some() {
        return false;
    }
    let now = entry.cx.moment();
    let due = entry.reject(generation, now);
    if due {
        entry.cx.record(SvidCacheEvent::Refused);
        entry.cx.nudge.notify_waiters();
    }
    due
}
