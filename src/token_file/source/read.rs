//! One read of a token file.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use crate::identity::SpiffeId;
use crate::jwt::{Algorithm, Header, Split, decode};
use crate::token::{FetchSvidError, FetchSvidReason, JwtSvid, SvidRequest};

/// Enough for a token of the maximum length and white space around it.
const MAX_LEN: u64 = 16 * 1024;

/// Why the token of a file cannot be sent.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) error: FetchSvidError,
    /// Whether the file has a token, of another audience or identity.
    pub(super) is_other: bool,
}

impl Fault {
    fn new(reason: FetchSvidReason, is_other: bool, text: String) -> Self {
        let error = FetchSvidError::new(reason, text);
        Self { error, is_other }
    }
}

/// Reads the file. Blocks.
pub(super) fn read(
    path: &Path,
    audiences: &SvidRequest,
    id: Option<&SpiffeId>,
) -> Result<JwtSvid, Fault> {
    let bytes = contents(path).map_err(|error| {
        let text = format!(
            "token file {path:?} cannot be read: {error}; check that the process that writes it runs"
        );
        // Other files are not affected, so the reason is not `Unavailable`.
        Fault::new(FetchSvidReason::Other, false, text)
    })?;
    let malformed = |why: &str| {
        let text = format!(
            "token file {path:?} has no complete token: {why}; check the process that writes it"
        );
        Fault::new(FetchSvidReason::Unacceptable, false, text)
    };
    let other = |text| Err(Fault::new(FetchSvidReason::Unacceptable, true, text));
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
        let expected: Vec<_> = audiences.audiences().collect();
        return other(format!(
            "token file {path:?} has a token for other audiences than {expected:?}: check which token \
             its writer requests"
        ));
    }
    if let Some(id) = id.filter(|id| *id != svid.spiffe_id()) {
        return other(format!(
            "token file {path:?} has a token of another identity than {id}: {}; check its writer",
            svid.spiffe_id()
        ));
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
    let after = file.metadata()?;
    let lengths = [after.len(), bytes.len() as u64];
    let is_same = lengths == [before.len(); 2] && before.modified().ok() == after.modified().ok();
    Ok(is_same.then_some(bytes))
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
