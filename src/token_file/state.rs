//! The state of a token file for operators.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::SpiffeId;
use crate::token::SvidRequest;

/// The state of a [`TokenFile`](super::TokenFile) at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TokenFileState {
    /// The path of the file.
    pub path: PathBuf,
    /// The request of the token.
    pub request: SvidRequest,
    /// The `sub` of the token in the file. `None` before the first write.
    pub spiffe_id: Option<SpiffeId>,
    /// The time until the token in the file expires; zero if it has expired. `None` before the
    /// first write.
    pub expires_in: Option<Duration>,
    /// The time since the last write. `None` before the first one.
    pub last_write: Option<Duration>,
    /// Writes that succeeded.
    pub writes: u64,
    /// Writes that failed.
    pub failures: u64,
    /// The error of the last write. `None` if it succeeded.
    pub last_error: Option<Arc<str>>,
    /// The error of the last action after a write. `None` if it succeeded.
    pub after_write_error: Option<Arc<str>>,
    /// Whether the file is still refreshed.
    pub refreshed: bool,
}
