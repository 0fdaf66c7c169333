//! One read of a token file.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::path::Path;

use super::super::shown;
use crate::identity::SpiffeId;
use crate::jwt::{Algorithm, Header, Split, decode};
use crate::token::{FetchSvidError, FetchSvidReason, JwtSvid, SvidRequest};

/// Enough for a token of the maximum length and white space around it.
const MAX_LEN: u64 = 16 * 1024;

/// Why the token of a file cannot be sent.
#[derive(Debug)]
pub(super) enum Fault {
    /// The file is missing or cannot be read.
    Unreadable(String),
    /// The file has no token, or only a part of one.
    Malformed(String),
    /// The file has a token of another audience or identity.
    Other(String),
}

impl Fault {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Unreadable(text) | Self::Malformed(text) | Self::Other(text) => text,
        }
    }

    pub(super) fn error(self) -> FetchSvidError {
        match self {
            // Other files are not affected, so the reason is not `Unavailable`.
            Self::Unreadable(text) => FetchSvidError::new(FetchSvidReason::Other, text),
            Self::Malformed(text) | Self::Other(text) => {
                FetchSvidError::new(FetchSvidReason::Unacceptable, text)
            }
        }
    }
}

/// Reads the file. Blocks.
pub(super) fn read(
    path: &Path,
    audiences: &SvidRequest,
    id: Option<&SpiffeId>,
) -> Result<JwtSvid, Fault> {
    let bytes = contents(path).map_err(|error| {
        Fault::Unreadable(format!(
            "token file {} cannot be read: {error}; check that the process that writes it runs",
            shown(path)
        ))
    })?;
    let malformed = |why: &str| {
        Fault::Malformed(format!(
            "token file {} has no complete token: {why}; check the process that writes it",
            shown(path)
        ))
    };
    let bytes = bytes.ok_or_else(|| malformed("it changed while it was read"))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| malformed("it is not text"))?;
    let text = text.trim_ascii();
    if text.is_empty() {
        return Err(malformed("it is empty"));
    }
    let svid =
        JwtSvid::parse_unverified(text, "").map_err(|error| malformed(&error.to_string()))?;
    if !has_whole_signature(text) {
        return Err(malformed("its signature is too short for its `alg`"));
    }
    if !audiences.has_audiences_of(&svid) {
        return Err(Fault::Other(format!(
            "token file {} has a token for other audiences than {:?}: check which token its writer \
             requests",
            shown(path),
            audiences.audiences().collect::<Vec<_>>()
        )));
    }
    if let Some(id) = id.filter(|id| *id != svid.spiffe_id()) {
        return Err(Fault::Other(format!(
            "token file {} has a token of another identity than {id}: {}; check its writer",
            shown(path),
            svid.spiffe_id()
        )));
    }
    Ok(svid)
}

/// Returns the bytes of the file; `None` if it changed while it was read.
fn contents(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // Checked before it is opened: opening a pipe would wait for its writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = File::open(path)?;
    let before = file.metadata()?;
    if before.len() > MAX_LEN {
        return Err(io::Error::other("it is larger than 16 KiB"));
    }
    let mut bytes = Vec::new();
    (&file).take(MAX_LEN + 1).read_to_end(&mut bytes)?;
    let is_same = is_same(&before, &file.metadata()?) && before.len() == bytes.len() as u64;
    Ok(is_same.then_some(bytes))
}

fn is_same(before: &Metadata, after: &Metadata) -> bool {
    before.len() == after.len() && before.modified().ok() == after.modified().ok()
}

/// Whether the signature has the length of its algorithm. Otherwise a token with a truncated
/// signature would look complete.
fn has_whole_signature(token: &str) -> bool {
    let lengths = || {
        let split = Split::new(token)?;
        let header = decode(split.header)?;
        let header = Header::parse(&header, true).ok()?;
        Some((header.algorithm, decode(split.signature)?.len()))
    };
    match lengths() {
        Some((Algorithm::ES256, length)) => length == 64,
        Some((Algorithm::ES384, length)) => length == 96,
        Some((Algorithm::ES512, length)) => length == 132,
        // Keys of 2048 bits and more, in steps of 1024.
        Some((_, length)) => length >= 256 && length.is_multiple_of(128),
        None => false,
    }
}
