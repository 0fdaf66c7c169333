//! Errors of a source.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::bundle::BundlesUnavailable;
use crate::grpc_code::GrpcCode;
use crate::identity::TrustDomain;
use crate::runtime::Missing;
use crate::token::{FetchSvidError, SvidRequestError, TokenError, TokenErrorReason};
use crate::workload_api::{
    EndpointError, EndpointErrorReason, WorkloadApiError, WorkloadApiErrorReason,
};

/// Why a [`JwtSource`](crate::JwtSource) cannot start, or a call failed.
///
/// `{error}` says what failed; the cause is its [`source`](Error::source): an [`EndpointError`], a
/// [`SvidRequestError`], a [`WorkloadApiError`], a [`BundlesUnavailable`] or a [`TokenError`]. For a
/// direct fetch it is a `tonic::Status` for the peer, whose source is a [`FetchSvidError`].
/// `{error:#}` has both in one line. Callers that waited together get clones of one error.
#[derive(Clone)]
pub struct JwtSourceError {
    reason: JwtSourceErrorReason,
    code: Option<GrpcCode>,
    retryable: bool,
    message: Arc<str>,
    cause: Option<Arc<dyn Error + Send + Sync>>,
    /// For a gRPC peer: `tonic::Status::from_error` finds it. It has a fixed text of the class, and the
    /// cause is its source.
    status: Option<Arc<tonic::Status>>,
}

/// The class of a [`JwtSourceError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JwtSourceErrorReason {
    /// There is no endpoint, or it is malformed.
    Endpoint(EndpointErrorReason),
    /// The call needs a tokio runtime (with timers; with I/O to build a source).
    NoRuntime,
    /// The first bundles did not arrive in time.
    InitialSync,
    /// The agent rejected the bundle stream with a permanent error.
    Refused(WorkloadApiErrorReason),
    /// The bundles cannot be used now.
    BundlesUnavailable(BundlesUnavailable),
    /// There is no bundle for this trust domain.
    UnknownTrustDomain,
    /// The request for a token is invalid; the agent was not called.
    InvalidRequest(SvidRequestError),
    /// There is no token to send.
    Token(TokenErrorReason),
    /// The source was shut down, or the runtime that it was built on has ended.
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
            cause: None,
            status: None,
        }
    }

    fn because(self, cause: impl Error + Send + Sync + 'static) -> Self {
        Self {
            cause: Some(Arc::new(cause)),
            ..self
        }
    }

    fn token(
        class: TokenErrorReason,
        retryable: bool,
        code: Option<GrpcCode>,
        cause: impl Error + Send + Sync + 'static,
    ) -> Self {
        let reason = match class {
            TokenErrorReason::Closed => return Self::closed(),
            TokenErrorReason::NoRuntime => JwtSourceErrorReason::NoRuntime,
            class => JwtSourceErrorReason::Token(class),
        };
        let text = format!("no JWT-SVID: {}", class.as_str());
        Self {
            code,
            ..Self::new(reason, retryable, text).because(cause)
        }
    }

    /// `call` says what failed without a runtime.
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
            "the source is closed: it was shut down, or the runtime that it was built on has ended; build a new one",
        )
    }

    pub(crate) fn rejected(error: &WorkloadApiError) -> Self {
        Self {
            code: error.code(),
            ..Self::new(
                JwtSourceErrorReason::Refused(error.reason()),
                false,
                "the agent rejected the bundle stream with a permanent error",
            )
            .because(error.clone())
        }
    }

    pub(crate) fn initial_sync(
        within: Duration,
        place: &str,
        code: Option<GrpcCode>,
        why: &str,
    ) -> Self {
        let text = format!("no bundles from the agent at {place} within {within:?}: {why}");
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
                "there is no bundle for the trust domain {trust_domain}; if it is another trust \
                 domain, federate with it and name it in this workload's registration entry"
            ),
        )
    }

    pub(crate) fn bundles_unavailable(why: BundlesUnavailable) -> Self {
        match why {
            BundlesUnavailable::Closed => Self::closed(),
            why => Self::new(
                JwtSourceErrorReason::BundlesUnavailable(why),
                true,
                "the bundles cannot be used now; see `JwtSource::state`",
            )
            .because(why),
        }
    }

    pub(crate) fn shutdown_timeout(within: Duration) -> Self {
        Self::new(
            JwtSourceErrorReason::ShutdownTimeout,
            false,
            format!("the background task did not end within {within:?}, and was aborted"),
        )
    }

    /// Returns the class.
    pub fn reason(&self) -> JwtSourceErrorReason {
        self.reason
    }

    /// Returns the gRPC code of the agent's response, if there was one.
    pub fn code(&self) -> Option<GrpcCode> {
        self.code
    }

    /// Returns whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}

impl PartialEq for JwtSourceError {
    fn eq(&self, other: &Self) -> bool {
        let cause = |error: &Self| error.cause.as_ref().map(ToString::to_string);
        self.reason == other.reason
            && self.code == other.code
            && self.retryable == other.retryable
            && self.message == other.message
            && cause(self) == cause(other)
    }
}

impl Eq for JwtSourceError {}

impl fmt::Display for JwtSourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.cause {
            Some(cause) if f.alternate() => write!(f, ": {cause}"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for JwtSourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSourceError")
            .field("reason", &self.reason)
            .field("code", &self.code)
            .field("retryable", &self.retryable)
            .field("message", &format_args!("{self:#}"))
            .finish()
    }
}

impl Error for JwtSourceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.status {
            Some(status) => Some(status.as_ref()),
            None => self.cause.as_deref().map(|cause| cause as _),
        }
    }
}

/// A code and a fixed text for each class, as for a [`TokenError`]; this error is its source.
///
/// `?` converts this way in a tonic handler. `tonic::Status::from_error` gives the same code and
/// text for errors of token calls; for all others it sends the message of this error to the peer.
#[cfg(feature = "tonic")]
impl From<JwtSourceError> for tonic::Status {
    fn from(error: JwtSourceError) -> Self {
        use crate::token::TokenErrorReason as Class;
        use JwtSourceErrorReason as Reason;
        let class = match error.reason {
            Reason::Token(class) => class,
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
            "a source cannot be built: its endpoint is invalid",
        )
        .because(error)
    }
}

impl From<SvidRequestError> for JwtSourceError {
    fn from(error: SvidRequestError) -> Self {
        Self::new(
            JwtSourceErrorReason::InvalidRequest(error),
            false,
            "no JWT-SVID: the request is invalid",
        )
        .because(error)
    }
}

impl From<FetchSvidError> for JwtSourceError {
    fn from(error: FetchSvidError) -> Self {
        let class = TokenErrorReason::of(error.reason());
        let mut status = class.status();
        status.set_source(Arc::new(error.clone()));
        Self {
            status: Some(Arc::new(status)),
            ..Self::token(class, error.is_retryable(), error.code(), error)
        }
    }
}

impl From<TokenError> for JwtSourceError {
    fn from(error: TokenError) -> Self {
        let code = error.fetch_error().and_then(FetchSvidError::code);
        Self::token(error.reason(), error.is_retryable(), code, error)
    }
}
