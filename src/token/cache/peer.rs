//! The gRPC status that a peer gets for a [`TokenError`](super::TokenError): a code and a fixed
//! text for each class, without details.

use super::error::TokenErrorReason;
use crate::grpc_code::GrpcCode;

impl TokenErrorReason {
    /// The code and the text of the class. They reach the peer if a handler returns the error, so
    /// they do not mention the agent or the audience, and never indicate that the peer's credential
    /// is invalid.
    pub(super) const fn for_peer(self) -> (GrpcCode, &'static str) {
        match self {
            Self::DeadlineExceeded => (
                GrpcCode::DeadlineExceeded,
                "an outgoing call was not sent: its deadline ended while it waited for a token",
            ),
            Self::Denied
            | Self::InvalidRequest
            | Self::NoRuntime
            | Self::NoOrigin
            | Self::ForeignOrigin
            | Self::Plaintext
            | Self::HeaderPresent => (
                GrpcCode::Internal,
                "an outgoing call was not sent: the registration or the configuration of its \
                 sender does not allow it; see the logs of the sender",
            ),
            Self::Unavailable
            | Self::StaleToken
            | Self::Timeout
            | Self::Unacceptable
            | Self::ClockSkew
            | Self::Full
            | Self::Closed
            | Self::Panicked
            | Self::Other => (
                GrpcCode::Unavailable,
                "an outgoing call was not sent: there is no token for it now; retry later",
            ),
        }
    }
}
