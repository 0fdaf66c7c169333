//! One file.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use super::format::BundleFormat;

/// Where bundles stand, and how.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) path: PathBuf,
    pub(super) format: BundleFormat,
}

impl Document {
    pub(super) fn read(&self, max_bytes: u64) -> io::Result<Vec<u8>> {
        // What is none, a pipe say, may never end.
        if !std::fs::metadata(&self.path)?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no regular file",
            ));
        }
        let mut bytes = Vec::new();
        // One byte more than allowed, to see that there is more.
        let read = File::open(&self.path)?
            .take(max_bytes.saturating_add(1))
            .read_to_end(&mut bytes)?;
        if u64::try_from(read).unwrap_or(u64::MAX) > max_bytes {
            let text = format!("it has more than the {max_bytes} bytes allowed");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(bytes)
    }
}
