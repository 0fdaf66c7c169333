//! Errors of policy files.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::server::PolicyError;

/// Why a [`PolicyDocument`](super::PolicyDocument) is invalid, or why a
/// [`FilePolicy`](super::FilePolicy) cannot be opened or read again.
///
/// The text is one bounded line, with the line and the column if the content is invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePolicyError {
    reason: FilePolicyErrorReason,
    path: Option<PathBuf>,
    position: Option<(usize, usize)>,
    text: Box<str>,
    source: Option<PolicyError>,
}

/// The class of a [`FilePolicyError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FilePolicyErrorReason {
    /// There is no tokio runtime with timers.
    NoRuntime,
    /// The file cannot be read, or is too large.
    Io,
    /// The text is not TOML.
    Syntax,
    /// The text is TOML, but not a valid policy: it has an unknown key, a wrong type, an invalid
    /// value, a rule without effect, or no rule.
    Invalid,
    /// A bug of this crate.
    Internal,
}

impl FilePolicyError {
    pub(super) fn new(reason: FilePolicyErrorReason, text: impl AsRef<str>) -> Self {
        Self {
            reason,
            path: None,
            position: None,
            text: text.as_ref().into(),
            source: None,
        }
    }

    /// Creates an error at this byte of the text.
    pub(super) fn at(
        reason: FilePolicyErrorReason,
        document: &str,
        byte: usize,
        text: impl AsRef<str>,
    ) -> Self {
        Self {
            position: Some(position(document, byte)),
            ..Self::new(reason, text)
        }
    }

    pub(super) fn caused_by(self, source: PolicyError) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    pub(super) fn in_file(self, path: &Path) -> Self {
        Self {
            path: Some(path.to_owned()),
            ..self
        }
    }

    /// Returns the class.
    pub fn reason(&self) -> FilePolicyErrorReason {
        self.reason
    }

    /// Returns the path, if the error is about a file.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Returns the line, from 1, if the content is invalid.
    pub fn line(&self) -> Option<usize> {
        self.position.map(|(line, _)| line)
    }

    /// Returns the column in that line, from 1, counted in characters.
    pub fn column(&self) -> Option<usize> {
        self.position.map(|(_, column)| column)
    }

    /// The text without the path.
    pub(super) fn text(&self) -> String {
        match self.position {
            Some((line, column)) => format!("line {line}, column {column}: {}", self.text),
            None => self.text.to_string(),
        }
    }
}

/// The line and the column of a byte, both from 1.
pub(super) fn position(document: &str, byte: usize) -> (usize, usize) {
    let bytes = document.as_bytes();
    let before = bytes.get(..byte).unwrap_or(bytes);
    let line_start = before
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let line_prefix = before.get(line_start..).unwrap_or_default();
    // Bytes that begin a character.
    let column = line_prefix.iter().filter(|b| **b & 0xc0 != 0x80).count() + 1;
    (line, column)
}

impl fmt::Display for FilePolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "policy file {}: {}", path.display(), self.text()),
            None => write!(f, "policy file: {}", self.text()),
        }
    }
}

impl Error for FilePolicyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.source.as_ref()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters() {
        let text = "ab\näöü\n\nx";
        for (byte, expected) in [
            (0, (1, 1)),
            (2, (1, 3)),
            (3, (2, 1)),
            (5, (2, 2)),
            (10, (3, 1)),
            (11, (4, 1)),
            (12, (4, 2)),
            (99, (4, 2)),
        ] {
            assert_eq!(position(text, byte), expected, "{byte}");
        }
        assert_eq!(position("", 0), (1, 1));
    }
}
