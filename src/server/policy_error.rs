//! Why a policy cannot be.

use std::fmt;

use crate::identity::SpiffeIdError;

/// Why a policy cannot be: found when it is built, never when a request comes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// It would admit nobody at all.
    Empty,
    /// A text is not a SPIFFE ID.
    SpiffeId {
        /// The text, as configured.
        text: String,
        /// What is wrong with it.
        error: SpiffeIdError,
    },
    /// A text is not the name of a trust domain.
    TrustDomain {
        /// The text, as configured.
        text: String,
        /// What is wrong with it.
        error: SpiffeIdError,
    },
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
            Self::SpiffeId { text, error } => {
                write!(
                    f,
                    "the policy names {text:?}, which is no SPIFFE ID: {error}"
                )?;
                if text.contains('*') {
                    f.write_str(
                        "; there are no wildcards: `Allow::path_prefix` admits an ID and all below \
                         it, `Allow::trust_domain` a whole trust domain",
                    )?;
                }
                Ok(())
            }
            Self::TrustDomain { text, error } => {
                write!(
                    f,
                    "the policy names {text:?}, which is no trust domain: {error}"
                )
            }
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
            Self::SpiffeId { error, .. } | Self::TrustDomain { error, .. } => Some(error),
            _ => None,
        }
    }
}
