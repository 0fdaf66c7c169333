//! A policy parsed from text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use http::request::Parts;

use super::error::FilePolicyError;
use super::explain::PolicyExplanation;
use super::rules::Rules;
use crate::server::{Decision, Policy, original_uri};
use crate::verify::VerifiedSvid;

/// A fixed policy, parsed from text in the format of [`FilePolicy`](super::FilePolicy). Clones are
/// cheap.
///
/// ```
/// use tower_spiffe::server::PolicyDocument;
///
/// let policy: PolicyDocument = r#"
///     [[rule]]
///     path = "/reports/{id}"
///     methods = ["GET"]
///     trust_domains = ["example.org"]
/// "#.parse()?;
/// assert_eq!(policy.len(), 1);
///
/// let error = "[[rule]]\npath = '/reports'\n".parse::<PolicyDocument>().unwrap_err();
/// assert_eq!((error.line(), error.column()), (Some(1), Some(1)));
/// # Ok::<(), tower_spiffe::server::FilePolicyError>(())
/// ```
#[derive(Clone)]
pub struct PolicyDocument {
    rules: Arc<Rules>,
    paths: Paths,
}

/// The path that the patterns are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paths {
    /// The path of the request, as the router inside the layer sees it.
    Seen,
    /// The path that the client requested.
    Original,
}

impl Paths {
    pub(super) fn of(self, parts: &Parts) -> &str {
        match self {
            Self::Seen => parts.uri.path(),
            Self::Original => original_uri(parts).path(),
        }
    }
}

impl PolicyDocument {
    /// Parses a policy.
    ///
    /// # Errors
    /// The text is not TOML, or not a valid policy: it has an unknown key, an invalid value, a rule
    /// without effect, or no rule. The error has the line and the column.
    pub fn parse(text: &str) -> Result<Self, FilePolicyError> {
        let rules = Rules::read(text)?;
        Ok(Self::new(Arc::new(rules), Paths::Seen))
    }

    pub(super) fn new(rules: Arc<Rules>, paths: Paths) -> Self {
        Self { rules, paths }
    }

    /// Compares patterns with the [original URI](original_uri), for a layer inside of axum's
    /// `Router::nest`.
    #[must_use]
    pub fn match_original_uri(self) -> Self {
        Self {
            paths: Paths::Original,
            ..self
        }
    }

    /// Returns the number of rules; at least one.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.rules.rules.len()
    }

    /// Explains the decision about this request.
    pub fn explain(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> PolicyExplanation {
        let path = self.paths.of(parts);
        PolicyExplanation::new(&self.rules, caller, &parts.method, path)
    }
}

impl FromStr for PolicyDocument {
    type Err = FilePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Policy for PolicyDocument {
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision {
        let path = self.paths.of(parts);
        self.rules.decide(caller, &parts.method, path)
    }

    fn is_public(&self, parts: &Parts) -> bool {
        self.rules.is_public(&parts.method, self.paths.of(parts))
    }
}

impl fmt::Debug for PolicyDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyDocument")
            .field("rules", &self.len())
            .field("paths", &self.paths)
            .finish()
    }
}
