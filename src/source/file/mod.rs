//! Bundles from files: for air gaps, for sidecars that write them, for issuers without a Workload
//! API.

mod document;
#[cfg(test)]
mod e23_tests;
mod error;
mod follow;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use self::document::Document;
pub(crate) use self::document::Format;
pub use self::error::{FileBundlesError, FileBundlesErrorReason};
use self::follow::Followed;
pub use self::state::{FileBundlesState, FileState};
use crate::bundle::{BundleAnswer, BundleSource, BundlesUnavailable, JwtBundleSet};
use crate::clock::{Clock, SystemClock};
use crate::identity::TrustDomain;
use crate::metrics::{MetricsRecorder, Shielded};
use crate::runtime;

/// Bundles from files, read anew when they change: by a rename over them, by a write in place, by
/// another target of a symbolic link (as Kubernetes mounts change).
///
/// A file that cannot be read, or is no bundle any more, keeps its last good bundles and says so in
/// [`state`](Self::state). In a map each entry stands for itself: if its bundle cannot be read, the
/// last good one stays; if its name is not a trust domain's, the entry is skipped, and a trust
/// domain that the map does not name is removed. A name that comes twice makes the whole map
/// unreadable. A UTF-8 byte order mark is skipped.
///
/// A clone is one reference count; with the last one the task behind it ends. That task lives on the tokio runtime that the source was opened on; when that ends, the
/// source cannot judge any more, rather than go on with bundles that nobody keeps fresh.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_spiffe::source::FileBundles;
/// use tower_spiffe::{TrustDomain, Validator};
///
/// # let dir = std::env::temp_dir().join(format!("file-bundles-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// let path = dir.join("example.org.json");
/// std::fs::write(&path, r#"{"keys": []}"#)?;
///
/// let bundles = FileBundles::builder()
///     .spiffe_bundle(TrustDomain::parse("example.org")?, &path)
///     .open()?;
/// assert_eq!(bundles.bundle_set()?.len(), 1);
/// assert!(bundles.state().files()[0].last_error().is_none());
///
/// let validator = Validator::builder(bundles).audience("spiffe://example.org/reports").build()?;
/// # drop(validator);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FileBundles {
    followed: Arc<Followed>,
}

/// Names the files of a [`FileBundles`].
#[derive(Clone)]
#[must_use]
pub struct FileBundlesBuilder {
    documents: Vec<Document>,
    every: Duration,
    max_bytes: u64,
    clock: Arc<dyn Clock>,
    metrics: Arc<dyn MetricsRecorder>,
}

impl FileBundles {
    /// A source, to be given its files.
    pub fn builder() -> FileBundlesBuilder {
        FileBundlesBuilder {
            documents: Vec::new(),
            every: Duration::from_secs(5),
            max_bytes: 64 << 20,
            clock: SystemClock::shared(),
            metrics: Arc::new(()),
        }
    }

    /// All bundles, as they are now.
    ///
    /// # Errors
    /// The runtime that the source was opened on is gone.
    pub fn bundle_set(&self) -> Result<JwtBundleSet, BundlesUnavailable> {
        self.followed.bundle_set()
    }

    /// The state, as it is now.
    pub fn state(&self) -> FileBundlesState {
        self.followed.state()
    }
}

impl FileBundlesBuilder {
    /// A file with the JWK Set of a trust domain, as a Workload API gives it: a key is taken where
    /// `use` is absent or `jwt-svid`.
    pub fn jwks(mut self, trust_domain: TrustDomain, path: impl AsRef<Path>) -> Self {
        self.push(Some(trust_domain), Format::Jwks, path.as_ref());
        self
    }

    /// A file with the SPIFFE bundle of a trust domain (SPIFFE Trust Domain and Bundle section 4),
    /// as a federation endpoint gives it: a key is taken only where `use` is `jwt-svid`.
    pub fn spiffe_bundle(mut self, trust_domain: TrustDomain, path: impl AsRef<Path>) -> Self {
        self.push(Some(trust_domain), Format::SpiffeBundle, path.as_ref());
        self
    }

    /// A file with the SPIFFE bundles of many trust domains (SPIFFE Trust Domain and Bundle section
    /// 5): `{"trust_domains": {"example.org": {"keys": [..]}}}`.
    pub fn bundle_map(mut self, path: impl AsRef<Path>) -> Self {
        self.push(None, Format::SpiffeBundle, path.as_ref());
        self
    }

    /// As [`bundle_map`](Self::bundle_map), of JWK Sets as a Workload API gives them.
    pub fn jwks_map(mut self, path: impl AsRef<Path>) -> Self {
        self.push(None, Format::Jwks, path.as_ref());
        self
    }

    /// Sets how often to look for changes. 5 s by default; at least 10 ms. After a suspend, or
    /// another forward step of the wall clock, the files are looked at within a second.
    pub fn poll_interval(mut self, every: Duration) -> Self {
        self.every = every.max(Duration::from_millis(10));
        self
    }

    /// How many bytes one file may have. 64 MiB by default.
    pub fn max_file_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// The clock to tell ages by.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Who is told of changes, of files that cannot be read (again at each look), and whether
    /// tokens can be judged. Nobody by default.
    pub fn metrics(mut self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.metrics = recorder;
        self
    }

    /// Reads the files, and follows them from then on. Reading blocks for as long as it takes here;
    /// later it is done on a thread of its own, never in the runtime's blocking pool.
    ///
    /// # Errors
    /// No file was named; one of them cannot be read or is no bundle; two of them are for one trust
    /// domain; there is no tokio runtime with timers here.
    pub fn open(self) -> Result<FileBundles, FileBundlesError> {
        let runtime = runtime::with_timers().map_err(|missing| {
            let text = format!("bundle files cannot be followed: {missing}");
            FileBundlesError::new(FileBundlesErrorReason::NoRuntime, None, text)
        })?;
        if self.documents.is_empty() {
            return Err(FileBundlesError::new(
                FileBundlesErrorReason::NoFile,
                None,
                "",
            ));
        }
        let metrics = Arc::new(Shielded::new(self.metrics));
        let followed = Followed::open(
            self.documents,
            self.every,
            self.max_bytes,
            self.clock,
            metrics,
        )?;
        let followed = Arc::new(followed);
        follow::spawn(&followed, &runtime);
        Ok(FileBundles { followed })
    }

    fn push(&mut self, trust_domain: Option<TrustDomain>, format: Format, path: &Path) {
        let path = PathBuf::from(path);
        self.documents.push(Document {
            path,
            trust_domain,
            format,
        });
    }
}

/// The bundles of a map, and whose cannot be read, with the words for it.
#[cfg(feature = "testing")]
pub(crate) type MapRead = (JwtBundleSet, Vec<TrustDomain>, Option<Box<str>>);

/// What a map says, read against what was known before it. For the crate's own fuzz targets.
#[cfg(feature = "testing")]
pub(crate) fn read_map(
    bytes: &[u8],
    format: Format,
    known: &JwtBundleSet,
) -> Result<MapRead, String> {
    let map = Document {
        path: PathBuf::new(),
        trust_domain: None,
        format,
    };
    let contents = map.parse(bytes, known)?;
    let told = contents.told();
    let unreadable = contents.troubles.into_keys().collect();
    Ok((contents.bundles.into_values().collect(), unreadable, told))
}

impl BundleSource for FileBundles {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.followed.revision()
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        self.followed.bundle(trust_domain)
    }

    fn changed_since(&self, seen: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let mut revisions = self.followed.revisions();
        Some(Box::pin(async move {
            let _ = revisions.wait_for(|revision| *revision != seen).await;
        }))
    }
}

impl fmt::Debug for FileBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBundles")
            .field("revision", &self.followed.revision())
            .finish()
    }
}

impl fmt::Debug for FileBundlesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBundlesBuilder")
            .field("documents", &self.documents)
            .field("every", &self.every)
            .finish_non_exhaustive()
    }
}
