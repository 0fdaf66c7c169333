//! Notices of changes of the bundles.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::{Stream, StreamExt as _};
use tokio::sync::watch;

use super::error::JwtSourceError;

/// What watchers receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Notice {
    /// Zero before the first sync, one after it.
    pub(crate) revision: u64,
    pub(crate) closed: bool,
}

/// The revision of the first sync, which is not reported.
const FIRST: u64 = 1;

/// Reports changes of a source's bundles: another set, a withdrawal, a restoration.
///
/// The first [`changed`](Self::changed) waits for the next change after this was created; the first
/// sync of a source does not count. Changes between two calls are reported as one. Also a [`Stream`] of
/// revisions, which ends when the source is shut down.
pub struct SourceUpdates {
    notices: watch::Receiver<Notice>,
    seen: u64,
    waiting: Option<Pin<Box<dyn Future<Output = Option<u64>> + Send + Sync>>>,
}

impl SourceUpdates {
    pub(crate) fn new(notices: watch::Receiver<Notice>) -> Self {
        let seen = notices.borrow().revision.max(FIRST);
        Self {
            notices,
            seen,
            waiting: None,
        }
    }

    /// Waits for the next change and returns its revision. Dropping the future loses nothing.
    ///
    /// # Errors
    /// `Closed` when the source is shut down.
    pub async fn changed(&mut self) -> Result<u64, JwtSourceError> {
        self.next().await.ok_or_else(JwtSourceError::closed)
    }

    /// Returns the current revision, reported or not.
    pub fn last(&self) -> u64 {
        self.notices.borrow().revision
    }

    /// Whether the source is shut down.
    #[cfg(feature = "testing")]
    pub(crate) fn is_closed(&self) -> bool {
        self.notices.borrow().closed
    }

    /// Waits until `fits` returns `true` for the revision, and returns that revision; immediately
    /// if it fits already.
    ///
    /// # Errors
    /// `Closed` when the source is shut down.
    pub async fn wait_for(&mut self, fits: impl FnMut(u64) -> bool) -> Result<u64, JwtSourceError> {
        self.waiting = None;
        let found = until(&mut self.notices, fits).await;
        let revision = found.ok_or_else(JwtSourceError::closed)?;
        self.seen = revision.max(FIRST);
        Ok(revision)
    }
}

/// The first revision after `seen`, or `None` when the source is shut down.
pub(crate) async fn next(mut notices: watch::Receiver<Notice>, seen: u64) -> Option<u64> {
    until(&mut notices, |revision| revision > seen).await
}

async fn until(
    notices: &mut watch::Receiver<Notice>,
    mut fits: impl FnMut(u64) -> bool,
) -> Option<u64> {
    let notice = notices.wait_for(|notice| notice.closed || fits(notice.revision));
    let notice = notice.await.ok()?;
    (!notice.closed).then_some(notice.revision)
}

impl Stream for SourceUpdates {
    type Item = u64;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        let this = &mut *self;
        let waiting = this
            .waiting
            .get_or_insert_with(|| Box::pin(next(this.notices.clone(), this.seen)));
        let revision = ready!(waiting.as_mut().poll(cx));
        this.waiting = None;
        if let Some(revision) = revision {
            this.seen = revision;
        }
        Poll::Ready(revision)
    }
}

/// The clone reports the changes that the original has not reported yet.
impl Clone for SourceUpdates {
    fn clone(&self) -> Self {
        Self {
            notices: self.notices.clone(),
            seen: self.seen,
            waiting: None,
        }
    }
}

impl fmt::Debug for SourceUpdates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceUpdates")
            .field("seen", &self.seen)
            .field("now", &*self.notices.borrow())
            .finish()
    }
}
