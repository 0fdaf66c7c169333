//! The state of a polled source, for operators.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::bundle::BundlesUnavailable;
use crate::cause::Cause;
use crate::identity::TrustDomain;

/// The state of an [`HttpsBundles`](super::HttpsBundles) at one moment. An age is the longer of the
/// ages on the monotonic clock and on the wall clock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpsBundlesState {
    pub(super) trust_domain: TrustDomain,
    pub(super) url: Box<str>,
    pub(super) revision: Result<u64, BundlesUnavailable>,
    pub(super) following: bool,
    pub(super) overdue: bool,
    pub(super) keys: usize,
    pub(super) sequence: Option<u64>,
    pub(super) polls: u64,
    pub(super) rollbacks: u64,
    pub(super) last_success: Option<Duration>,
    pub(super) last_change: Option<Duration>,
    pub(super) next_poll: Option<Duration>,
    pub(super) last_error: Option<PollError>,
    pub(super) save_error: Option<Box<str>>,
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
    /// Returns the trust domain whose bundle this is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Returns the URL that is polled: of the JWK Set, the discovery document or the endpoint.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the revision, or why tokens cannot be verified.
    ///
    /// # Errors
    /// As [`BundleSource::revision`](crate::BundleSource::revision).
    pub fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.revision
    }

    /// Returns whether the runtime that the source was built on still polls.
    pub fn is_following(&self) -> bool {
        self.following
    }

    /// Returns whether the background task was last active more than 15 s ago. It is active every
    /// second, and a poll takes 10 s at most. The usual causes are a runtime that is not driven and
    /// a disk that does not respond.
    pub fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// Returns how many keys for JWT-SVIDs the bundle has.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// Returns the highest `spiffe_sequence` that was accepted.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// Returns how many polls ended, successful or not.
    pub fn polls(&self) -> u64 {
        self.polls
    }

    /// Returns how many documents were rejected because their `spiffe_sequence` was lower than the
    /// accepted one.
    pub fn rollbacks(&self) -> u64 {
        self.rollbacks
    }

    /// Returns the time since the last successful poll; a response 304 counts.
    pub fn last_success(&self) -> Option<Duration> {
        self.last_success
    }

    /// Returns the time since the keys last changed.
    pub fn last_change(&self) -> Option<Duration> {
        self.last_change
    }

    /// Returns the time until the next poll; `None` during a poll.
    pub fn next_poll(&self) -> Option<Duration> {
        self.next_poll
    }

    /// Returns the error of the last poll. The last good bundle stays, with one exception:
    /// a valid document without any usable key (`bundle-unusable`) takes effect, because the keys
    /// that it no longer has may be revoked.
    pub fn last_error(&self) -> Option<&PollError> {
        self.last_error.as_ref()
    }

    /// Returns why the latest bundle could not be saved to its file.
    pub fn save_error(&self) -> Option<&str> {
        self.save_error.as_deref()
    }

    /// Returns whether the source is healthy: tokens can be verified, the task is not
    /// [overdue](Self::is_overdue), and the last poll and the last save had no error.
    pub fn is_healthy(&self) -> bool {
        self.revision.is_ok()
            && self.following
            && !self.overdue
            && self.last_error.is_none()
            && self.save_error.is_none()
    }
}
