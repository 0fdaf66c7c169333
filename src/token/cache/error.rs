//! Errors of requests for tokens.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::presentable::{bounded, debug_fields};
use crate::runtime::Missing;
use crate::token::{FetchSvidError, FetchSvidReason, SvidRequest, SvidRequestError};

/// Why a token of this workload could not be fetched, or added to a request.
///
/// Requests that waited for the same fetch get clones of the same error. Its `Display` includes the
/// text of the failed fetch, so its [`source`](Error::source) does not: the structured cause is
/// [`fetch_error`](Self::fetch_error).
///
/// # As a gRPC status
///
/// With feature `workload-api` or `tonic`, its [`source`](Error::source) is a `tonic::Status`,
/// which `tonic::Status::from_error` finds: a call over a tonic channel ends with it. With feature
/// `tonic`, `?` converts a `TokenError` in a handler that returns `tonic::Status`. Both give the
/// same code and text, which are safe to forward to the caller of the handler: they depend on the
/// class only, name neither the agent nor an audience, and are never UNAUTHENTICATED, which would
/// mean that the caller's token is invalid.
///
/// | code | reasons |
/// | --- | --- |
/// | DEADLINE_EXCEEDED | [`DeadlineExceeded`](TokenErrorReason::DeadlineExceeded) |
/// | INTERNAL: a registration entry or the configuration must be changed | [`Denied`](TokenErrorReason::Denied), [`InvalidRequest`](TokenErrorReason::InvalidRequest), [`NoRuntime`](TokenErrorReason::NoRuntime), [`NoOrigin`](TokenErrorReason::NoOrigin), [`ForeignOrigin`](TokenErrorReason::ForeignOrigin), [`Plaintext`](TokenErrorReason::Plaintext), [`HeaderPresent`](TokenErrorReason::HeaderPresent) |
/// | UNAVAILABLE | all others |
///
/// The details are in this error, which is the `source()` of such a status ([`find`](Self::find)),
/// and in the logs. Text made from this error's `Display` or `Debug` has them too: do not send it
/// to peers.
#[derive(Clone)]
pub struct TokenError {
    inner: Arc<Inner>,
    // Set for each request; the rest is shared.
    retry_after: Option<Duration>,
}

struct Inner {
    reason: TokenErrorReason,
    message: String,
    fetch: Option<FetchSvidError>,
    #[cfg(any(feature = "workload-api", feature = "tonic"))]
    status: tonic::Status,
}

/// The class of a [`TokenError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenErrorReason {
    /// The issuer is unreachable, or reports that it is unavailable.
    Unavailable,
    /// No token arrived in time.
    Timeout,
    /// The `grpc-timeout` of the call ended before the token arrived.
    DeadlineExceeded,
    /// The issuer denied this identity to this workload. It may allow it later.
    Denied,
    /// The request is invalid and can never succeed.
    InvalidRequest,
    /// The issuer returned a token that cannot be accepted.
    Unacceptable,
    /// The agent returned an old, expired token: its server is probably unreachable.
    StaleToken,
    /// The issuer returned a new token that has already expired: the clocks differ.
    ClockSkew,
    /// The cache is full of audiences whose fetch is in progress.
    Full,
    /// The source was shut down.
    Closed,
    /// The fetcher panicked.
    Panicked,
    /// The call needs a tokio runtime with timers.
    NoRuntime,
    /// The request has no origin, and the audience has no `assume_origin`.
    NoOrigin,
    /// The URI or the `Host` header of the request matches no origin of the audience, and the layer
    /// is strict.
    ForeignOrigin,
    /// The token would be sent in plaintext, which is not allowed.
    Plaintext,
    /// The request already has the header, and the layer is configured to reject that.
    HeaderPresent,
    /// Another error of the fetcher.
    Other,
}

impl TokenErrorReason {
    /// Returns the class as a fixed, short text for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::Denied => "denied",
            Self::InvalidRequest => "invalid-request",
            Self::Unacceptable => "unacceptable",
            Self::StaleToken => "stale-token",
            Self::ClockSkew => "clock-skew",
            Self::Full => "full",
            Self::Closed => "closed",
            Self::Panicked => "panicked",
            Self::NoRuntime => "no-runtime",
            Self::NoOrigin => "no-origin",
            Self::ForeignOrigin => "foreign-origin",
            Self::Plaintext => "plaintext",
            Self::HeaderPresent => "header-present",
            Self::Other => "other",
        }
    }

    pub(crate) const fn of(reason: FetchSvidReason) -> Self {
        match reason {
            FetchSvidReason::Unavailable => Self::Unavailable,
            FetchSvidReason::Timeout => Self::Timeout,
            FetchSvidReason::Denied => Self::Denied,
            FetchSvidReason::InvalidRequest => Self::InvalidRequest,
            FetchSvidReason::Unacceptable => Self::Unacceptable,
            FetchSvidReason::Stale => Self::StaleToken,
            FetchSvidReason::Expired => Self::ClockSkew,
            FetchSvidReason::Closed => Self::Closed,
            FetchSvidReason::Panicked => Self::Panicked,
            FetchSvidReason::NoRuntime => Self::NoRuntime,
            FetchSvidReason::Other => Self::Other,
        }
    }
}

impl TokenError {
    pub(crate) fn new(reason: TokenErrorReason, message: impl Into<String>) -> Self {
        Self::build(reason, message.into(), None)
    }

    /// A fetch for `request` that failed.
    pub(crate) fn fetching(request: &SvidRequest, error: FetchSvidError) -> Self {
        let message = format!("no JWT-SVID for {}: {error}", Audiences(request));
        Self::build(TokenErrorReason::of(error.reason()), message, Some(error))
    }

    pub(crate) fn for_request(
        reason: TokenErrorReason,
        request: &SvidRequest,
        what: impl fmt::Display,
    ) -> Self {
        Self::new(
            reason,
            format!("no JWT-SVID for {}: {what}", Audiences(request)),
        )
    }

    /// The error for an invalid audience that was derived from `origin`.
    pub(crate) fn invalid_audience(
        origin: &dyn fmt::Display,
        audience: &str,
        why: SvidRequestError,
    ) -> Self {
        Self::new(
            TokenErrorReason::InvalidRequest,
            format!(
                "invalid audience {:?} for {origin}: {why}; return `None` for no token",
                bounded(audience, 128)
            ),
        )
    }

    pub(crate) fn closed() -> Self {
        Self::new(
            TokenErrorReason::Closed,
            "the source of JWT-SVIDs was shut down",
        )
    }

    pub(crate) fn aborted(request: &SvidRequest) -> Self {
        Self::for_request(
            TokenErrorReason::Timeout,
            request,
            "the fetch was cancelled",
        )
    }

    pub(crate) fn no_runtime(request: &SvidRequest, missing: Missing) -> Self {
        Self::for_request(
            TokenErrorReason::NoRuntime,
            request,
            format_args!("waiting for one needs timers, and {missing}"),
        )
    }

    pub(crate) fn full(request: &SvidRequest) -> Self {
        Self::for_request(
            TokenErrorReason::Full,
            request,
            "the cache is full of audiences that are being fetched; increase `max_entries`",
        )
    }

    pub(crate) fn retry_in(mut self, nanos: u64) -> Self {
        self.retry_after = Some(Duration::from_nanos(nanos));
        self
    }

    fn build(reason: TokenErrorReason, message: String, fetch: Option<FetchSvidError>) -> Self {
        Self {
            inner: Arc::new(Inner {
                reason,
                #[cfg(any(feature = "workload-api", feature = "tonic"))]
                status: reason.status(),
                message,
                fetch,
            }),
            retry_after: None,
        }
    }

    /// Returns the class.
    pub fn reason(&self) -> TokenErrorReason {
        self.inner.reason
    }

    /// Returns the error of the failed fetch, if there was one.
    pub fn fetch_error(&self) -> Option<&FetchSvidError> {
        self.inner.fetch.as_ref()
    }

    /// Returns the time until the cache calls the issuer again. Requests before that get the same
    /// error.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Returns whether the same request may succeed later without a change of the program.
    pub fn is_retryable(&self) -> bool {
        !matches!(
            self.inner.reason,
            TokenErrorReason::InvalidRequest
                | TokenErrorReason::Closed
                | TokenErrorReason::NoRuntime
                | TokenErrorReason::NoOrigin
                | TokenErrorReason::ForeignOrigin
                | TokenErrorReason::Plaintext
                | TokenErrorReason::HeaderPresent
        )
    }

    /// Returns the tonic status of the class, with this error as its source. Its text has no
    /// details, so that it can be sent to peers.
    #[cfg(feature = "tonic")]
    pub fn to_status(&self) -> tonic::Status {
        self.clone().into()
    }

    /// Finds the `TokenError` in an error of a client: the error itself, or one of its sources.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            // The `source()` of these is the source of the wrapped error, not the wrapped error.
            #[cfg(feature = "reqwest-middleware")]
            if let Some(reqwest_middleware::Error::Middleware(inner)) = error.downcast_ref() {
                next = Some(inner.as_ref());
                continue;
            }
            next = match error
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::get_ref)
            {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }
}

#[cfg(any(feature = "workload-api", feature = "tonic"))]
impl TokenErrorReason {
    /// The status of the class. It reaches the peer if a handler returns the error, so its text does
    /// not mention the agent or the audience, and its code never indicates that the peer's
    /// credential is invalid.
    pub(crate) fn status(self) -> tonic::Status {
        match self {
            Self::DeadlineExceeded => tonic::Status::deadline_exceeded(
                "an outgoing call was not sent: its deadline ended while it waited for a token",
            ),
            Self::Denied
            | Self::InvalidRequest
            | Self::NoRuntime
            | Self::NoOrigin
            | Self::ForeignOrigin
            | Self::Plaintext
            | Self::HeaderPresent => tonic::Status::internal(
                "an outgoing call was not sent: the registration or the configuration of its \
                 sender does not allow it; see the logs of the sender",
            ),
            _ => tonic::Status::unavailable(
                "an outgoing call was not sent: there is no token for it now; retry later",
            ),
        }
    }
}

/// The fixed text of the class, with this error as its source.
#[cfg(feature = "tonic")]
impl From<TokenError> for tonic::Status {
    fn from(error: TokenError) -> Self {
        let mut status = error.reason().status();
        status.set_source(Arc::new(error));
        status
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)?;
        match self.retry_after {
            Some(after) => write!(f, "; the next attempt is in {:.1} s", after.as_secs_f64()),
            None => Ok(()),
        }
    }
}

debug_fields!(TokenError, |it| {
    reason: it.inner.reason,
    message: it.inner.message,
    retry_after: it.retry_after,
});

impl Error for TokenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        #[cfg(any(feature = "workload-api", feature = "tonic"))]
        {
            Some(&self.inner.status)
        }
        #[cfg(not(any(feature = "workload-api", feature = "tonic")))]
        {
            None
        }
    }
}

/// The audiences of a request, bounded, for a message.
struct Audiences<'a>(&'a SvidRequest);

impl fmt::Display for Audiences<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        const LEN: usize = 128;
        let audiences = self.0.audiences();
        for (at, audience) in audiences.clone().take(SHOWN).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{:?}", bounded(audience, LEN))?;
        }
        if audiences.len() > SHOWN {
            write!(f, " and {} more", audiences.len() - SHOWN)?;
        }
        if let Some(id) = self.0.spiffe_id() {
            write!(f, " as {id}")?;
        }
        if let Some(hint) = self.0.hint() {
            write!(f, " as hint {:?}", bounded(hint, LEN))?;
        }
        #[cfg(feature = "oauth")]
        if let Some(subject) = self.0.subject() {
            match subject.spiffe_id() {
                Some(id) => write!(f, " on behalf of {id}")?,
                None => f.write_str(" on behalf of a subject token")?,
            }
        }
        Ok(())
    }
}
