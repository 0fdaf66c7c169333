//! The reasons of rejections, with their fixed statuses, codes and texts.

use std::fmt;

use http::{HeaderValue, StatusCode};

use crate::bundle::BundlesUnavailable;
use crate::grpc_code::GrpcCode;
use crate::verify::ValidateReason;

/// The class of a [`Rejection`](super::Rejection).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionReason {
    /// The request has no bearer credential.
    Missing,
    /// The header does not carry exactly one bearer credential.
    Malformed,
    /// The token is invalid.
    Token(ValidateReason),
    /// The policy denies this caller.
    NotAllowed,
    /// Tokens cannot be verified now: the server has no bundles, or stale ones.
    BundlesUnavailable(BundlesUnavailable),
    /// The policy could not decide.
    PolicyUnavailable(PolicyFailure),
    /// [`ValidateJwtSvidLayer`](super::ValidateJwtSvidLayer) is missing from the stack.
    NotWired,
}

/// Why a policy could not decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PolicyFailure {
    /// The policy reported an error.
    Failed,
    /// The policy did not decide within its timeout.
    TimedOut,
    /// Too many requests wait for a decision.
    TooManyInFlight,
}

impl PolicyFailure {
    /// Returns a short name for labels: `failed`, `timed-out` or `too-many-in-flight`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::TimedOut => "timed-out",
            Self::TooManyInFlight => "too-many-in-flight",
        }
    }
}

impl fmt::Display for PolicyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "the policy reported an error",
            Self::TimedOut => "the policy did not decide in time",
            Self::TooManyInFlight => "too many requests wait for a decision",
        })
    }
}

/// The response to an invalid token.
pub(super) struct Answer {
    pub(super) description: &'static str,
    /// The challenge of the default realm.
    pub(super) challenge: &'static HeaderValue,
}

macro_rules! default_challenge {
    ($($more:literal),*) => {{
        // Checked at compile time, and created once.
        static CHALLENGE: HeaderValue =
            HeaderValue::from_static(concat!("Bearer realm=\"spiffe\"", $($more),*));
        &CHALLENGE
    }};
}

macro_rules! answer {
    ($description:literal) => {
        Answer {
            description: $description,
            challenge: default_challenge!(
                ", error=\"invalid_token\", error_description=\"",
                $description,
                "\""
            ),
        }
    };
}

impl RejectionReason {
    /// Returns a short name for labels: `missing`, `malformed-header`, the class of the invalid
    /// token ([`ValidateReason::as_str`]), `not-allowed`, `cannot-judge`, `policy-unavailable` or
    /// `not-wired`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed-header",
            Self::Token(reason) => reason.as_str(),
            Self::NotAllowed => "not-allowed",
            Self::BundlesUnavailable(_) => "cannot-judge",
            Self::PolicyUnavailable(_) => "policy-unavailable",
            Self::NotWired => "not-wired",
        }
    }

    /// Returns the HTTP status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Missing | Self::Token(_) => StatusCode::UNAUTHORIZED,
            Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::BundlesUnavailable(_) | Self::PolicyUnavailable(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::NotWired => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the gRPC status code.
    pub fn grpc_code(self) -> GrpcCode {
        match self {
            Self::Missing | Self::Malformed | Self::Token(_) => GrpcCode::Unauthenticated,
            Self::NotAllowed => GrpcCode::PermissionDenied,
            Self::BundlesUnavailable(_) | Self::PolicyUnavailable(_) => GrpcCode::Unavailable,
            Self::NotWired => GrpcCode::Internal,
        }
    }

    /// Returns the text that the caller receives: a fixed text per class.
    pub fn description(self) -> &'static str {
        match self {
            Self::Missing => "a bearer token is required",
            Self::Malformed => "the header does not carry exactly one bearer token",
            Self::Token(reason) => token_answer(reason).description,
            Self::NotAllowed => "the caller is not allowed",
            Self::BundlesUnavailable(_) => "callers cannot be authenticated now",
            Self::PolicyUnavailable(_) => "callers cannot be authorized now",
            Self::NotWired => "ValidateJwtSvidLayer is missing from the stack",
        }
    }

    /// The error code of RFC 6750 section 3.1.
    pub(super) fn error_code(self) -> Option<&'static str> {
        match self {
            Self::Malformed => Some("invalid_request"),
            Self::Token(_) => Some("invalid_token"),
            Self::NotAllowed => Some("insufficient_scope"),
            Self::Missing
            | Self::BundlesUnavailable(_)
            | Self::PolicyUnavailable(_)
            | Self::NotWired => None,
        }
    }

    /// The challenge of the default realm. It is precomputed, because rejections can be very
    /// frequent. `None` if no credential would help.
    pub(super) fn default_challenge(self) -> Option<&'static HeaderValue> {
        match self {
            Self::Missing => Some(default_challenge!()),
            Self::Malformed => Some(default_challenge!(", error=\"invalid_request\"")),
            Self::Token(reason) => Some(token_answer(reason).challenge),
            Self::NotAllowed => Some(default_challenge!(", error=\"insufficient_scope\"")),
            Self::BundlesUnavailable(_) | Self::PolicyUnavailable(_) | Self::NotWired => None,
        }
    }
}

/// The response to every invalid token, with
/// [`uniform_token_errors`](super::ValidateJwtSvidLayer::uniform_token_errors).
pub(super) fn uniform_answer() -> Answer {
    answer!("the token is invalid")
}

fn token_answer(reason: ValidateReason) -> Answer {
    match reason {
        ValidateReason::TooLong
        | ValidateReason::Malformed
        | ValidateReason::Header
        | ValidateReason::Claims => answer!("the token is malformed"),
        ValidateReason::Algorithm | ValidateReason::KeyUnfit => {
            answer!("the token's algorithm is not allowed")
        }
        ValidateReason::Expired => answer!("the token has expired"),
        ValidateReason::NotYetValid => answer!("the token is not yet valid"),
        ValidateReason::Audience => answer!("the token is for another audience"),
        ValidateReason::TrustDomainUnknown | ValidateReason::KeyUnknown => {
            answer!("the token's signing key is unknown")
        }
        ValidateReason::Signature => answer!("the token's signature is wrong"),
        ValidateReason::BundlesUnavailable(_) => answer!("callers cannot be authenticated now"),
    }
}

impl fmt::Display for RejectionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}
