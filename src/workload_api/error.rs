//! Why a call to the Workload API gave nothing.

use std::error::Error as _;
use std::fmt;
use std::io;
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
    /// `FetchJWTSVID`: tokens of our own.
    FetchJwtSvid,
    /// `FetchJWTBundles`: the stream of bundles.
    FetchJwtBundles,
    /// `ValidateJWTSVID`: the agent judges a token.
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

/// Why a call to the Workload API gave nothing: what failed, where, and what to do about it.
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
    /// No connection for another reason: not permitted, not in time.
    Connect,
    /// What answered speaks no HTTP/2.
    NotGrpc,
    /// The connection broke before the answer was complete.
    Disconnected,
    /// No answer in time.
    Timeout,
    /// The agent cannot serve now (EP-13).
    Unavailable,
    /// The agent gives this workload no identity; it may, later (EP-14).
    PermissionDenied,
    /// The agent answered `InvalidArgument`. For `ValidateJWTSVID` it means that the token is invalid.
    InvalidArgument,
    /// The agent does not have this call.
    Unimplemented,
    /// Another gRPC status; see [`code`](WorkloadApiError::code).
    Status,
    /// The agent's answer breaks the rules: nothing in it, another identity or audience than
    /// asked for, a token that cannot be read.
    InvalidAnswer,
    /// The agent's message is larger than allowed, and was not read.
    MessageTooLarge,
    /// No identity of this workload has the hint asked for.
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

    /// Of an answer that breaks the rules; `what` is said of the answer.
    pub(crate) fn invalid_answer(call: Call, place: &str, what: impl fmt::Display) -> Self {
        let text = format!(
            "the answer of the agent at {place} is not to be used: {what}; if this repeats, is what \
             answers there the SPIFFE agent?"
        );
        Self::new(call, WorkloadApiErrorReason::InvalidAnswer, text)
    }

    /// From what tonic says. A status with a source was made here, of a broken connection; one
    /// without came from the agent.
    pub(crate) fn from_status(
        call: Call,
        place: &str,
        not_http2: bool,
        status: &tonic::Status,
        asked_for: Option<&SpiffeId>,
    ) -> Self {
        use WorkloadApiErrorReason as Reason;
        if status.source().is_some() {
            if let Some(connect) = connect_error(status) {
                let reason = match connect.kind() {
                    io::ErrorKind::NotFound => Reason::NoSocket,
                    io::ErrorKind::ConnectionRefused => Reason::Refused,
                    _ => Reason::Connect,
                };
                return Self::new(call, reason, connect.to_string());
            }
            if not_http2 {
                let text = format!(
                    "what answers at {place} speaks no HTTP/2, so it is no SPIFFE Workload API; \
                     check the endpoint"
                );
                return Self::new(call, Reason::NotGrpc, text);
            }
            let text = format!(
                "the connection to {place} broke: {}; the agent may be restarting (the next call \
                 reconnects), the endpoint may expect TLS, or the agent may have closed the \
                 connection for too many keepalive pings",
                innermost(status)
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
            (Reason::InvalidArgument, Call::ValidateJwtSvid) => "; it refuses the token",
            (Reason::InvalidArgument, _) => {
                "; it misses the header workload.spiffe.io, or finds the request wrong: does \
                 something between change requests?"
            }
            (Reason::PermissionDenied, _) if asked_for.is_some() => {
                "; is there a registration entry for this workload with this SPIFFE ID at the \
                 SPIFFE server?"
            }
            (Reason::PermissionDenied, _) => {
                "; is there a registration entry for this workload at the SPIFFE server?"
            }
            (Reason::Unimplemented, _) => {
                "; its Workload API has no JWT profile: is this the agent that was meant?"
            }
            (Reason::Unavailable, _) => {
                "; it is there and cannot serve now, for lack of its server perhaps: its log says \
                 why"
            }
            _ => "; its log may say why",
        };
        let asked_for = asked_for.map_or_else(String::new, |id| {
            format!(" for {}", presentable(id.as_str()))
        });
        let text = format!("the agent at {place} answered {code}{asked_for}: \"{said}\"{hint}");
        Self {
            code: Some(code),
            ..Self::new(call, reason, text)
        }
    }

    /// What tonic says in its own words where there is no answer, or one that it does not take.
    fn of_tonic(call: Call, place: &str, code: GrpcCode, said: &str) -> Option<Self> {
        use WorkloadApiErrorReason as Reason;
        let fix = match call {
            Call::FetchJwtBundles => "raise `max_message_bytes` (64 MiB by default)",
            Call::FetchJwtSvid => "have the issuer give this workload fewer or smaller tokens",
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
                     repeats, what answers there is no Workload API"
                ),
            ),
            // The worker behind the channel is gone, as it is when a connector panics.
            GrpcCode::Unknown if said.starts_with("Service was not ready") => (
                Reason::Disconnected,
                format!(
                    "the connection to {place} broke before the call could be made: {said}; the \
                     next call connects anew"
                ),
            ),
            _ => return None,
        };
        Some(Self::new(call, reason, text))
    }

    /// The call that failed.
    pub fn call(&self) -> Call {
        self.call
    }

    /// The class.
    pub fn reason(&self) -> WorkloadApiErrorReason {
        self.reason
    }

    /// The gRPC code, where the agent answered with one.
    pub fn code(&self) -> Option<GrpcCode> {
        self.code
    }

    /// Returns whether the agent answered: with an error status, or with an answer that cannot be
    /// used.
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

    /// Whether the same call may succeed later, with backoff (Workload Endpoint, appendix A).
    ///
    /// It is judged per call: SPIRE answers `InvalidArgument` to `ValidateJWTSVID` for every token
    /// that it refuses, which is final for that token and says nothing about the client.
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

    /// Whether the connection itself is in doubt after this.
    pub(crate) fn casts_doubt_on_connection(&self) -> bool {
        use WorkloadApiErrorReason as Reason;
        matches!(self.reason, Reason::Timeout | Reason::Disconnected)
    }

    /// A word for metrics.
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

impl std::error::Error for WorkloadApiError {}

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

fn connect_error(status: &tonic::Status) -> Option<&ConnectError> {
    let mut next = status.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<ConnectError>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The last error of the chain: what the others only wrap.
fn innermost(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut next = status.source();
    while let Some(error) = next {
        text = error.to_string();
        next = error.source();
    }
    presentable(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ep12_the_rule_is_per_call() {
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
