//! Why a policy cannot be.

use std::convert::Infallible;
use std::fmt;

use crate::spiffe_id::SpiffeIdError;

/// Why a policy cannot be: found when it is built, never when a request comes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// It would admit nobody at all.
    Empty,
    /// A text is not a SPIFFE ID, or not the name of a trust domain.
    SpiffeId(SpiffeIdError),
    /// A text is not the path of a gRPC method.
    MethodPath(String),
    /// A gRPC method has two rules.
    MethodTwice(String),
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str(
                "the policy admits nobody; name at least one caller or method, or write \
                 `Allow::any_trust_domain()`",
            ),
            Self::SpiffeId(error) => write!(
                f,
                "the policy names something that is no SPIFFE ID or trust domain: {error}"
            ),
            Self::MethodPath(path) => write!(
                f,
                "{path:?} is not the path of a gRPC method; write `/package.Service/Method`"
            ),
            Self::MethodTwice(path) => {
                write!(f, "{path:?} has two rules; join them with `Allow::or`")
            }
        }
    }
}

impl std::error::Error for PolicyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::SpiffeId(error) => Some(error),
            _ => None,
        }
    }
}

impl From<SpiffeIdError> for PolicyError {
    fn from(error: SpiffeIdError) -> Self {
        Self::SpiffeId(error)
    }
}

/// So that a `SpiffeId` that is one already is taken as well as a text.
impl From<Infallible> for PolicyError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
