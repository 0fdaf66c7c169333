//! Why a source cannot start, or cannot answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::bundle::BundlesUnavailable;
use crate::grpc_code::GrpcCode;
use crate::identity::TrustDomain;
use crate::runtime::Missing;
use crate::token::TokenError;
use crate::token::{FetchSvidError, FetchSvidReason, SvidRequestError};
use crate::workload_api::{
    EndpointError, EndpointErrorReason, WorkloadApiError, WorkloadApiErrorReason,
};

/// Why a [`JwtSource`](crate::JwtSource) cannot start, or cannot answer. Shared by everyone who
/// waited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtSourceError {
    reason: JwtSourceErrorReason,
    code: Option<GrpcCode>,
    retryable: bool,
    message: Arc<str>,
}

/// The class of a [`JwtSourceError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JwtSourceErrorReason {
    /// There is no endpoint, or it is malformed.
    Endpoint(EndpointErrorReason),
    /// The call needs a tokio runtime (with timers; with I/O to build a source), and there is none.
    NoRuntime,
    /// The first bundles did not come in time.
    InitialSync,
    /// The agent refused the bundle stream in a way that no retry can mend.
    Refused(WorkloadApiErrorReason),
    /// The bundles cannot be used now.
    BundlesUnavailable(BundlesUnavailable),
    /// The bundle set does not hold this trust domain.
    UnknownTrustDomain,
    /// The request for a token is wrong: refused before asking.
    InvalidRequest(SvidRequestError),
    /// No token came.
    Token(FetchSvidReason),
    /// The source was shut down, or the runtime that it was built on is gone.
    Closed,
    /// The shutdown took longer than allowed.
    ShutdownTimeout,
}

impl JwtSourceError {
    fn new(reason: JwtSourceErrorReason, retryable: bool, message: impl Into<Arc<str>>) -> Self {
        Self {
            reason,
            code: None,
            retryable,
            message: message.into(),
        }
    }

    /// `call` says what the call does that needs a runtime.
    pub(crate) fn no_runtime(call: &str, missing: Missing) -> Self {
        Self::new(
            JwtSourceErrorReason::NoRuntime,
            false,
            format!("{call}: {missing}"),
        )
    }

    pub(crate) fn closed() -> Self {
        Self::new(
            JwtSourceErrorReason::Closed,
            false,
            "the source was shut down, or the runtime that it was built on is gone; build a new one",
        )
    }

    pub(crate) fn refused(error: &WorkloadApiError) -> Self {
        Self {
            code: error.code(),
            ..Self::new(
                JwtSourceErrorReason::Refused(error.reason()),
                false,
                format!("no retry can mend this: {error}"),
            )
        }
    }

    pub(crate) fn initial_sync(
        within: Duration,
        place: &str,
        code: Option<GrpcCode>,
        why: &str,
    ) -> Self {
        let text =
            format!("no bundles from the agent at {place} within {within:?}; last known: {why}");
        Self {
            code,
            ..Self::new(JwtSourceErrorReason::InitialSync, true, text)
        }
    }

    pub(crate) fn unknown(trust_domain: &TrustDomain) -> Self {
        Self::new(
            JwtSourceErrorReason::UnknownTrustDomain,
            true,
            format!(
                "the issuer gives no bundle for the trust domain {trust_domain}; if it is another \
                 one than ours, is it federated, and does our registration entry name it?"
            ),
        )
    }

    pub(crate) fn bundles_unavailable(why: BundlesUnavailable) -> Self {
        match why {
            BundlesUnavailable::Closed => Self::closed(),
            why => Self::new(
                JwtSourceErrorReason::BundlesUnavailable(why),
                true,
                format!("bundles cannot be used: {why}; `JwtSource::state` tells more"),
            ),
        }
    }

    pub(crate) fn shutdown_timeout(within: Duration) -> Self {
        Self::new(
            JwtSourceErrorReason::ShutdownTimeout,
            false,
            format!("the background task did not end within {within:?}, and was aborted"),
        )
    }

    /// The class.
    pub fn reason(&self) -> JwtSourceErrorReason {
        self.reason
    }

    /// The gRPC code that the agent answered with, where it answered with one.
    pub fn code(&self) -> Option<GrpcCode> {
        self.code
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}

impl fmt::Display for JwtSourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for JwtSourceError {}

/// A code and a fixed text for each class, as for a [`TokenError`]; this error is its source.
///
/// `?` converts this way in a tonic handler. `tonic::Status::from_error` does not: it sends the
/// message of this error, which names the agent, to the peer.
#[cfg(feature = "tonic")]
impl From<JwtSourceError> for tonic::Status {
    fn from(error: JwtSourceError) -> Self {
        use crate::token::TokenErrorReason as Class;
        use JwtSourceErrorReason as Reason;
        let class = match error.reason {
            Reason::Token(reason) => Class::of(reason),
            Reason::InitialSync
            | Reason::BundlesUnavailable(_)
            | Reason::Closed
            | Reason::ShutdownTimeout => Class::Unavailable,
            Reason::Endpoint(_)
            | Reason::NoRuntime
            | Reason::Refused(_)
            | Reason::UnknownTrustDomain
            | Reason::InvalidRequest(_) => Class::InvalidRequest,
        };
        let mut status = class.status();
        status.set_source(Arc::new(error));
        status
    }
}

impl From<EndpointError> for JwtSourceError {
    fn from(error: EndpointError) -> Self {
        Self::new(
            JwtSourceErrorReason::Endpoint(error.reason()),
            false,
            error.to_string(),
        )
    }
}

impl From<SvidRequestError> for JwtSourceError {
    fn from(error: SvidRequestError) -> Self {
        Self::new(
            JwtSourceErrorReason::InvalidRequest(error),
            false,
            error.to_string(),
        )
    }
}

impl From<FetchSvidError> for JwtSourceError {
    fn from(error: FetchSvidError) -> Self {
        if error.reason() == FetchSvidReason::Closed {
            return Self::closed();
        }
        let reason = match error.reason() {
            FetchSvidReason::NoRuntime => JwtSourceErrorReason::NoRuntime,
            reason => JwtSourceErrorReason::Token(reason),
        };
        Self {
            code: error.code(),
            ..Self::new(reason, error.is_retryable(), error.to_string())
        }
    }
}

impl From<TokenError> for JwtSourceError {
    fn from(error: TokenError) -> Self {
        use crate::token::TokenErrorReason as Reason;
        let reason = match error.reason() {
            Reason::Closed => return Self::closed(),
            Reason::Unavailable => FetchSvidReason::Unavailable,
            Reason::Timeout => FetchSvidReason::Timeout,
            Reason::Denied => FetchSvidReason::Denied,
            Reason::InvalidRequest => FetchSvidReason::InvalidRequest,
            Reason::Unacceptable => FetchSvidReason::Unacceptable,
            Reason::StaleToken => FetchSvidReason::Stale,
            Reason::ClockSkew => FetchSvidReason::Expired,
            Reason::Panicked => FetchSvidReason::Panicked,
            Reason::NoRuntime => {
                return Self::new(JwtSourceErrorReason::NoRuntime, false, error.to_string());
            }
            _ => FetchSvidReason::Other,
        };
        Self {
            code: error.fetch_error().and_then(FetchSvidError::code),
            ..Self::new(
                JwtSourceErrorReason::Token(reason),
                error.is_retryable(),
                error.to_string(),
            )
        }
    }
}
