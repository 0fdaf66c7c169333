//! Waits for newer tokens of one audience.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use futures_util::{Stream, StreamExt as _};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::error::TokenError;
use super::pin::PinnedSvid;
use crate::presentable::debug_fields;
use crate::token::JwtSvid;

impl PinnedSvid {
    /// Waits for a token that this handle has not returned yet from [`get`](Self::get),
    /// [`try_get`](Self::try_get) or `changed`, and returns it.
    ///
    /// Tokens that arrived and were replaced between two calls are skipped: the newest one is
    /// returned. Dropping the future loses no token. Each clone of the handle tracks its own
    /// position; use one clone per task.
    ///
    /// It starts no fetch, has no time limit and needs no tokio runtime. Keep the audience warm
    /// ([`SvidCache::keep_warm`](super::SvidCache::keep_warm)), or the token is refreshed only when
    /// a request needs it. A failed refresh is not an event: the old token stays until it expires.
    ///
    /// # Errors
    /// [`Closed`](super::TokenErrorReason::Closed) when the cache or its source is shut down.
    pub async fn changed(&self) -> Result<JwtSvid, TokenError> {
        let mut updates = SvidUpdates {
            seen: self.seen.load(Ordering::Relaxed),
            ..self.updates()
        };
        let svid = updates.next().await.ok_or_else(TokenError::closed)?;
        self.has_seen(updates.seen);
        Ok(svid)
    }

    /// Returns a [`Stream`] of tokens: the current one first, then each newer one.
    ///
    /// A slow receiver gets the newest token and skips those before it. The rules of
    /// [`changed`](Self::changed) apply. The stream ends when the cache or its source is shut down.
    ///
    /// ```
    /// use futures_util::StreamExt as _;
    /// use tower_spiffe::testing::FakeAgent;
    /// use tower_spiffe::SvidCache;
    /// use tower_spiffe::token::SvidRequest;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start("example.org").await?;
    /// let cache = SvidCache::from(agent.source().await?);
    /// let database = SvidRequest::new(["spiffe://example.org/db"])?;
    ///
    /// let _warm = cache.keep_warm([database.clone()])?;
    /// let mut tokens = cache.pin(database).updates();
    /// while let Some(token) = tokens.next().await {
    ///     // Authenticate the connection again with `token.token()`.
    ///     assert!(token.audiences().any(|aud| aud == "spiffe://example.org/db"));
    ///     cache.close(); // ends the stream
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn updates(&self) -> SvidUpdates {
        SvidUpdates {
            pin: self.clone(),
            seen: 0,
            news: self.entry().news(),
            woken: None,
        }
    }
}

/// A [`Stream`] of one audience's tokens. See [`PinnedSvid::updates`].
#[must_use = "a stream does nothing unless it is polled"]
pub struct SvidUpdates {
    pin: PinnedSvid,
    seen: u64,
    news: Arc<Notify>,
    woken: Option<Pin<Box<OwnedNotified>>>,
}

impl Stream for SvidUpdates {
    type Item = JwtSvid;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<JwtSvid>> {
        let this = &mut *self;
        loop {
            let woken = this.woken.get_or_insert_with(|| {
                // Registered before the check, so that no token is missed.
                let mut woken = Box::pin(this.news.clone().notified_owned());
                woken.as_mut().enable();
                woken
            });
            let entry = this.pin.entry();
            if entry.cx.is_closed() {
                this.woken = None;
                return Poll::Ready(None);
            }
            if let Some(token) = entry.usable(entry.cx.moment())
                && token.generation > this.seen
            {
                this.seen = token.generation;
                return Poll::Ready(Some(token.svid.clone()));
            }
            ready!(woken.as_mut().poll(cx));
            this.woken = None;
        }
    }
}

debug_fields!(SvidUpdates, |it| { request: it.pin.request() });
