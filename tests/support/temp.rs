//! Files of a test, removed when the test ends.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that is removed when this is dropped. Its path is short enough for a Unix socket.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    #[expect(clippy::new_without_default, reason = "creates a directory")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tower-spiffe-test-{}-{n}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Replaces a file in one step, as publishers do. On Windows this can fail while a reader has the file
/// open, so it is retried there.
pub fn replace(path: impl AsRef<Path>, text: &str) {
    let path = path.as_ref();
    let aside = path.with_extension("new");
    std::fs::write(&aside, text).unwrap();
    let mut retries = if cfg!(windows) { 100_000 } else { 0 };
    while let Err(error) = std::fs::rename(&aside, path) {
        assert!(retries > 0, "{error}");
        retries -= 1;
        std::thread::yield_now();
    }
}
