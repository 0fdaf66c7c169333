//! Bundles from files: for hosts without a network, for sidecars that write them, and for issuers
//! without a Workload API.

#[cfg(test)]
mod e23_tests;
mod entries;
mod error;
mod follow;
mod format;
mod record;
mod state;
mod task;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use self::error::{FileBundlesError, FileBundlesErrorReason};
use self::follow::Followed;
pub use self::format::{BundleDocument, BundleFormat};
use self::record::Document;
pub use self::state::{FileBundlesState, FileState, FileTrustDomainState};
use crate::bundle::{BundleAnswer, BundleSource, BundlesUnavailable, JwtBundleSet};
use crate::clock::{Clock, SystemClock};
use crate::identity::TrustDomain;
use crate::metrics::MetricsRecorder;
use crate::runtime;

/// Bundles from files, which are read again when they change: by a rename over them, by a write in
/// place, or by a new target of a symbolic link (as in Kubernetes mounts).
///
/// # Formats
///
/// The builder has one method for each format; a format is never guessed.
///
/// | method | the file | counts if `use` is |
/// | --- | --- | --- |
/// | [`jwks`](FileBundlesBuilder::jwks) | the JWK Set of one trust domain | absent, `jwt-svid`, `sig` |
/// | [`spiffe_bundle`](FileBundlesBuilder::spiffe_bundle) | the SPIFFE bundle of one trust domain | `jwt-svid` |
/// | [`bundle_map`](FileBundlesBuilder::bundle_map) | a SPIFFE Bundle Map | `jwt-svid` |
/// | [`jwks_map`](FileBundlesBuilder::jwks_map) | the same object with JWK Sets | absent, `jwt-svid` |
/// | [`jwks_by_trust_domain`](FileBundlesBuilder::jwks_by_trust_domain) | an object from trust domain to JWK Set | absent, `jwt-svid` |
/// | [`spiffe_helper`](FileBundlesBuilder::spiffe_helper) | what spiffe-helper writes | absent, `jwt-svid` |
/// | [`spire_agent`](FileBundlesBuilder::spire_agent) | the output of `spire-agent api fetch jwt -output json` | absent, `jwt-svid` |
///
/// A file for one trust domain has keys for that trust domain only. A file for several contains their
/// names: a process that can write it can add keys for any trust domain, except for those
/// of another file.
///
/// # Files that are missing or invalid
///
/// [`build`](FileBundlesBuilder::build) waits until every file can be read, 30 s by default.
/// [`build_lazy`](FileBundlesBuilder::build_lazy) does not wait: until a file was read once, tokens of
/// its trust domain cannot be verified (`503`). If the file may have several trust domains, this
/// includes all unknown ones. [`open`](FileBundlesBuilder::open) fails at once.
///
/// If a file cannot be read later, or is no longer a bundle, its last good bundles stay and
/// [`state`](Self::state) has the error. The entries of a map are independent: if a bundle cannot be
/// read, the last good one stays; if a name is not that of a trust domain, the entry is skipped. A
/// trust domain that the map no longer names is removed. A duplicate name makes the whole map
/// unreadable. A UTF-8 byte order mark is skipped.
///
/// An empty key set is applied: all tokens of its trust domain are rejected. A set that has keys but
/// no usable one is applied too, and is an error in [`state`](Self::state). Keys for other SVIDs
/// (`x509-svid`, `wit-svid`) do not make it an error.
///
/// Clones are cheap and share everything. When the last one is dropped, the background task ends.
/// The task runs on the tokio runtime that the source was created on. When that runtime ends,
/// tokens cannot be verified: the bundles would become stale.
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
///     .build()
///     .await?;
/// assert_eq!(bundles.bundle_set()?.len(), 1);
/// assert!(bundles.is_healthy());
///
/// let validator = Validator::builder(bundles).audience("spiffe://example.org/reports").build()?;
/// # drop(validator);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok(())
/// # }
/// ```
///
/// A service that starts before its sidecar:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_spiffe::bundle::{BundleSource, BundlesUnavailable};
/// use tower_spiffe::source::FileBundles;
///
/// # let dir = std::env::temp_dir().join(format!("late-bundles-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// let path = dir.join("jwt_bundle.json");
/// let bundles = FileBundles::builder().spiffe_helper(&path).build_lazy()?;
/// assert_eq!(bundles.revision(), Err(BundlesUnavailable::NotReady));
///
/// // The sidecar writes its first file.
/// std::fs::write(&path, r#"{"example.org": "eyJrZXlzIjogW119"}"#)?;
/// bundles.ready().await?;
/// assert_eq!(bundles.bundle_set()?.len(), 1);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[doc(alias = "jwks")]
#[doc(alias = "reload")]
pub struct FileBundles {
    followed: Arc<Followed>,
    metrics: Option<Arc<dyn MetricsRecorder>>,
}

/// Names the files of a [`FileBundles`].
#[derive(Clone)]
#[must_use]
pub struct FileBundlesBuilder {
    documents: Vec<Document>,
    every: Duration,
    max_bytes: u64,
    initial_sync: Option<Duration>,
    clock: Arc<dyn Clock>,
    metrics: Option<Arc<dyn MetricsRecorder>>,
}

impl FileBundles {
    /// Creates a builder; name the files on it.
    pub fn builder() -> FileBundlesBuilder {
        FileBundlesBuilder {
            documents: Vec::new(),
            every: Duration::from_secs(5),
            max_bytes: 64 << 20,
            initial_sync: Some(Duration::from_secs(30)),
            clock: SystemClock::shared(),
            metrics: None,
        }
    }

    /// Returns all bundles.
    ///
    /// # Errors
    /// No file was read yet, or the runtime that the source was created on has ended.
    pub fn bundle_set(&self) -> Result<JwtBundleSet, BundlesUnavailable> {
        self.followed.bundle_set()
    }

    /// Returns the state, as it is now.
    pub fn state(&self) -> FileBundlesState {
        self.followed.state()
    }

    /// Waits until every file was read at least once; returns at once if it was.
    ///
    /// # Errors
    /// The runtime that the source was created on has ended.
    pub async fn ready(&self) -> Result<(), FileBundlesError> {
        let followed = &self.followed;
        followed.revision.until(|| followed.is_ready()).await;
        if followed.is_ready() {
            return Ok(());
        }
        let text = "the runtime that the files were followed on has ended; create a new source";
        let reason = FileBundlesErrorReason::Closed;
        Err(FileBundlesError::new(reason, None, text))
    }

    /// Returns whether every file was read at least once, for a readiness probe. A file that is lost
    /// later keeps its last bundles, and stays ready.
    pub fn is_ready(&self) -> bool {
        self.followed.is_ready()
    }

    /// Returns whether the source is healthy, for alerts; see [`FileBundlesState::is_healthy`].
    pub fn is_healthy(&self) -> bool {
        self.state().is_healthy()
    }
}

impl FileBundlesBuilder {
    /// Adds a file with the JWK Set of one trust domain: of a Workload API, or of an OIDC issuer. A
    /// key counts if `use` is absent, `jwt-svid` or `sig`, which SPIRE's OIDC discovery provider
    /// writes with `set_key_use`.
    pub fn jwks(self, trust_domain: TrustDomain, path: impl AsRef<Path>) -> Self {
        self.push(BundleFormat::Jwks(trust_domain), path.as_ref())
    }

    /// Adds a file with the SPIFFE bundle of one trust domain (SPIFFE Trust Domain and Bundle section
    /// 4), as a bundle endpoint serves it. A key counts only if `use` is `jwt-svid`.
    pub fn spiffe_bundle(self, trust_domain: TrustDomain, path: impl AsRef<Path>) -> Self {
        self.push(BundleFormat::SpiffeBundle(trust_domain), path.as_ref())
    }

    /// Adds a file with the SPIFFE bundles of several trust domains (SPIFFE Trust Domain and Bundle
    /// section 5): `{"trust_domains": {"example.org": {"keys": [..]}}}`. A key counts only if `use`
    /// is `jwt-svid`.
    pub fn bundle_map(self, path: impl AsRef<Path>) -> Self {
        self.push(BundleFormat::BundleMap, path.as_ref())
    }

    /// Adds a file as [`bundle_map`](Self::bundle_map), with JWK Sets as a Workload API returns them:
    /// a key counts if `use` is absent or `jwt-svid`.
    pub fn jwks_map(self, path: impl AsRef<Path>) -> Self {
        self.push(BundleFormat::JwksMap, path.as_ref())
    }

    /// Adds a file with an object from trust domain to JWK Set: `{"example.org": {"keys": [..]}}`. A
    /// key counts if `use` is absent or `jwt-svid`.
    ///
    /// If no entry can be read, the whole file is invalid and its last good bundles stay. To remove all
    /// trust domains, write `{}`.
    pub fn jwks_by_trust_domain(self, path: impl AsRef<Path>) -> Self {
        self.push(BundleFormat::JwksByTrustDomain, path.as_ref())
    }

    /// Adds a file that spiffe-helper writes as `jwt_bundle_file_name`: an object from trust domain
    /// to the base64 of its JWK Set, `{"example.org": "eyJrZXlzIjogW119"}`. A key counts if `use` is
    /// absent or `jwt-svid`.
    ///
    /// If no entry can be read, the whole file is invalid and its last good bundles stay.
    pub fn spiffe_helper(self, path: impl AsRef<Path>) -> Self {
        self.push(BundleFormat::SpiffeHelper, path.as_ref())
    }

    /// Adds a file with the output of `spire-agent api fetch jwt -output json`: a list with one
    /// object that has `bundles`, from trust domain to the base64 of its JWK Set. The tokens in it
    /// are not read. A key counts if `use` is absent or `jwt-svid`.
    pub fn spire_agent(self, path: impl AsRef<Path>) -> Self {
        self.push(BundleFormat::SpireAgent, path.as_ref())
    }

    /// Sets how often the files are checked for changes. 5 s by default; at least 10 ms. After a
    /// suspend, or another forward step of the wall clock, they are checked within a second. A file
    /// that was not read yet is checked every 250 ms or more often.
    pub fn poll_interval(mut self, every: Duration) -> Self {
        self.every = every.max(Duration::from_millis(10));
        self
    }

    /// Limits the size of one file, in bytes. 64 MiB by default.
    pub fn max_file_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets how long [`build`](Self::build) waits for the files. 30 s by default; `None` waits without
    /// a limit.
    pub fn initial_sync_timeout(mut self, within: impl Into<Option<Duration>>) -> Self {
        self.initial_sync = within.into();
        self
    }

    /// Sets the clock for ages. The system clock by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Sets the recorder of changes, of unreadable files (at every check) and of readiness. None by
    /// default. Validators and server layers built on the source use it too, unless they are
    /// given one of their own.
    pub fn metrics(mut self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.metrics = Some(recorder);
        self
    }

    /// Creates the source and waits until every file was read. A file that is missing or half
    /// written is read again every 250 ms.
    ///
    /// # Errors
    /// Immediately: no file was named, two of them are for one trust domain, or there is no tokio
    /// runtime. After the [`initial_sync_timeout`](Self::initial_sync_timeout): a file could not be
    /// read, with the last error.
    pub async fn build(self) -> Result<FileBundles, FileBundlesError> {
        let within = self.initial_sync;
        let source = self.build_lazy()?;
        match within {
            None => source.ready().await?,
            Some(within) => match tokio::time::timeout(within, source.ready()).await {
                Ok(outcome) => outcome?,
                Err(_) => return Err(source.followed.not_in_time(within)),
            },
        }
        Ok(source)
    }

    /// Creates the source immediately, and reads the files in the background. Until a file was read,
    /// tokens of its trust domain cannot be verified ([`BundlesUnavailable::NotReady`]). If the file
    /// may have several trust domains, this includes all unknown ones. [`FileBundles::ready`] waits for all
    /// files.
    ///
    /// # Errors
    /// No file was named, two of them are for one trust domain, or there is no tokio runtime.
    pub fn build_lazy(self) -> Result<FileBundles, FileBundlesError> {
        self.start(false)
    }

    /// Reads the files before it returns. For programs that must not start without them. This blocks
    /// the calling thread; later reads are done on a separate thread, never in the runtime's blocking
    /// pool.
    ///
    /// # Errors
    /// No file was named; one of them cannot be read or is not a bundle; two of them are for one
    /// trust domain; there is no tokio runtime.
    pub fn open(self) -> Result<FileBundles, FileBundlesError> {
        self.start(true)
    }

    fn start(self, reads_now: bool) -> Result<FileBundles, FileBundlesError> {
        let runtime = runtime::with_timers().map_err(|missing| {
            let text = format!("bundle files cannot be followed: {missing}");
            FileBundlesError::new(FileBundlesErrorReason::NoRuntime, None, text)
        })?;
        if self.documents.is_empty() {
            let text = "no bundle file was named; name one by `jwks`, `spiffe_bundle`, `bundle_map` or \
                        a method for another format";
            let reason = FileBundlesErrorReason::NoFile;
            return Err(FileBundlesError::new(reason, None, text));
        }
        let metrics = self.metrics.clone();
        let followed = Arc::new(Followed::new(self)?);
        if reads_now {
            followed.look(true);
            if let Some(failure) = followed.first_failure() {
                return Err(failure);
            }
        }
        task::spawn(&followed, &runtime, !reads_now);
        Ok(FileBundles { followed, metrics })
    }

    fn push(mut self, format: BundleFormat, path: &Path) -> Self {
        let path = PathBuf::from(path);
        self.documents.push(Document { path, format });
        self
    }
}

/// The bundles of a map, the trust domains whose bundle cannot be read, and the error text.
#[cfg(feature = "testing")]
pub(crate) type MapRead = (JwtBundleSet, Vec<TrustDomain>, Option<Box<str>>);

/// Reads a document after `known` was read before it. For the crate's own fuzz targets.
#[cfg(feature = "testing")]
pub(crate) fn read_map(
    bytes: &[u8],
    format: &BundleFormat,
    known: &JwtBundleSet,
) -> Result<MapRead, String> {
    let contents = format.parse(bytes, known);
    let contents = contents.map_err(|error| format!("{error:#}"))?;
    let summary = contents.summary();
    let unreadable = contents.troubles.into_keys().collect();
    Ok((
        contents.bundles.into_values().collect(),
        unreadable,
        summary,
    ))
}

impl BundleSource for FileBundles {
    fn metrics(&self) -> Option<Arc<dyn MetricsRecorder>> {
        self.metrics.clone()
    }

    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.followed.revision.get()
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        self.followed.bundle(trust_domain)
    }

    fn changed_since(&self, seen: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        Some(self.followed.revision.changed_since(seen))
    }

    fn is_healthy(&self) -> bool {
        self.state().is_healthy()
    }
}

impl fmt::Debug for FileBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBundles")
            .field("revision", &self.followed.revision.get())
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
