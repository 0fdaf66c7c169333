//! The handle of a source.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::HeaderValue;
use tokio::task::AbortHandle;

use super::builder::JwtSourceBuilder;
use super::error::JwtSourceError;
use super::shared::Shared;
use super::state::SourceState;
use super::updates::{self, SourceUpdates};
use crate::bundle::{BundleAnswer, BundleSource, BundlesUnavailable, JwtBundle, JwtBundleSet};
use crate::identity::{SpiffeId, TrustDomain};
use crate::metrics::MetricsRecorder;
use crate::runtime;
use crate::token::SvidCache;
use crate::token::{JwtSvid, SvidRequest};

/// Bundles and tokens from the local agent, kept up to date. Create one per process: clones are cheap
/// and share everything.
///
/// Dropping a clone does nothing; dropping the last one, or [`shutdown`](Self::shutdown), ends the
/// background task and the connection. A validator, layer or cache that was built from
/// a clone keeps that clone.
///
/// The task and the connection live on the tokio runtime that the source was built on. The source
/// may be used on every runtime. When its own runtime ends, the source is closed: its bundles would
/// become stale.
///
/// Bundles, cached tokens, [`ready`](Self::ready), [`updated`](Self::updated) and
/// [`shutdown`](Self::shutdown) work on every thread. A call that waits for the agent has a time
/// limit, so it needs a tokio runtime with timers where it is awaited, and returns `NoRuntime`
/// without one. tokio reports missing timers by a panic only: this crate catches it, once per
/// thread and runtime, but under `panic = "abort"` the process aborts with tokio's message.
#[derive(Clone)]
pub struct JwtSource {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    // Its fetcher holds `shared` and never this, so that handles can be counted.
    pub(super) cache: SvidCache,
    pub(super) task: AbortHandle,
    pub(super) shutdown_timeout: Option<Duration>,
    pub(super) metrics: Option<Arc<dyn MetricsRecorder>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
        // As in a shutdown: fetches in progress fail at once.
        self.cache.close();
    }
}

impl JwtSource {
    /// Connects to the agent at `SPIFFE_ENDPOINT_SOCKET` (an environment variable) and waits for the
    /// first bundles. The same as [`builder`](Self::builder) with all defaults.
    ///
    /// # Errors
    /// See [`JwtSourceBuilder::build`].
    pub async fn new() -> Result<Self, JwtSourceError> {
        Self::builder().build().await
    }

    /// Creates a builder.
    pub fn builder() -> JwtSourceBuilder {
        JwtSourceBuilder::new()
    }

    pub(crate) fn initial_sync_error(&self, within: Duration) -> JwtSourceError {
        let shared = &self.inner.shared;
        let (code, why) = shared.why_not_ready();
        JwtSourceError::initial_sync(within, shared.client.line().place(), code, &why)
    }

    // === Bundles ===

    /// Returns all bundles, as they are now.
    ///
    /// # Errors
    /// The bundles cannot be used now.
    pub fn bundle_set(&self) -> Result<JwtBundleSet, JwtSourceError> {
        let published = &self.inner.shared.published;
        published
            .bundle_set()
            .map_err(JwtSourceError::bundles_unavailable)
    }

    /// Returns the bundle of this trust domain, as it is now. It has no keys if the issuer sends a
    /// bundle that could never be read.
    ///
    /// # Errors
    /// There is no bundle for this trust domain, or the bundles cannot be used now.
    pub fn bundle_for_trust_domain(
        &self,
        trust_domain: &TrustDomain,
    ) -> Result<Arc<JwtBundle>, JwtSourceError> {
        match self.inner.shared.published.bundle(trust_domain.name()) {
            BundleAnswer::Ready(bundle) => Ok(bundle),
            BundleAnswer::UnknownTrustDomain => Err(JwtSourceError::unknown(trust_domain)),
            BundleAnswer::Unavailable(why) => Err(JwtSourceError::bundles_unavailable(why)),
        }
    }

    /// Returns the bundle of this trust domain, if there is one that can be used now.
    pub fn try_bundle_for_trust_domain(
        &self,
        trust_domain: &TrustDomain,
    ) -> Option<Arc<JwtBundle>> {
        self.bundle_for_trust_domain(trust_domain).ok()
    }

    // === Tokens ===

    /// Returns a token of this workload for these audiences, from the cache if it has a fresh one. (In
    /// the `spiffe` crate, the method of this name calls the agent every time; here that is
    /// [`fetch_jwt_svid`](Self::fetch_jwt_svid).)
    ///
    /// If the workload has several identities, the agent chooses one at each refresh.
    ///
    /// # Errors
    /// There is no audience or an empty one (the agent is not called), or no token arrived in time.
    pub async fn get_jwt_svid<A: AsRef<str>>(
        &self,
        audiences: impl IntoIterator<Item = A>,
    ) -> Result<JwtSvid, JwtSourceError> {
        self.get_jwt_svid_with_id(audiences, None).await
    }

    /// Returns a token for this identity; see [`get_jwt_svid`](Self::get_jwt_svid).
    ///
    /// # Errors
    /// As [`get_jwt_svid`](Self::get_jwt_svid).
    pub async fn get_jwt_svid_with_id<A: AsRef<str>>(
        &self,
        audiences: impl IntoIterator<Item = A>,
        id: Option<&SpiffeId>,
    ) -> Result<JwtSvid, JwtSourceError> {
        self.get(&request(audiences, id)?).await
    }

    /// Returns a token for the identity with this hint; see [`get_jwt_svid`](Self::get_jwt_svid).
    ///
    /// For the first token of a hint, the agent signs one for every identity of this workload. Later
    /// tokens are requested by the SPIFFE ID that has the hint, until the hint moves.
    ///
    /// # Errors
    /// As [`get_jwt_svid`](Self::get_jwt_svid); or the hint is empty, or no identity of this workload
    /// has it.
    pub async fn get_jwt_svid_with_hint<A: AsRef<str>>(
        &self,
        audiences: impl IntoIterator<Item = A>,
        hint: &str,
    ) -> Result<JwtSvid, JwtSourceError> {
        self.get(&SvidRequest::new(audiences)?.with_hint(hint)?)
            .await
    }

    /// Fetches a token of this workload for these audiences: one call to the agent, no cache.
    ///
    /// # Errors
    /// There is no audience or an empty one (the agent is not called), or the call failed.
    pub async fn fetch_jwt_svid<A: AsRef<str>>(
        &self,
        audiences: impl IntoIterator<Item = A>,
    ) -> Result<JwtSvid, JwtSourceError> {
        self.fetch_jwt_svid_with_id(audiences, None).await
    }

    /// Fetches a token for this identity; see [`fetch_jwt_svid`](Self::fetch_jwt_svid).
    ///
    /// # Errors
    /// As [`fetch_jwt_svid`](Self::fetch_jwt_svid).
    pub async fn fetch_jwt_svid_with_id<A: AsRef<str>>(
        &self,
        audiences: impl IntoIterator<Item = A>,
        id: Option<&SpiffeId>,
    ) -> Result<JwtSvid, JwtSourceError> {
        let request = request(audiences, id)?;
        Ok(self.inner.shared.fetch_counted(&request).await?)
    }

    /// Fetches a token for the identity with this hint; see [`fetch_jwt_svid`](Self::fetch_jwt_svid).
    /// It makes two calls if another identity now has the hint.
    ///
    /// # Errors
    /// As [`get_jwt_svid_with_hint`](Self::get_jwt_svid_with_hint).
    pub async fn fetch_jwt_svid_with_hint<A: AsRef<str>>(
        &self,
        audiences: impl IntoIterator<Item = A>,
        hint: &str,
    ) -> Result<JwtSvid, JwtSourceError> {
        let request = SvidRequest::new(audiences)?.with_hint(hint)?;
        Ok(self.inner.shared.fetch_counted(&request).await?)
    }

    /// Returns the value of an `authorization` header with a token for this audience, from the cache if
    /// it has a fresh one. It is marked sensitive. For clients that do not use a layer.
    ///
    /// # Errors
    /// The audience is empty, or no token arrived in time.
    pub async fn authorization(&self, audience: &str) -> Result<HeaderValue, JwtSourceError> {
        self.authorization_with_id(audience, None).await
    }

    /// Returns the header value for this identity; see [`authorization`](Self::authorization).
    ///
    /// # Errors
    /// As [`authorization`](Self::authorization).
    pub async fn authorization_with_id(
        &self,
        audience: &str,
        id: Option<&SpiffeId>,
    ) -> Result<HeaderValue, JwtSourceError> {
        self.header(&request([audience], id)?).await
    }

    /// Returns the header value for the identity with this hint; see
    /// [`authorization`](Self::authorization).
    ///
    /// # Errors
    /// As [`get_jwt_svid_with_hint`](Self::get_jwt_svid_with_hint).
    pub async fn authorization_with_hint(
        &self,
        audience: &str,
        hint: &str,
    ) -> Result<HeaderValue, JwtSourceError> {
        self.header(&SvidRequest::new([audience])?.with_hint(hint)?)
            .await
    }

    async fn get(&self, request: &SvidRequest) -> Result<JwtSvid, JwtSourceError> {
        self.open()?;
        Ok(self.inner.cache.get(request).await?)
    }

    async fn header(&self, request: &SvidRequest) -> Result<HeaderValue, JwtSourceError> {
        self.open()?;
        Ok(self.inner.cache.header(request).await?)
    }

    // === State ===

    /// Waits until tokens can be verified; returns immediately if they can.
    ///
    /// # Errors
    /// The source was shut down, or the agent rejected the stream with a permanent error.
    pub async fn ready(&self) -> Result<(), JwtSourceError> {
        self.inner.shared.until_ready().await
    }

    /// Returns a watcher of changes of the bundles, from now on.
    #[doc(alias = "subscribe")]
    pub fn updated(&self) -> SourceUpdates {
        SourceUpdates::new(self.inner.shared.published.notices())
    }

    /// Returns whether tokens can be verified now, for a readiness probe. While the agent is
    /// unreachable, they are verified with the last bundles. If tokens cannot be verified,
    /// [`SourceState::bundles_unavailable`] has the reason.
    pub fn is_ready(&self) -> bool {
        self.inner.shared.revision().is_ok()
    }

    /// Returns whether the source is healthy, for alerts; see [`SourceState::is_healthy`].
    pub fn is_healthy(&self) -> bool {
        self.inner.shared.state().is_healthy()
    }

    /// Returns the state, as it is now, of the bundles and of this workload's tokens.
    pub fn state(&self) -> SourceState {
        SourceState {
            svid_cache: self.inner.cache.stats(),
            audiences: self.inner.cache.snapshot(),
            ..self.inner.shared.state()
        }
    }

    // === Lifetime ===

    /// Closes the source for all clones, and returns when its task has ended and its connection is
    /// closed. It may be called several times, also concurrently. After the first call every method returns `Closed`.
    pub async fn shutdown(&self) {
        self.inner.shared.close();
        self.inner.cache.close();
        self.inner.shared.until_ended().await;
    }

    /// Closes the source as [`shutdown`](Self::shutdown), and aborts the task if it does not end within
    /// this time.
    ///
    /// # Errors
    /// The task was aborted; or it has not ended yet and there are no tokio timers to wait with. The
    /// source is closed in any case.
    pub async fn shutdown_with_timeout(&self, within: Duration) -> Result<(), JwtSourceError> {
        if let Err(missing) = runtime::with_timers() {
            const WAITING: &str = "the source is closed, but the wait for the end of its task cannot \
                                   have a limit";
            let ended = self.shutdown().now_or_never();
            return ended.ok_or_else(|| JwtSourceError::no_runtime(WAITING, missing));
        }
        match tokio::time::timeout(within, self.shutdown()).await {
            Ok(()) => Ok(()),
            Err(_) => {
                self.inner.task.abort();
                Err(JwtSourceError::shutdown_timeout(within))
            }
        }
    }

    /// Closes the source as [`shutdown_with_timeout`](Self::shutdown_with_timeout), within the
    /// [`shutdown_timeout`](JwtSourceBuilder::shutdown_timeout) of the builder.
    ///
    /// # Errors
    /// As [`shutdown_with_timeout`](Self::shutdown_with_timeout).
    pub async fn shutdown_configured(&self) -> Result<(), JwtSourceError> {
        match self.inner.shutdown_timeout {
            Some(within) => self.shutdown_with_timeout(within).await,
            None => {
                self.shutdown().await;
                Ok(())
            }
        }
    }

    /// A closed source returns `Closed`, even if the cache still has a token.
    fn open(&self) -> Result<(), JwtSourceError> {
        if self.inner.shared.is_closed() {
            Err(JwtSourceError::closed())
        } else {
            Ok(())
        }
    }
}

fn request<A: AsRef<str>>(
    audiences: impl IntoIterator<Item = A>,
    id: Option<&SpiffeId>,
) -> Result<SvidRequest, JwtSourceError> {
    let request = SvidRequest::new(audiences)?;
    Ok(match id {
        Some(id) => request.with_spiffe_id(id.clone()),
        None => request,
    })
}

impl BundleSource for JwtSource {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.inner.shared.revision()
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        self.inner.shared.published.bundle(trust_domain)
    }

    fn changed_since(&self, seen: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let notices = self.inner.shared.published.notices();
        Some(Box::pin(async move {
            updates::next(notices, seen).await;
        }))
    }

    fn is_healthy(&self) -> bool {
        self.inner.shared.state().is_healthy()
    }

    fn metrics(&self) -> Option<Arc<dyn MetricsRecorder>> {
        self.inner.metrics.clone()
    }
}

/// Returns the source's own cache, which shares its tokens with all other users of the source and
/// keeps the source open.
///
/// A source is not a [`FetchSvid`](crate::token::FetchSvid): a second cache over it would never learn of
/// revoked keys.
///
/// ```no_run
/// # async fn cache() -> Result<(), tower_spiffe::source::JwtSourceError> {
/// use tower_spiffe::{JwtSource, SvidCache};
///
/// let cache = SvidCache::from(JwtSource::new().await?);
/// # Ok(())
/// # }
/// ```
///
/// ```compile_fail,E0277
/// # async fn cache() -> Result<(), tower_spiffe::source::JwtSourceError> {
/// use tower_spiffe::{JwtSource, SvidCache};
///
/// let cache = SvidCache::new(JwtSource::new().await?);
/// # Ok(())
/// # }
/// ```
impl From<JwtSource> for SvidCache {
    fn from(source: JwtSource) -> Self {
        Self::from(&source)
    }
}

/// Returns the source's own cache, which keeps the source open.
impl From<&JwtSource> for SvidCache {
    fn from(source: &JwtSource) -> Self {
        source
            .inner
            .cache
            .clone()
            .keeping_alive(source.inner.clone())
    }
}

impl fmt::Debug for JwtSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSource")
            .field("endpoint", &self.inner.shared.client.line().place())
            .field("revision", &self.inner.shared.revision())
            .finish_non_exhaustive()
    }
}
