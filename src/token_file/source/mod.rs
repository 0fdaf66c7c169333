//! A source of tokens from files.

mod read;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;

use self::read::Fault;
use super::error::{TokenFileError, TokenFileErrorReason};
use super::shown;
use crate::clock::{Clock, SystemClock, UnixTime};
use crate::identity::SpiffeId;
use crate::presentable::debug_fields;
use crate::runtime;
use crate::source::own_thread;
use crate::token::{
    FetchSvid, FetchSvidError, FetchSvidFuture, FetchSvidReason, JwtSvid, SvidRequest,
};
use crate::token::{Successors, SvidCache};

/// Tokens from files that another process writes: a sidecar such as spiffe-helper or `tower-spiffe
/// token-file`, or Kubernetes' projected tokens of an issuer that is compatible with SPIFFE.
///
/// Each file has one token, for the audiences given with its path. Layers and caches accept it
/// instead of a `JwtSource`. It needs no agent and no gRPC:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # #[cfg(feature = "testing")] {
/// use tower_spiffe::token_file::FileTokens;
/// use tower_spiffe::{AddJwtSvidLayer, Audience, SvidCache};
/// use tower_spiffe::token::SvidRequest;
///
/// # let dir = std::env::temp_dir().join(format!("file-tokens-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = dir.join("reports");
/// # let issuer = tower_spiffe::testing::Issuer::new("example.org")?;
/// # std::fs::write(&path, issuer.token("spiffe://example.org/web", "reports").sign())?;
/// let files = FileTokens::builder().file(["reports"], &path).open()?;
/// let cache = SvidCache::from(&files);
///
/// let token = cache.get(&SvidRequest::new(["reports"])?).await?;
/// assert_eq!(token.spiffe_id().as_str(), "spiffe://example.org/web");
///
/// let audience = Audience::fixed("reports").for_origin("https://reports:8443")?;
/// let layer = AddJwtSvidLayer::new(cache, audience);
/// # drop(layer);
/// # std::fs::remove_dir_all(&dir)?;
/// # }
/// # Ok(())
/// # }
/// ```
///
/// # Rules
///
/// - A file is read when a token is due, and polled every 5 s
///   ([`poll_interval`](FileTokensBuilder::poll_interval)). If it then has another token, the next
///   request uses that token.
/// - If a file is missing, cannot be read or is half-written, the last good token is kept until its
///   `exp`. A file that changes while it is read, or whose signature is too short for its `alg`,
///   counts as half-written.
/// - The token's `aud` must be exactly the audiences of the file. With
///   [`spiffe_id`](FileTokensBuilder::spiffe_id), its `sub` must be that identity. A token for
///   another audience or identity is an error, and so is an expired one. The signature is not
///   verified: the receiver does that.
/// - White space around the token is ignored. A file larger than 16 KiB is an error. Links are
///   followed, because Kubernetes mounts need it.
#[derive(Clone)]
pub struct FileTokens {
    inner: Arc<Inner>,
}

/// The files and options of a [`FileTokens`].
#[derive(Clone)]
#[must_use]
pub struct FileTokensBuilder {
    files: Vec<(Vec<String>, PathBuf)>,
    spiffe_id: Option<SpiffeId>,
    every: Duration,
    clock: Arc<dyn Clock>,
}

/// The state of one file of a [`FileTokens`] at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FileTokenState {
    /// The path of the file.
    pub path: PathBuf,
    /// The audiences of the file.
    pub audiences: Vec<Box<str>>,
    /// The `sub` of the last good token. `None` before the first good token.
    pub spiffe_id: Option<SpiffeId>,
    /// The time until the last good token expires; zero if it has expired. `None` before the first
    /// good token.
    pub expires_in: Option<Duration>,
    /// The error of the last read. `None` if it succeeded.
    pub last_error: Option<Arc<str>>,
}

struct Inner {
    files: Vec<Arc<Followed>>,
    spiffe_id: Option<SpiffeId>,
    clock: Arc<dyn Clock>,
    caches: Mutex<Vec<Successors>>,
}

struct Followed {
    path: PathBuf,
    audiences: SvidRequest,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    good: Option<JwtSvid>,
    error: Option<Arc<str>>,
}

impl FileTokens {
    /// Creates a builder without files.
    pub fn builder() -> FileTokensBuilder {
        FileTokensBuilder {
            files: Vec::new(),
            spiffe_id: None,
            every: Duration::from_secs(5),
            clock: SystemClock::shared(),
        }
    }

    /// Makes tokens in `cache` due immediately when a file changes. `cache` must be built over a
    /// clone of this. A cache of `SvidCache::from` does this already.
    pub fn refresh(&self, cache: &SvidCache) {
        let mut caches = self.inner.caches();
        caches.retain(Successors::is_alive);
        caches.push(cache.successors());
    }

    /// Returns the state of each file, in the order in which they were added.
    pub fn state(&self) -> Vec<FileTokenState> {
        let now = self.inner.clock.now();
        let files = self.inner.files.iter();
        files.map(|file| file.state(now)).collect()
    }
}

impl FileTokensBuilder {
    /// Adds a file with one token for all of these audiences.
    pub fn file<A: Into<String>>(
        mut self,
        audiences: impl IntoIterator<Item = A>,
        path: impl AsRef<Path>,
    ) -> Self {
        let audiences = audiences.into_iter().map(Into::into).collect();
        self.files.push((audiences, path.as_ref().to_owned()));
        self
    }

    /// Requires this identity as the `sub` of each token. Any SPIFFE ID by default.
    pub fn spiffe_id(mut self, id: SpiffeId) -> Self {
        self.spiffe_id = Some(id);
        self
    }

    /// Sets the time between two polls of the files. 5 s by default; at least 10 ms.
    pub fn poll_interval(mut self, every: Duration) -> Self {
        self.every = every.max(Duration::from_millis(10));
        self
    }

    /// Sets the clock for the expiry of tokens. The system clock by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Opens the source. The files need not exist yet: they are read when a token is requested, on
    /// a separate thread.
    ///
    /// # Errors
    /// There are no files; audiences are missing or invalid; two files are for the same audiences;
    /// or the call is made without a tokio runtime with timers.
    pub fn open(self) -> Result<FileTokens, TokenFileError> {
        let runtime = runtime::with_timers().map_err(|missing| {
            let text = format!("token files cannot be followed: {missing}");
            TokenFileError::new(TokenFileErrorReason::NoRuntime, text)
        })?;
        if self.files.is_empty() {
            let text = "token files are missing; call `.file(...)`";
            return Err(TokenFileError::new(TokenFileErrorReason::Path, text));
        }
        let mut files: Vec<Arc<Followed>> = Vec::with_capacity(self.files.len());
        for (audiences, path) in self.files {
            let path_shown = shown(&path);
            let invalid = |text| TokenFileError::new(TokenFileErrorReason::Audience, text);
            let audiences = SvidRequest::new(&audiences).map_err(|error| {
                let text = format!("the audiences of token file {path_shown} are invalid");
                invalid(text).because(error)
            })?;
            if files.iter().any(|file| file.audiences == audiences) {
                let text = format!(
                    "token file {path_shown} is invalid: another file is for the same audiences; \
                     name one for each"
                );
                return Err(invalid(text));
            }
            files.push(Arc::new(Followed {
                path,
                audiences,
                known: Mutex::default(),
            }));
        }
        let inner = Arc::new(Inner {
            files,
            spiffe_id: self.spiffe_id,
            clock: self.clock,
            caches: Mutex::default(),
        });
        follow(Arc::downgrade(&inner), self.every, &runtime);
        Ok(FileTokens { inner })
    }
}

/// Polls the files until the source is dropped.
fn follow(inner: Weak<Inner>, every: Duration, runtime: &Handle) {
    runtime.spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            let Some(inner) = inner.upgrade() else {
                return;
            };
            // Without a cache, changes are not used.
            inner.caches().retain(Successors::is_alive);
            if inner.caches().is_empty() {
                continue;
            }
            for file in &inner.files {
                if let Some(outcome) = inner.read(file).await {
                    file.record_read(&outcome);
                    if let Ok(svid) = outcome {
                        inner.succeeded(&svid);
                    }
                }
            }
        }
    });
}

impl Inner {
    fn caches(&self) -> MutexGuard<'_, Vec<Successors>> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes other tokens for the same audiences due.
    fn succeeded(&self, svid: &JwtSvid) {
        if svid.expires_at() <= self.clock.now() {
            return;
        }
        for cache in self.caches().iter() {
            cache.announce(svid);
        }
    }

    /// Reads a file on a separate thread. `None` if the read panicked.
    async fn read(&self, file: &Arc<Followed>) -> Option<Result<JwtSvid, Fault>> {
        let (file, id) = (file.clone(), self.spiffe_id.clone());
        own_thread::run(move || read::read(&file.path, &file.audiences, id.as_ref())).await
    }

    fn find(&self, request: &SvidRequest) -> Result<Arc<Followed>, FetchSvidError> {
        let is_for = |file: &&Arc<Followed>| file.audiences.audiences().eq(request.audiences());
        self.files.iter().find(is_for).cloned().ok_or_else(|| {
            FetchSvidError::new(
                FetchSvidReason::InvalidRequest,
                "no token file has these audiences; add one with `FileTokensBuilder::file`",
            )
        })
    }
}

impl Followed {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self, now: UnixTime) -> FileTokenState {
        let known = self.known();
        let good = known.good.as_ref();
        FileTokenState {
            path: self.path.clone(),
            audiences: self.audiences.audiences().map(Into::into).collect(),
            spiffe_id: good.map(|svid| svid.spiffe_id().clone()),
            expires_in: good.map(|svid| svid.expires_at().saturating_since(now)),
            last_error: known.error.clone(),
        }
    }

    fn record_read(&self, outcome: &Result<JwtSvid, Fault>) {
        let fault = outcome.as_ref().err();
        let error: Option<Arc<str>> = fault.map(|fault| fault.error.to_string().into());
        let known_before = {
            let mut known = self.known();
            if let Ok(svid) = outcome {
                known.good = Some(svid.clone());
            }
            std::mem::replace(&mut known.error, error.clone()) == error
        };
        let path = self.path.display();
        if let (Some(error), false) = (error, known_before) {
            tracing::warn!(%path, %error, "token file is unreadable or invalid; its last good token is kept until it expires");
        }
    }

    /// Returns the token to send, or the error.
    fn answer(
        &self,
        outcome: Result<JwtSvid, Fault>,
        now: UnixTime,
    ) -> Result<JwtSvid, FetchSvidError> {
        self.record_read(&outcome);
        let alive = |svid: &JwtSvid| svid.expires_at() > now;
        match outcome {
            Ok(svid) if alive(&svid) => Ok(svid),
            Ok(_) => Err(FetchSvidError::new(
                FetchSvidReason::Stale,
                format!(
                    "token file {} has an expired token: check the process that writes it",
                    shown(&self.path)
                ),
            )),
            Err(fault) => {
                let last_good = self.known().good.clone().filter(alive);
                last_good.filter(|_| !fault.is_other).ok_or(fault.error)
            }
        }
    }
}

impl FetchSvid for FileTokens {
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
        let inner = self.inner.clone();
        let found = inner.find(request);
        Box::pin(async move {
            let file = found?;
            match inner.read(&file).await {
                Some(outcome) => file.answer(outcome, inner.clock.now()),
                None => Err(FetchSvidError::new(
                    FetchSvidReason::Panicked,
                    "reading a token file panicked",
                )),
            }
        })
    }
}

/// Creates a cache over the files, with the same clock. When a file changes, its token in the cache
/// is due immediately.
impl From<&FileTokens> for SvidCache {
    fn from(files: &FileTokens) -> Self {
        let clock = files.inner.clock.clone();
        let cache = Self::builder(files.clone()).clock(clock).build();
        files.refresh(&cache);
        cache
    }
}

/// Creates a cache over the files, with the same clock. When a file changes, its token in the cache
/// is due immediately.
impl From<FileTokens> for SvidCache {
    fn from(files: FileTokens) -> Self {
        Self::from(&files)
    }
}

debug_fields!(FileTokens, |it| { files: it.state() });
debug_fields!(FileTokensBuilder, |it| { files: it.files, spiffe_id: it.spiffe_id });
