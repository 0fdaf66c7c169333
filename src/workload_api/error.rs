//! Errors of calls to the Workload API.

use std::error::Error;
use std::fmt;
use std::io;
use std::iter::successors;
use std::sync::Arc;

use super::connect::ConnectError;
use crate::grpc_code::GrpcCode;
use crate::identity::SpiffeId;
use crate::presentable::presentable;
use crate::token::{FetchSvidError, FetchSvidReason};

/// One of the calls of the Workload API's JWT profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Call {
    /// `FetchJWTSVID`: tokens of this workload.
    FetchJwtSvid,
    /// `FetchJWTBundles`: the stream of bundles.
    FetchJwtBundles,
    /// `ValidateJWTSVID`: the agent validates a token.
    ValidateJwtSvid,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FetchJwtSvid => "FetchJWTSVID",
            Self::FetchJwtBundles => "FetchJWTBundles",
            Self::ValidateJwtSvid => "ValidateJWTSVID",
        })
    }
}

/// Why a call to the Workload API failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadApiError {
    call: Call,
    reason: WorkloadApiErrorReason,
    code: Option<GrpcCode>,
    message: Arc<str>,
}

/// The class of a [`WorkloadApiError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkloadApiErrorReason {
    /// The Unix socket does not exist.
    NoSocket,
    /// No process listens at the endpoint.
    Refused,
    /// No connection for another reason, such as permissions or a timeout.
    Connect,
    /// The peer does not speak HTTP/2.
    NotGrpc,
    /// The connection broke before the response was complete.
    Disconnected,
    /// No response in time.
    Timeout,
    /// The agent cannot serve now.
    Unavailable,
    /// The agent has no identity for this workload; it may have one later.
    PermissionDenied,
    /// The agent returned `InvalidArgument`. For `ValidateJWTSVID` it means that the token is invalid.
    InvalidArgument,
    /// The agent does not have this call.
    Unimplemented,
    /// Another gRPC status; see [`code`](WorkloadApiError::code).
    Status,
    /// The agent's response breaks the rules: it is empty, for another identity or audience than
    /// requested, or has a token that cannot be read.
    InvalidAnswer,
    /// The agent's message is larger than allowed, and was not read.
    MessageTooLarge,
    /// No identity of this workload has the requested hint.
    NoSuchHint,
    /// The audience is empty; the agent was not called.
    InvalidRequest,
    /// The call needs a tokio runtime (with timers; with I/O to build a client).
    NoRuntime,
}

impl WorkloadApiError {
    pub(crate) fn new(
        call: Call,
        reason: WorkloadApiErrorReason,
        message: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            call,
            reason,
            code: None,
            message: message.into(),
        }
    }

    /// The error for a response that breaks the rules; `what` describes the fault.
    pub(crate) fn invalid_answer(call: Call, place: &str, what: impl fmt::Display) -> Self {
        let text = format!(
            "the response of the agent at {place} cannot be used: {what}; if this repeats, check that \
             this is the endpoint of a SPIFFE agent"
        );
        Self::new(call, WorkloadApiErrorReason::InvalidAnswer, text)
    }

    /// The error for a status of tonic. A status with a source is about a broken connection; one without
    /// came from the agent.
    pub(crate) fn from_status(
        call: Call,
        place: &str,
        not_http2: bool,
        status: &tonic::Status,
        asked_for: Option<&SpiffeId>,
    ) -> Self {
        use WorkloadApiErrorReason as Reason;
        if status.source().is_some() {
            let mut connect =
                causes(status).filter_map(|error| error.downcast_ref::<ConnectError>());
            if let Some(connect) = connect.next() {
                let reason = match connect.kind {
                    io::ErrorKind::NotFound => Reason::NoSocket,
                    io::ErrorKind::ConnectionRefused => Reason::Refused,
                    _ => Reason::Connect,
                };
                return Self::new(call, reason, connect.to_string());
            }
            if not_http2 {
                let text = format!(
                    "the peer at {place} does not speak HTTP/2, so it is not a SPIFFE Workload API; \
                     check the endpoint"
                );
                return Self::new(call, Reason::NotGrpc, text);
            }
            // The other errors only wrap it.
            let innermost = causes(status).last().map(ToString::to_string);
            let innermost = presentable(&innermost.unwrap_or_default());
            let text = format!(
                "the connection to {place} broke: {innermost}; the agent may be restarting (the next \
                 call reconnects), the endpoint may expect TLS, or the agent may have closed the \
                 connection for too many keepalive pings"
            );
            return Self::new(call, Reason::Disconnected, text);
        }
        let code = GrpcCode::from_i32(status.code() as i32);
        let reason = match code {
            GrpcCode::Unavailable => Reason::Unavailable,
            GrpcCode::PermissionDenied => Reason::PermissionDenied,
            GrpcCode::InvalidArgument => Reason::InvalidArgument,
            GrpcCode::Unimplemented => Reason::Unimplemented,
            _ => Reason::Status,
        };
        let said = presentable(status.message());
        if let Some(error) = Self::of_tonic(call, place, code, &said) {
            return error;
        }
        let hint = match (reason, call) {
            (Reason::InvalidArgument, Call::ValidateJwtSvid) => "; it rejects the token",
            (Reason::InvalidArgument, _) => {
                "; the request is invalid for it, or without the header workload.spiffe.io; check \
                 whether a proxy changes requests"
            }
            (Reason::PermissionDenied, _) if asked_for.is_some() => {
                "; check that the SPIFFE server has a registration entry for this workload with this \
                 SPIFFE ID"
            }
            (Reason::PermissionDenied, _) => {
                "; check that the SPIFFE server has a registration entry for this workload"
            }
            (Reason::Unimplemented, _) => {
                "; its Workload API has no JWT profile; check that this is the right agent"
            }
            (Reason::Unavailable, _) => {
                "; it is running but cannot serve now, perhaps because its server is unreachable; see \
                 its log"
            }
            _ => "; see its log",
        };
        let asked_for = asked_for.map_or_else(String::new, |id| {
            format!(" for {}", presentable(id.as_str()))
        });
        let text = format!("the agent at {place} returned {code}{asked_for}: \"{said}\"{hint}");
        Self {
            code: Some(code),
            ..Self::new(call, reason, text)
        }
    }

    /// The error for a status that tonic itself creates: there is no response, or tonic rejected it.
    fn of_tonic(call: Call, place: &str, code: GrpcCode, said: &str) -> Option<Self> {
        use WorkloadApiErrorReason as Reason;
        let fix = match call {
            Call::FetchJwtBundles => "raise `max_message_bytes` (64 MiB by default)",
            Call::FetchJwtSvid => {
                "configure the issuer to return fewer or smaller tokens to this workload"
            }
            Call::ValidateJwtSvid => "the token has too many claims",
        };
        let (reason, text) = match code {
            GrpcCode::OutOfRange if said.starts_with("Error, decoded message length too large") => {
                (
                    Reason::MessageTooLarge,
                    format!(
                        "the agent at {place} sent a message larger than allowed ({said}); {fix}"
                    ),
                )
            }
            GrpcCode::Internal if said.starts_with("failed to decode Protobuf message") => (
                Reason::InvalidAnswer,
                format!(
                    "the message of the agent at {place} cannot be read ({said}); if this \
                     repeats, check that this is a Workload API"
                ),
            ),
            // The task behind the channel has ended, for example after a panic of a connector.
            GrpcCode::Unknown if said.starts_with("Service was not ready") => (
                Reason::Disconnected,
                format!(
                    "the connection to {place} broke before the call could be made: {said}; the \
                     next call reconnects"
                ),
            ),
            _ => return None,
        };
        Some(Self::new(call, reason, text))
    }

    /// Returns the call that failed.
    pub fn call(&self) -> Call {
        self.call
    }

    /// Returns the class.
    pub fn reason(&self) -> WorkloadApiErrorReason {
        self.reason
    }

    /// Returns the gRPC code, if the agent returned one.
    pub fn code(&self) -> Option<GrpcCode> {
        self.code
    }

    /// Whether the agent responded: with an error status, or with a response that cannot be used.
    pub(crate) fn is_answer(&self) -> bool {
        use WorkloadApiErrorReason as Reason;
        self.code.is_some()
            || matches!(
                self.reason,
                Reason::PermissionDenied
                    | Reason::InvalidAnswer
                    | Reason::MessageTooLarge
                    | Reason::NoSuchHint
            )
    }

    /// Returns whether the same call may succeed later, with backoff (Workload Endpoint, appendix A).
    ///
    /// This is per call: SPIRE returns `InvalidArgument` to `ValidateJWTSVID` for every token that it
    /// rejects, which is final for that token but not for the client.
    pub fn is_retryable(&self) -> bool {
        use WorkloadApiErrorReason as Reason;
        !matches!(
            self.reason,
            Reason::InvalidArgument
                | Reason::Unimplemented
                | Reason::InvalidRequest
                | Reason::NoRuntime
        )
    }

    /// Whether the connection itself may be broken after this.
    pub(crate) fn casts_doubt_on_connection(&self) -> bool {
        use WorkloadApiErrorReason as Reason;
        matches!(self.reason, Reason::Timeout | Reason::Disconnected)
    }

    /// The `kind` for metrics.
    pub(crate) fn kind(&self) -> &'static str {
        use WorkloadApiErrorReason as Reason;
        match self.reason {
            Reason::NoSocket | Reason::Refused | Reason::Connect => "connect",
            Reason::NotGrpc => "not-grpc",
            Reason::Disconnected => "disconnected",
            Reason::Timeout => "timeout",
            Reason::Unavailable => "unavailable",
            Reason::PermissionDenied => "permission-denied",
            Reason::InvalidArgument => "invalid-argument",
            Reason::Unimplemented => "unimplemented",
            Reason::InvalidAnswer => "invalid-answer",
            Reason::Status => "status",
            Reason::MessageTooLarge => "message-too-large",
            Reason::NoSuchHint | Reason::InvalidRequest | Reason::NoRuntime => "request",
        }
    }
}

impl fmt::Display for WorkloadApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.message)
    }
}

impl Error for WorkloadApiError {}

impl From<WorkloadApiError> for FetchSvidError {
    fn from(error: WorkloadApiError) -> Self {
        use WorkloadApiErrorReason as Reason;
        let reason = match error.reason {
            Reason::NoSocket
            | Reason::Refused
            | Reason::Connect
            | Reason::NotGrpc
            | Reason::Disconnected
            | Reason::Unavailable => FetchSvidReason::Unavailable,
            Reason::Timeout => FetchSvidReason::Timeout,
            Reason::PermissionDenied | Reason::NoSuchHint => FetchSvidReason::Denied,
            Reason::InvalidArgument | Reason::Unimplemented | Reason::InvalidRequest => {
                FetchSvidReason::InvalidRequest
            }
            Reason::InvalidAnswer | Reason::MessageTooLarge => FetchSvidReason::Unacceptable,
            Reason::NoRuntime => FetchSvidReason::NoRuntime,
            Reason::Status => FetchSvidReason::Other,
        };
        let text = error.to_string();
        match error.code {
            Some(code) => Self::new(reason, text).with_code(code),
            None => Self::new(reason, text),
        }
    }
}

/// The errors that a status wraps, from the outside in.
fn causes(status: &tonic::Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    successors(status.source(), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ep12_retryable_depends_on_the_call() {
        let status = |code| tonic::Status::new(code, "no");
        for (code, retryable) in [
            (tonic::Code::InvalidArgument, false),
            (tonic::Code::Unimplemented, false),
            (tonic::Code::Unavailable, true),
            (tonic::Code::PermissionDenied, true),
            (tonic::Code::Internal, true),
            (tonic::Code::Unknown, true),
        ] {
            for call in [
                Call::FetchJwtBundles,
                Call::FetchJwtSvid,
                Call::ValidateJwtSvid,
            ] {
                let error =
                    WorkloadApiError::from_status(call, "unix:///p", false, &status(code), None);
                assert_eq!(error.is_retryable(), retryable, "{error}");
                assert_eq!(error.code(), Some(GrpcCode::from_i32(code as i32)));
            }
        }
    }
}
