//! One file.

use std::path::PathBuf;

use super::format::BundleFormat;

/// A file with bundles, and its format.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) path: PathBuf,
    pub(super) format: BundleFormat,
}
