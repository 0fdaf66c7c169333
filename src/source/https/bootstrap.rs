//! The SPIFFE bundle that verifies an endpoint at first, and the saved bundle.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;

use super::super::own_thread;
use super::super::regular_file;
use super::HttpsBundles;
use super::document::About;
use super::fetch::{BoxError, MAX_BODY};

/// The SPIFFE bundle that verifies an `https_spiffe` endpoint at the first poll. It is the bundle
/// of the trust domain in the endpoint's SPIFFE ID, and is read again at every poll.
#[derive(Clone)]
pub struct SpiffeBootstrap(Origin);

#[derive(Clone)]
enum Origin {
    Text(Arc<[u8]>),
    File(PathBuf),
    Function(Arc<dyn Fn() -> Option<Arc<[u8]>> + Send + Sync>),
}

impl SpiffeBootstrap {
    /// Uses a SPIFFE bundle document, as `spire-server bundle show -format spiffe` prints it.
    pub fn text(document: impl AsRef<[u8]>) -> Self {
        Self(Origin::Text(document.as_ref().into()))
    }

    /// Uses a file with a SPIFFE bundle document, at most 1 MiB.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Self(Origin::File(path.as_ref().into()))
    }

    /// Uses the latest SPIFFE bundle of another source. That source must be for the endpoint's own
    /// trust domain, if it differs from the trust domain whose bundle the endpoint serves.
    pub fn source(bundles: HttpsBundles) -> Self {
        Self::from_fn(move || bundles.spiffe_bundle())
    }

    /// Uses a function that returns the SPIFFE bundle document as it is now, or `None` if it has none.
    /// It must not block.
    pub fn from_fn(read: impl Fn() -> Option<Arc<[u8]>> + Send + Sync + 'static) -> Self {
        Self(Origin::Function(Arc::new(read)))
    }

    pub(super) async fn read(&self, disk: &Disk) -> Result<About, BoxError> {
        let document = match &self.0 {
            Origin::Text(document) => document.clone(),
            Origin::Function(read) => read().ok_or("the given source has no SPIFFE bundle yet")?,
            Origin::File(path) => {
                let path = path.clone();
                disk.run(move || read_file(&path)).await?.into()
            }
        };
        About::read(&document)
    }
}

impl fmt::Debug for SpiffeBootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Origin::Text(_) => f.write_str("SpiffeBootstrap::text"),
            Origin::File(path) => write!(f, "SpiffeBootstrap::file({})", path.display()),
            Origin::Function(_) => f.write_str("SpiffeBootstrap::from_fn"),
        }
    }
}

/// Blocking file operations, one at a time: a disk may never respond.
#[derive(Clone, Default)]
pub(super) struct Disk(Arc<Mutex<()>>);

impl Disk {
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let turn = self.0.clone().try_lock_owned();
        let turn = turn.map_err(|_| disk_timeout())?;
        let outcome = own_thread::run(move || {
            let _turn = turn;
            work()
        });
        let panicked = || Err(io::Error::other("reading or writing panicked"));
        outcome.await.unwrap_or_else(panicked)
    }
}

pub(super) fn disk_timeout() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the disk does not respond")
}

pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    regular_file::read(path, MAX_BODY as u64)
}

/// Replaces the file in one step: a reader or a crash finds the old or the new document.
pub(super) fn replace_file(path: &Path, document: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut aside = name.to_owned();
    aside.push(format!(".{}.new", std::process::id()));
    let aside = path.with_file_name(aside);
    // Left by a process with the same ID that was killed.
    let _ = fs::remove_file(&aside);
    let write = || {
        let mut options = File::options();
        // Another user of the directory may have put a symbolic link there.
        options.write(true).create_new(true);
        // Who can write the file can forge tokens, so this does not depend on the umask.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
        let mut file = options.open(&aside)?;
        file.write_all(document)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&aside)))
}
