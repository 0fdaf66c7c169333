//! Tokens in files: written for other programs, or read from files of other programs.
//!
//! [`TokenFile`] keeps a file with the current token of one audience. Many programs read such a
//! file: the AWS SDKs and the crate `object_store` (`AWS_WEB_IDENTITY_TOKEN_FILE`), Azure's and
//! Vault's clients, and programs that read Kubernetes' projected tokens. The command `tower-spiffe
//! token-file` (crate `tower-spiffe-cli`) does the same without Rust code, and can replace
//! `jwt_svids` of spiffe-helper.
//!
//! ```
//! use tower_spiffe::testing::FakeAgent;
//! use tower_spiffe::token_file::TokenFile;
//! use tower_spiffe::SvidCache;
//! use tower_spiffe::token::SvidRequest;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = std::env::temp_dir().join(format!("token-file-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir)?;
//! // In production: `JwtSource::new().await?`.
//! let agent = FakeAgent::start("example.org").await?;
//! let cache = SvidCache::from(agent.source().await?);
//!
//! // The AWS SDK reads this file if AWS_WEB_IDENTITY_TOKEN_FILE has its path, AWS_ROLE_ARN the
//! // role, and the role trusts the OIDC issuer of the trust domain for this audience.
//! let path = dir.join("aws-token");
//! let request = SvidRequest::new(["sts.amazonaws.com"])?;
//! let file = TokenFile::builder(&cache, request, &path).remove_on_exit(true).start()?;
//!
//! file.written().await?; // start the program that reads it
//! assert!(std::fs::read_to_string(&path)?.starts_with("eyJ"));
//! assert!(file.state().last_error.is_none());
//!
//! file.shutdown().await;
//! assert!(!path.exists());
//! # std::fs::remove_dir_all(&dir)?;
//! # Ok(())
//! # }
//! ```
//!
//! [`FileTokens`] works in the opposite direction: it is a source of tokens from files that another
//! process writes.
//!
//! # How a file is written
//!
//! The token goes into a new temporary file in the same directory, which is synced to disk and then
//! renamed over the path. A reader always sees the whole old token or the whole new one. The file
//! contains only the token, without a line break at the end.
//!
//! The temporary file is created with mode 0600 and never opened through a link. The rename
//! replaces a symbolic link at the path and does not follow it. Links in the directory part of the
//! path are followed, so only the owner of that directory should be able to write to it. A crash
//! between the two steps leaves a file named `.spiffe-token-….tmp`; the next writer of the same
//! path removes it.
//!
//! On Unix the file has mode 0600 unless [`mode`](TokenFileBuilder::mode) sets another. On Windows
//! it inherits the permissions (ACL) of its directory: only the reader should have access to that
//! directory. A write fails there while a program has the file open without `FILE_SHARE_DELETE`.
//!
//! # When a file is written
//!
//! At the start, and whenever the cache has a newer token: after 55 to 65 % of the lifetime, or
//! within 5 s if the signing key is removed. If a write fails, the old file stays, and the write is
//! retried after 1 s, then after twice as long each time, up to 30 s. The first failure of a kind
//! is logged as a warning, its repetitions at debug level.
//!
//! If there is no new token, the file is not changed, even after the token has expired: the reader
//! then gets an error from its server. [`TokenFileState::expires_in`] shows it.
//!
//! Writes are counted by [`MetricsRecorder::record_token_file`]. The log messages are in the
//! [table of events](crate::metrics#spans-and-events).

mod disk;
mod error;
mod follow;
mod source;
mod state;

use std::path::Path;
use std::sync::Arc;

use tokio::task::AbortHandle;

use self::disk::Target;
pub use self::error::{TokenFileError, TokenFileErrorReason};
use self::follow::Shared;
pub use self::source::{FileTokenState, FileTokens, FileTokensBuilder};
pub use self::state::TokenFileState;
use crate::metrics::{MetricsRecorder, Shielded};
use crate::presentable::debug_fields;
use crate::runtime;
use crate::source::own_thread;
use crate::token::SvidRequest;
use crate::token::{KeepWarm, SvidCache};

/// The action after each write, with the path of the file.
type AfterWrite = Arc<dyn Fn(&Path) -> Result<(), String> + Send + Sync>;

/// A file with the current token of one audience. See the [module docs](self) for the rules.
///
/// It keeps the token fresh and the source open. Dropping it ends both, after a write in progress;
/// [`shutdown`](Self::shutdown) does so without blocking the thread.
#[must_use = "the file is refreshed only as long as this lives"]
pub struct TokenFile {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
    _warm: KeepWarm,
}

/// Options of a [`TokenFile`].
#[derive(Clone)]
#[must_use = "nothing is written until `start`"]
pub struct TokenFileBuilder {
    cache: SvidCache,
    request: SvidRequest,
    target: Target,
    remove_on_exit: bool,
    after_write: Option<AfterWrite>,
    metrics: Arc<dyn MetricsRecorder>,
}

impl TokenFile {
    /// Creates a builder for a file at `path` with the token for `request`.
    ///
    /// `cache` is the cache of a source ([`SvidCache::from`] a `JwtSource`) or of your own fetcher.
    pub fn builder(
        cache: &SvidCache,
        request: SvidRequest,
        path: impl AsRef<Path>,
    ) -> TokenFileBuilder {
        TokenFileBuilder {
            cache: cache.clone(),
            request,
            target: Target::new(path.as_ref()),
            remove_on_exit: false,
            after_write: None,
            metrics: cache.recorder(),
        }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        self.shared.path()
    }

    /// Waits until the file was written for the first time, without a limit. If there is no token
    /// or no space on the disk, [`state`](Self::state) has the reason.
    ///
    /// # Errors
    /// [`Closed`](TokenFileErrorReason::Closed) if the cache or its source is shut down first.
    pub async fn written(&self) -> Result<(), TokenFileError> {
        self.shared.written().await
    }

    /// Returns the current state.
    pub fn state(&self) -> TokenFileState {
        self.shared.state()
    }

    /// Ends the refresh, waits for a write in progress, and removes the file if so configured.
    pub async fn shutdown(self) {
        self.stop();
        let shared = self.shared.clone();
        if let Some(end) = own_thread::run(move || shared.end()).await {
            self.shared.record_end(end);
        }
    }

    fn stop(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        self.stop();
        self.shared.record_end(self.shared.end());
    }
}

impl TokenFileBuilder {
    /// Sets the permission bits of the file after every write, independent of the umask. 0600 by
    /// default.
    #[cfg(unix)]
    pub fn mode(mut self, mode: u32) -> Self {
        self.target.mode = mode;
        self
    }

    /// Sets the owner of the file by user ID. The user of this process by default; another user
    /// needs privileges (`CAP_CHOWN`).
    #[cfg(unix)]
    pub fn owner(mut self, user_id: u32) -> Self {
        self.target.owner = Some(user_id);
        self
    }

    /// Sets the group of the file by group ID. This process must be a member of the group. The
    /// group of this process by default. With [`mode`](Self::mode) 0640, members of the group can
    /// read the token.
    #[cfg(unix)]
    pub fn group(mut self, group_id: u32) -> Self {
        self.target.group = Some(group_id);
        self
    }

    /// Sets whether the file is removed when its refresh ends: on
    /// [`shutdown`](TokenFile::shutdown), on drop, or when the source is shut down. `false` by
    /// default: the file stays, and its token expires.
    ///
    /// If another process has replaced the file, it is not removed (on Unix).
    pub fn remove_on_exit(mut self, remove: bool) -> Self {
        self.remove_on_exit = remove;
        self
    }

    /// Sets an action after each write, with the path of the file: a command or a signal that makes
    /// the reader load the new token. Its error text is logged and visible in
    /// [`TokenFileState::after_write_error`]; it is retried at the pace of a failed write.
    ///
    /// It runs on its own thread and does not delay writes. If tokens change while it runs, it runs
    /// once more afterwards. Its error text must not contain the token.
    pub fn after_write(
        mut self,
        action: impl Fn(&Path) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.after_write = Some(Arc::new(action));
        self
    }

    /// Sets the recorder of the writes ([`MetricsRecorder::record_token_file`]). The default is the
    /// recorder of the cache. `Arc::new(())` records nothing.
    pub fn metrics(mut self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.metrics = Arc::new(Shielded::new(recorder));
        self
    }

    /// Starts to write the file in the background. Failed writes are retried.
    ///
    /// # Errors
    /// The path has no file name; the mode has bits that are not permissions; the request is for
    /// [`single_use`](SvidRequest::single_use) tokens; or the call is made without a tokio runtime
    /// with timers.
    pub fn start(self) -> Result<TokenFile, TokenFileError> {
        self.target.check()?;
        if self.request.is_single_use() {
            let text = "a token file cannot have single-use tokens: each can be used for one request; \
                        leave out `single_use()`";
            return Err(TokenFileError::new(TokenFileErrorReason::Audience, text));
        }
        const FAILED: &str = "a token file cannot be refreshed";
        let no_runtime = |text| TokenFileError::new(TokenFileErrorReason::NoRuntime, text);
        let runtime =
            runtime::with_timers().map_err(|missing| no_runtime(format!("{FAILED}: {missing}")))?;
        let warm = self
            .cache
            .keep_warm([self.request.clone()])
            .map_err(|error| no_runtime(FAILED.to_owned()).because(error))?;
        let pin = self.cache.pin(self.request);
        let shared = Arc::new(Shared::new(
            &pin,
            self.target,
            self.remove_on_exit,
            self.metrics,
        ));
        let write = runtime.spawn(follow::write(shared.clone(), pin));
        let act = runtime.spawn(follow::act(shared.clone(), self.after_write));
        Ok(TokenFile {
            shared,
            tasks: [write.abort_handle(), act.abort_handle()],
            _warm: warm,
        })
    }
}

debug_fields!(TokenFile, |it| { state: it.state() });
debug_fields!(TokenFileBuilder, |it| {
    request: it.request,
    target: it.target,
    remove_on_exit: it.remove_on_exit,
});

/// A path, quoted for a message.
fn shown(path: &Path) -> String {
    format!("{path:?}")
}
