//! The error of an invalid policy.

use std::fmt;

use crate::identity::SpiffeIdError;

/// An invalid policy. It is reported when the policy is built, never for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// The policy allows no caller.
    Empty,
    /// A text is not a SPIFFE ID.
    SpiffeId {
        /// The text, as configured.
        text: String,
        /// Why it is invalid.
        error: SpiffeIdError,
    },
    /// A text is not the name of a trust domain.
    TrustDomain {
        /// The text, as configured.
        text: String,
        /// Why it is invalid.
        error: SpiffeIdError,
    },
    /// A text is not the path of a gRPC method.
    MethodPath(String),
    /// A gRPC method has two rules.
    MethodTwice(String),
    /// A text is not the full name of a gRPC service.
    ServiceName(String),
    /// A gRPC service has two rules.
    ServiceTwice(String),
    /// A text is not the prefix of a path.
    Prefix(String),
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str(
                "the policy allows no caller; name at least one caller or method, or write \
                 `Allow::any_trust_domain()`",
            ),
            Self::SpiffeId { text, error } => {
                write!(
                    f,
                    "the policy names {text:?}, which is not a SPIFFE ID: {error}"
                )?;
                if text.contains('*') {
                    f.write_str(
                        "; there are no wildcards: `Allow::path_prefix` allows an ID and all IDs \
                         under it, `Allow::trust_domain` a whole trust domain",
                    )?;
                }
                Ok(())
            }
            Self::TrustDomain { text, error } => {
                write!(
                    f,
                    "the policy names {text:?}, which is not a trust domain: {error}"
                )
            }
            Self::MethodPath(path) => {
                write!(
                    f,
                    "{path:?} is not the path of a gRPC method; write `/package.Service/Method`"
                )?;
                if is_wildcard(path) {
                    write!(
                        f,
                        "; there are no wildcards: `.service({0}, …)` or `.public_service({0})` has \
                         one rule for all methods of a service",
                        named(path)
                    )?;
                }
                Ok(())
            }
            Self::ServiceName(name) => {
                write!(
                    f,
                    "{name:?} is not the full name of a gRPC service; write `package.Service`"
                )?;
                if is_wildcard(name) {
                    f.write_str(
                        ", without `*`: a rule of a service is for all of its methods, and there \
                         are no rules for whole packages",
                    )?;
                }
                Ok(())
            }
            Self::Prefix(prefix) => write!(
                f,
                "{prefix:?} is not a path prefix; write `/api`, of plain segments without a slash \
                 at the end"
            ),
            Self::MethodTwice(text) | Self::ServiceTwice(text) => {
                write!(f, "{text:?} has two rules; join them with `Allow::or`")
            }
        }
    }
}

/// Whether the text means a whole service: `/package.Service/*`, `/package.Service/` or
/// `/package.Service`.
fn is_wildcard(text: &str) -> bool {
    let slashes = text.bytes().filter(|b| *b == b'/').count();
    text.contains('*') || (text.starts_with('/') && (slashes == 1 || text.ends_with('/')))
}

/// The service in such a text, if it can be recognized.
fn named(text: &str) -> String {
    let name = text.trim_start_matches('/').split('/').next();
    let is_name = |name: &&str| !name.is_empty() && !name.contains('*');
    format!("{:?}", name.filter(is_name).unwrap_or("package.Service"))
}

impl std::error::Error for PolicyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::SpiffeId { error, .. } | Self::TrustDomain { error, .. } => Some(error),
            _ => None,
        }
    }
}
