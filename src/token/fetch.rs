//! Fetches a token of this workload: one request, one response, no cache.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

#[cfg(feature = "oauth")]
use super::OAuthError;
use super::{JwtSvid, SvidRequest};
use crate::grpc_code::GrpcCode;

/// The future of a call of [`FetchSvid`].
pub type FetchSvidFuture =
    Pin<Box<dyn Future<Output = Result<JwtSvid, FetchSvidError>> + Send + 'static>>;

/// One call to an issuer for one token. `SvidCache` adds the cache, the single flight and the
/// refresh, so an implementation does not need them.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot fetch JWT-SVIDs",
    label = "expected your own `FetchSvid`",
    note = "a `JwtSource` has a cache already: pass the source itself, or use `SvidCache::from(source)`"
)]
pub trait FetchSvid: Send + Sync + 'static {
    /// Calls the issuer once. The future must not borrow from `self`, because it outlives this
    /// call.
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture;

    /// Returns whether it exchanges the [subject token](SvidRequest::subject) of a request. `false`
    /// by default: requests with a subject token then fail with
    /// [`InvalidRequest`](FetchSvidReason::InvalidRequest), and `fetch_svid` is not called.
    #[cfg(feature = "oauth")]
    fn exchanges_subjects(&self) -> bool {
        false
    }
}

impl<F: FetchSvid + ?Sized> FetchSvid for Arc<F> {
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
        (**self).fetch_svid(request)
    }

    #[cfg(feature = "oauth")]
    fn exchanges_subjects(&self) -> bool {
        (**self).exchanges_subjects()
    }
}

/// Why a fetch failed. Shared by all requests that waited for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchSvidError {
    reason: FetchSvidReason,
    code: Option<GrpcCode>,
    #[cfg(feature = "oauth")]
    oauth: Option<Arc<OAuthError>>,
    message: Arc<str>,
}

/// The class of a [`FetchSvidError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FetchSvidReason {
    /// The issuer is unreachable, or reports that it is unavailable.
    Unavailable,
    /// The issuer did not respond in time.
    Timeout,
    /// The issuer denied this identity to this workload. It may allow it later.
    Denied,
    /// The request is invalid and can never succeed.
    InvalidRequest,
    /// The issuer returned a token that cannot be accepted: malformed, too long, or for another
    /// identity or audience.
    Unacceptable,
    /// The agent returned an old, expired token: the same as before, or one that was issued at
    /// least one lifetime ago. Its server is probably unreachable.
    Stale,
    /// The issuer returned a new token that has already expired: the clocks differ.
    Expired,
    /// The source was shut down.
    Closed,
    /// The fetcher panicked.
    Panicked,
    /// The call needs a tokio runtime with timers.
    NoRuntime,
    /// Another error.
    Other,
}

/// Classifies the status of a gRPC issuer: `Unavailable`, `DeadlineExceeded` (`Timeout`),
/// `PermissionDenied` (`Denied`), `InvalidArgument` and `Unimplemented` (`InvalidRequest`); all
/// others are `Other`.
impl From<GrpcCode> for FetchSvidReason {
    fn from(code: GrpcCode) -> Self {
        match code {
            GrpcCode::Unavailable => Self::Unavailable,
            GrpcCode::DeadlineExceeded => Self::Timeout,
            GrpcCode::PermissionDenied => Self::Denied,
            GrpcCode::InvalidArgument | GrpcCode::Unimplemented => Self::InvalidRequest,
            _ => Self::Other,
        }
    }
}

impl FetchSvidError {
    /// Creates an error of this class. `message` describes the error and how to fix it. It must not
    /// contain a token.
    pub fn new(reason: FetchSvidReason, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            code: None,
            #[cfg(feature = "oauth")]
            oauth: None,
            message: Arc::from(message.into()),
        }
    }

    /// Adds the gRPC code of the issuer's response.
    #[must_use]
    pub fn with_code(mut self, code: GrpcCode) -> Self {
        self.code = Some(code);
        self
    }

    /// Adds the error response of an authorization server.
    #[cfg(feature = "oauth")]
    #[must_use]
    pub(crate) fn with_oauth(mut self, error: OAuthError) -> Self {
        self.oauth = Some(Arc::new(error));
        self
    }

    /// Returns the error response of the authorization server, if there is one.
    #[cfg(feature = "oauth")]
    pub fn oauth(&self) -> Option<&OAuthError> {
        self.oauth.as_deref()
    }

    /// Whether the issuer responded.
    #[cfg(feature = "client")]
    pub(crate) fn is_answer(&self) -> bool {
        #[cfg(feature = "oauth")]
        if self.oauth.is_some() {
            return true;
        }
        self.code.is_some()
    }

    /// The delay that the issuer requested before the next call.
    #[cfg(feature = "client")]
    pub(crate) fn retry_after(&self) -> Option<std::time::Duration> {
        #[cfg(feature = "oauth")]
        return self.oauth()?.retry_after();
        #[cfg(not(feature = "oauth"))]
        None
    }

    /// Returns the class.
    pub fn reason(&self) -> FetchSvidReason {
        self.reason
    }

    /// Returns the gRPC code of the issuer's response, if it has one.
    pub fn code(&self) -> Option<GrpcCode> {
        self.code
    }

    /// Returns whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        !matches!(
            self.reason,
            FetchSvidReason::InvalidRequest | FetchSvidReason::Closed | FetchSvidReason::NoRuntime
        )
    }
}

impl fmt::Display for FetchSvidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.code {
            Some(code) => write!(f, " (gRPC status {code})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for FetchSvidError {}
