//! One write: a temporary file, then a rename.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{TokenFileError, TokenFileErrorReason};
use super::shown;
use crate::cause::Cause;

/// The path, the mode and the owner of a token file.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) path: PathBuf,
    #[cfg(unix)]
    pub(super) mode: u32,
    #[cfg(unix)]
    pub(super) owner: Option<u32>,
    #[cfg(unix)]
    pub(super) group: Option<u32>,
}

/// Identifies a file on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    #[cfg(unix)]
    device: u64,
    #[cfg(unix)]
    inode: u64,
}

/// Why a write failed.
pub(super) struct WriteError {
    /// What failed, the cause and a fix.
    pub(super) text: Arc<str>,
    pub(super) cause: Option<Cause>,
}

impl WriteError {
    pub(super) fn panicked() -> Self {
        Self {
            text: Arc::from("the write panicked"),
            cause: None,
        }
    }
}

impl Target {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            #[cfg(unix)]
            mode: 0o600,
            #[cfg(unix)]
            owner: None,
            #[cfg(unix)]
            group: None,
        }
    }

    pub(super) fn check(&self) -> Result<(), TokenFileError> {
        // `Path` ignores a slash at the end, which makes the path a directory.
        let bytes = self.path.as_os_str().as_encoded_bytes();
        let asks_for_directory = bytes.last().is_some_and(|last| {
            char::from(*last) == std::path::MAIN_SEPARATOR || *last == b'/' || *last == 0
        });
        if self.path.file_name().is_none() || asks_for_directory || bytes.contains(&0) {
            let text = format!(
                "token file {} cannot be written: the path has no file name; add one",
                shown(&self.path)
            );
            return Err(TokenFileError::new(TokenFileErrorReason::Path, text));
        }
        #[cfg(unix)]
        if self.mode & !0o777 != 0 {
            let text = format!(
                "mode {:o} of a token file is invalid: it has bits that are not permissions; use 600, \
                 or 640 with a group",
                self.mode
            );
            return Err(TokenFileError::new(TokenFileErrorReason::Mode, text));
        }
        Ok(())
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    /// Replaces the file at the path with one that has `token`.
    pub(super) fn write(&self, token: &str) -> Result<FileId, WriteError> {
        let (mut file, temporary) = self
            .create()
            .map_err(|error| self.failed("a temporary file", error))?;
        let written = self
            .fill(&mut file, token)
            .map_err(|error| self.failed("its content", error))?;
        // Windows does not rename open files.
        drop(file);
        temporary
            .rename_to(&self.path)
            .map_err(|error| self.failed("its name", error))?;
        // Matters only if the machine crashes, and after a crash the token is written again.
        #[cfg(unix)]
        let _ = File::open(self.directory()).and_then(|directory| directory.sync_all());
        Ok(written)
    }

    fn fill(&self, file: &mut File, token: &str) -> io::Result<FileId> {
        // The owner is set before others may read the file.
        #[cfg(unix)]
        if self.owner.is_some() || self.group.is_some() {
            std::os::unix::fs::fchown(&*file, self.owner, self.group)?;
        }
        file.write_all(token.as_bytes())?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            file.set_permissions(fs::Permissions::from_mode(self.mode))?;
        }
        file.sync_all()?;
        Ok(FileId::of(&file.metadata()?))
    }

    /// Creates a new file in the target's directory, for this user only.
    fn create(&self) -> io::Result<(File, Temporary)> {
        const TRIES: u32 = 8;
        let mut options = OpenOptions::new();
        // Fails if the path exists, even as a link.
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut tries = 0;
        loop {
            let name = format!("{}{:016x}.tmp", self.prefix(), fastrand::u64(..));
            let path = self.directory().join(name);
            match options.open(&path) {
                Ok(file) => return Ok((file, Temporary(path))),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < TRIES => {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The first part of the names of temporary files for this path. Its length is fixed.
    fn prefix(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.path.file_name().hash(&mut hasher);
        format!(".spiffe-token-{:016x}-", hasher.finish())
    }

    /// Removes temporary files of this path that were left by a crash.
    pub(super) fn remove_leftovers(&self) {
        let prefix = self.prefix();
        let is_ours = |name: &OsStr| {
            let name = name.as_encoded_bytes();
            name.starts_with(prefix.as_bytes()) && name.ends_with(b".tmp")
        };
        let Ok(entries) = fs::read_dir(self.directory()) else {
            return;
        };
        for entry in entries.flatten() {
            if is_ours(&entry.file_name()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes the file, if it is the one that was written.
    pub(super) fn remove(&self, written: FileId) -> io::Result<()> {
        match fs::symlink_metadata(&self.path) {
            Ok(there) if FileId::of(&there) == written => fs::remove_file(&self.path),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn failed(&self, what: &str, error: io::Error) -> WriteError {
        let fix = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "create its directory",
            // Windows reports all three in the same way.
            io::ErrorKind::PermissionDenied if cfg!(windows) && self.path.is_dir() => {
                "remove the directory that is there"
            }
            io::ErrorKind::PermissionDenied if cfg!(windows) => {
                "let this user write to its directory, and close the file in programs that read it"
            }
            io::ErrorKind::PermissionDenied => {
                "let this user write to its directory, and set only an owner and group that it is \
                 allowed to set"
            }
            io::ErrorKind::ReadOnlyFilesystem => "mount its directory writable",
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => "free space on its disk",
            io::ErrorKind::IsADirectory | io::ErrorKind::DirectoryNotEmpty => {
                "remove the directory that is there"
            }
            _ => "check its directory and its disk",
        };
        let text = format!(
            "token file {} cannot be written ({what}): {error}; {fix}",
            shown(&self.path)
        );
        WriteError {
            text: text.into(),
            cause: Some(error.into()),
        }
    }
}

impl FileId {
    #[cfg(unix)]
    fn of(metadata: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }

    #[cfg(not(unix))]
    fn of(_: &fs::Metadata) -> Self {
        Self {}
    }
}

/// A temporary file, removed when this is dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn rename_to(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.0, path)?;
        self.0 = PathBuf::new();
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.0);
        }
    }
}
