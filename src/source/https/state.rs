//! The state of a polled source, for operators.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::bundle::BundlesUnavailable;
use crate::cause::Cause;
use crate::identity::TrustDomain;
use crate::presentable::{chain, presentable};

/// The state of an [`HttpsBundles`](super::HttpsBundles) at one moment. An age is the longer of the
/// ages on the monotonic clock and on the wall clock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpsBundlesState {
    /// The trust domain whose bundle this is.
    pub trust_domain: TrustDomain,
    /// The URL that is polled: of the JWK Set, the discovery document or the endpoint.
    pub url: Box<str>,
    /// The revision, or why tokens cannot be verified, as
    /// [`BundleSource::revision`](crate::BundleSource::revision) returns it.
    pub revision: Result<u64, BundlesUnavailable>,
    /// Whether the runtime that the source was built on still polls.
    pub following: bool,
    /// Whether the background task was last active more than 15 s ago. It is active every second,
    /// and a poll takes 10 s at most. The usual causes are a runtime that is not driven and a disk
    /// that does not respond.
    pub overdue: bool,
    /// The number of keys for JWT-SVIDs in the bundle.
    pub keys: usize,
    /// The highest `spiffe_sequence` that was accepted.
    pub sequence: Option<u64>,
    /// The number of polls that ended, successful or not.
    pub polls: u64,
    /// The number of documents that were rejected because their `spiffe_sequence` was lower than
    /// the accepted one.
    pub rollbacks: u64,
    /// The time since the last successful poll; a response 304 counts.
    pub last_success: Option<Duration>,
    /// The time since the keys last changed.
    pub last_change: Option<Duration>,
    /// The time until the next poll; `None` during a poll.
    pub next_poll: Option<Duration>,
    /// The error of the last poll. The last good bundle stays, with one exception: a valid document
    /// without any usable key (`bundle-unusable`) takes effect, because the keys that it no longer
    /// has may be revoked.
    pub last_error: Option<PollError>,
    /// Why the latest bundle could not be saved to its file.
    pub save_error: Option<Box<str>>,
}

/// The error of the last poll.
///
/// `{error}` says what failed; the cause is its [`source`](Error::source). [`text`](Self::text) has both.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PollError {
    pub(super) kind: &'static str,
    pub(super) failed: Box<str>,
    pub(super) text: Box<str>,
    pub(super) cause: Option<Cause>,
}

impl PollError {
    pub(super) fn new(kind: &'static str, failed: impl Into<Box<str>>) -> Self {
        let failed = failed.into();
        Self {
            kind,
            text: failed.clone(),
            failed,
            cause: None,
        }
    }

    /// Formats the cause now, inside the poll: the error of a given client may panic.
    pub(super) fn because(self, cause: impl Into<Cause>) -> Self {
        let cause = cause.into();
        let why = presentable(&chain(cause.as_error()));
        Self {
            text: format!("{}: {why}", self.failed).into(),
            cause: Some(cause),
            ..self
        }
    }

    /// Returns the class, one of [`SOURCE_ERROR_KINDS`](crate::metrics::SOURCE_ERROR_KINDS):
    /// `bundle-fetch`, `bundle-too-large`, `bundle-unreadable`, `bundle-unusable`,
    /// `bundle-rollback` or `internal`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Returns the details as text, with the cause. Text from outside is bounded and escaped.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for PollError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match f.alternate() {
            true => &self.text,
            false => &self.failed,
        })
    }
}

impl Error for PollError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(Cause::as_error)
    }
}

impl HttpsBundlesState {
    /// Returns whether the source is healthy: tokens can be verified, the task is not
    /// [overdue](Self::overdue), and the last poll and the last save had no error.
    pub fn is_healthy(&self) -> bool {
        self.revision.is_ok()
            && self.following
            && !self.overdue
            && self.last_error.is_none()
            && self.save_error.is_none()
    }
}
