//! A policy in a file.

mod coverage;
mod document;
mod dry_run;
mod error;
mod explain;
mod follow;
mod parse;
mod pattern;
mod recorder;
mod rules;
mod state;
mod table;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;

use self::document::Paths;
pub use self::document::PolicyDocument;
use self::dry_run::DryRun;
pub use self::error::{FilePolicyError, FilePolicyErrorReason};
pub use self::explain::{PolicyExplanation, RuleExplanation, RuleOutcome};
use self::follow::{Followed, Settings};
use self::recorder::Recorder;
pub use self::state::FilePolicyState;
use super::policy::{Decision, Policy};
use crate::clock::{Clock, SystemClock};
use crate::metrics::MetricsRecorder;
use crate::runtime;
use crate::source::trust_clock::TrustClock;
use crate::verify::VerifiedSvid;

/// A policy in a TOML file that is read again when it changes (feature `policy-file`). Clones are
/// cheap.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use http::Request;
/// use tower_spiffe::server::{Decision, FilePolicy, Policy};
///
/// # let dir = std::env::temp_dir().join(format!("file-policy-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// let path = dir.join("policy.toml");
/// std::fs::write(&path, r#"
///     [[rule]]
///     path = "/livez"
///     methods = ["GET"]
///     public = true
///
///     [[rule]]
///     path = "/reports/{id}"
///     methods = ["GET"]
///     ids = ["spiffe://example.org/web"]
///     path_prefixes = ["spiffe://example.org/batch"]
///
///     [[rule]]
///     name = "operators delete reports"
///     path = "/reports/{id}"
///     methods = ["DELETE"]
///     trust_domains = ["example.org"]
///     claims = { groups = { contains = "operators" } }
///
///     [[rule]]
///     grpc_service = "r.Reports"
///     any_trust_domain = true
/// "#)?;
///
/// // In a layer: `ValidateJwtSvidLayer::required(validator, policy)`.
/// let policy = FilePolicy::builder(&path).open()?;
/// assert_eq!(policy.state().rules, 4);
///
/// let (parts, ()) = Request::get("/livez").body(())?.into_parts();
/// assert_eq!(policy.decide(None, &parts), Decision::Allow);
/// let (parts, ()) = Request::get("/reports/7").body(())?.into_parts();
/// assert_eq!(policy.decide(None, &parts), Decision::AuthenticationRequired);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok(())
/// # }
/// ```
///
/// # Format
///
/// A file is a list of `[[rule]]`. Rules only allow; everything else is denied. A rule names the
/// requests and the callers that it allows:
///
/// | key | value | allows |
/// | --- | --- | --- |
/// | `path` | a path pattern | requests to these paths; `methods` is required |
/// | `methods` | a list, or `"any"` | these methods. `GET` includes `HEAD`; `"any"` is all but `CONNECT` |
/// | `grpc_service` | `package.Service` | every method of this gRPC service, including methods added later |
/// | `grpc_method` | `/package.Service/Method` | this gRPC method |
/// | `ids` | a list of SPIFFE IDs | exactly these callers |
/// | `path_prefixes` | a list of SPIFFE IDs | these IDs and every ID under them, by whole path segments |
/// | `trust_domains` | a list of names | every caller of these trust domains |
/// | `any_trust_domain` | `true` | every caller with a valid token, including callers of federated trust domains |
/// | `public` | `true` | everyone, with or without a token |
/// | `claims` | a table by claim | only those of these callers whose tokens have all of these claims |
/// | `name` | a text | nothing: it is shown in explanations |
///
/// A rule has one of `path`, `grpc_service` and `grpc_method`, and at least one of the keys of
/// callers. `ids`, `path_prefixes` and `trust_domains` can be combined: each of them allows its
/// callers. Only top-level claims can be required. A claim is a value (a string, a boolean or an
/// integer), which must be equal, or a table with one of these keys:
///
/// | key | the claim is |
/// | --- | --- |
/// | `equals` | this value |
/// | `one_of` | one of these values |
/// | `contains` | an array with this value, or this value alone |
/// | `contains_any` | an array with one of these values, or one of them alone |
///
/// # Paths
///
/// A pattern has the syntax of axum 0.8: `/reports/{id}` matches one segment, `/files/{*path}` all
/// that follow. Parameters do not match an empty text at the end: `/files/{*path}` does not match
/// `/files/`. Escapes, literal braces and more than 25 parameters are errors.
///
/// - **The most specific pattern decides**, as in axum's router, and no other one: if
///   `/reports/{id}` and `/reports/export` have rules, the rules of `/reports/{id}` do not apply to
///   `/reports/export`, for any method. All rules of a pattern are alternatives. A gRPC service is
///   the pattern `/package.Service/{method}`.
/// - **The path is the one that the router sees.** It is compared without changes: with its case, a
///   slash at the end, and escapes. Put services that change the path, such as tower-http's
///   `NormalizePath`, outside the layer.
/// - **A path that programs may read in several ways is denied** if it matches by a parameter. Such
///   a path has an empty segment (`//`), a dot segment, a backslash or a control character. A path
///   with escapes is such a path if its decoded form has one of these or matches another pattern.
///   So a rule for `/{*path}` does not open `/admin/{*path}` through `//admin/x` or `/%61dmin/x`.
/// - **In `Router::nest`** the policy sees the path without the prefix, see
///   [`match_original_uri`](FilePolicyBuilder::match_original_uri).
/// - **gRPC** requests are `POST`, and their path is compared exactly. The policy declares no
///   protocol: a gRPC server sets the layer's
///   [`protocol`](super::ValidateJwtSvidLayer::protocol).
/// - **`OPTIONS`**: preflights have no token; put `CorsLayer` outside this layer, so that it
///   responds to them.
///
/// # Callers without a token
///
/// Only public rules allow them, even if the layer is
/// [`required`](super::ValidateJwtSvidLayer::required). All other requests without a token get 401,
/// so their callers do not learn which paths have rules. If a request to a public path has a
/// token, it is verified: the handler sees the caller, and an invalid token is rejected.
///
/// # Errors in a file
///
/// Unknown keys, duplicates, patterns that conflict, and rules without effect (because other rules
/// allow all of their requests) are errors with a line and a column. A file without rules is an
/// error too: it is probably truncated. Check a file before it is rolled out: `tower-spiffe policy
/// check` explains a decision, `tower-spiffe policy test` compares decisions with expected ones.
///
/// # Changes
///
/// The file is checked every 5 s, and the whole policy is replaced at once. Each request is decided
/// by one policy, the old or the new one. Replace the file by a rename: then it is always complete.
/// If a file is written in place, it takes effect if a second check 250 ms later finds the same
/// content. So a half-written file is used only if the writer pauses.
///
/// If the file is invalid or missing later, the last good policy stays. [`state`](Self::state) has
/// the error, and each check counts an error `policy-file`. One warning has the line and the column.
/// The next good check is logged too. When the runtime on which the policy was opened ends, the
/// last policy stays and is not refreshed.
#[derive(Clone)]
pub struct FilePolicy(Arc<Followed>);

/// Options of a [`FilePolicy`].
#[derive(Clone)]
#[must_use = "it is a policy once `open` has read the file"]
pub struct FilePolicyBuilder {
    path: PathBuf,
    paths: Paths,
    every: Duration,
    max_bytes: u64,
    dry_run: bool,
    clock: Arc<dyn Clock>,
    metrics: Option<Arc<dyn MetricsRecorder>>,
}

impl FilePolicy {
    /// Creates a builder for the policy in this file.
    pub fn builder(path: impl AsRef<Path>) -> FilePolicyBuilder {
        FilePolicyBuilder {
            path: path.as_ref().to_owned(),
            paths: Paths::Seen,
            every: Duration::from_secs(5),
            max_bytes: 1 << 20,
            dry_run: false,
            clock: SystemClock::shared(),
            metrics: None,
        }
    }

    /// Returns the current state.
    pub fn state(&self) -> FilePolicyState {
        self.0.state()
    }

    /// Returns whether the file is followed without errors, for alerts; see
    /// [`FilePolicyState::is_healthy`].
    pub fn is_healthy(&self) -> bool {
        self.state().is_healthy()
    }

    /// Returns the policy that is in use now. It does not change, and has no dry run.
    pub fn document(&self) -> PolicyDocument {
        let rules = arc_swap::Guard::into_inner(self.0.rules());
        PolicyDocument::new(rules, self.0.settings.paths)
    }

    /// Reads the file now, for example on a signal. Blocks the calling thread. A new content takes
    /// effect before this returns.
    ///
    /// # Errors
    /// The file cannot be read or is not a policy. The last good policy stays.
    pub fn reload(&self) -> Result<(), FilePolicyError> {
        self.0.reload()
    }
}

impl FilePolicyBuilder {
    /// Sets how often the file is checked for changes. 5 s by default; at least 10 ms. After a
    /// suspend, or another forward step of the wall clock, it is checked within a second.
    pub fn poll_interval(mut self, every: Duration) -> Self {
        self.every = every.max(Duration::from_millis(10));
        self
    }

    /// Limits the size of the file, in bytes. 1 MiB by default.
    pub fn max_file_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Compares patterns with the [original URI](super::original_uri), for a layer inside of axum's
    /// `Router::nest`. Needs the feature `axum`.
    pub fn match_original_uri(mut self) -> Self {
        self.paths = Paths::Original;
        self
    }

    /// Allows every request, and logs and counts those that the file denies. Use it for a new file,
    /// together with the policy that it will replace. A request that waits, for a key or for an
    /// asynchronous policy, is checked again and can be counted twice.
    ///
    /// **This allows everything.** Every verified caller is allowed, and so are requests without a
    /// token, even if the layer is [`required`](super::ValidateJwtSvidLayer::required). An
    /// asynchronous policy is not asked, as for public requests. Only invalid tokens are rejected.
    /// Combine it with the current policy:
    ///
    /// ```no_run
    /// use tower_spiffe::Allow;
    /// use tower_spiffe::server::FilePolicy;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let current = Allow::trust_domain("example.org")?;
    /// let next = FilePolicy::builder("/etc/reports/policy.toml").dry_run(true).open()?;
    /// // Decides as `current`.
    /// let policy = current.and(Allow::policy(next));
    /// # drop(policy);
    /// # Ok(())
    /// # }
    /// ```
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Sets the clock for ages and log intervals. The system clock by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Sets the recorder of errors and of denials in a dry run. The default is the recorder of the
    /// layer that the policy is given to.
    pub fn metrics(mut self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.metrics = Some(recorder);
        self
    }

    /// Reads the file, then follows it on this tokio runtime. The first read blocks the calling
    /// thread; later reads are done on a separate thread, never in the runtime's blocking pool.
    ///
    /// # Errors
    /// The file cannot be read or is not a policy, or there is no tokio runtime.
    pub fn open(self) -> Result<FilePolicy, FilePolicyError> {
        let runtime = runtime::with_timers().map_err(|missing| {
            let text = format!("it cannot be followed: {missing}");
            FilePolicyError::new(FilePolicyErrorReason::NoRuntime, text).in_file(&self.path)
        })?;
        let followed = Arc::new(Followed::open(Settings {
            path: self.path,
            paths: self.paths,
            every: self.every,
            max_bytes: self.max_bytes,
            clock: TrustClock::new(self.clock.clone()),
            recorder: Recorder::new(self.metrics),
            dry_run: self.dry_run.then(|| DryRun::new(self.clock)),
        })?);
        if self.dry_run {
            let path = followed.settings.path.display();
            tracing::warn!(%path, "a policy file is in a dry run: it denies no request");
        }
        follow::spawn(&followed, &runtime);
        Ok(FilePolicy(followed))
    }
}

impl Policy for FilePolicy {
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision {
        let settings = &self.0.settings;
        let path = settings.paths.of(parts);
        let decision = self.0.rules().decide(caller, &parts.method, path);
        match &settings.dry_run {
            Some(dry_run) if decision != Decision::Allow => {
                let request = (&parts.method, path);
                dry_run.denied(decision, caller, request, &settings.recorder);
                Decision::Allow
            }
            _ => decision,
        }
    }

    fn is_public(&self, parts: &Parts) -> bool {
        let settings = &self.0.settings;
        let path = settings.paths.of(parts);
        settings.dry_run.is_some() || self.0.rules().is_public(&parts.method, path)
    }

    // Not counted: the request has a token.
    fn allows_anonymous(&self, parts: &Parts) -> bool {
        self.is_public(parts)
    }

    fn inherit_metrics(&self, recorder: &Arc<dyn MetricsRecorder>) {
        self.0.settings.recorder.inherit(recorder);
    }
}

impl fmt::Debug for FilePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.0.settings;
        f.debug_struct("FilePolicy")
            .field("path", &settings.path)
            .field("dry_run", &settings.dry_run.is_some())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for FilePolicyBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilePolicyBuilder")
            .field("path", &self.path)
            .field("every", &self.every)
            .field("dry_run", &self.dry_run)
            .finish_non_exhaustive()
    }
}

/// Returns the ID and the IDs above it, from the trust domain down, with at most this many
/// segments.
fn above(id: &str, segments: usize) -> impl Iterator<Item = &str> {
    const SCHEME: usize = "spiffe://".len();
    let slash = id.get(SCHEME..).and_then(|rest| rest.find('/'));
    let path_at = slash.map_or(id.len(), |at| at + SCHEME);
    let path = id.get(path_at..).unwrap_or_default();
    let ends = path.match_indices('/').skip(1).map(|(at, _)| at);
    let whole = (!path.is_empty()).then_some(path.len());
    let ends = ends.chain(whole).take(segments);
    std::iter::once(path_at)
        .chain(ends.map(move |end| path_at + end))
        .filter_map(move |end| id.get(..end))
}

#[cfg(test)]
mod tests {
    use super::above;

    #[test]
    fn p01_ids_are_under_whole_segments() {
        let of = |id, segments| above(id, segments).collect::<Vec<_>>();
        assert_eq!(
            of("spiffe://x/a/bc/d", usize::MAX),
            [
                "spiffe://x",
                "spiffe://x/a",
                "spiffe://x/a/bc",
                "spiffe://x/a/bc/d"
            ]
        );
        assert_eq!(of("spiffe://x/a/bc/d", 1), ["spiffe://x", "spiffe://x/a"]);
        assert_eq!(of("spiffe://x/a", 0), ["spiffe://x"]);
        assert_eq!(of("spiffe://x", 9), ["spiffe://x"]);
    }
}
