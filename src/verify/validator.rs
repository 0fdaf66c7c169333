//! The validator: the cache first, then the checks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::builder::{Settings, ValidatorBuilder};
use super::cache::{VerifiedCache, VerifiedCacheStats};
use super::check::Checks;
use super::{ValidateError, ValidateReason, VerifiedSvid};
use crate::bundle::{BundleAnswer, BundleSource};
use crate::clock::Clock;
#[cfg(feature = "server")]
use crate::metrics::MetricsRecorder;
use crate::metrics::Verification;

/// Verifies callers' tokens (JWT-SVID sections 3 and 4), and caches the verified ones.
///
/// Clones are cheap and share the cache.
///
/// The cache holds verified tokens, compared byte by byte, and never a rejection. An entry is valid
/// as long as the bundle of its trust domain has the same key. Every hit checks the times again, and
/// that the source is available.
#[derive(Clone)]
#[doc(alias = "jwks")]
#[doc(alias = "oidc")]
#[doc(alias = "oauth")]
pub struct Validator(Arc<Checks>);

/// Whether a token is checked for the first time in a request, or again after the request has waited.
/// Only the first check is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    First,
    #[cfg_attr(
        not(feature = "server"),
        allow(dead_code, reason = "only a layer waits")
    )]
    Again,
}

impl Validator {
    /// Creates a builder of a validator with the bundles of `source`.
    pub fn builder(source: impl BundleSource) -> ValidatorBuilder {
        ValidatorBuilder::new(Arc::new(source))
    }

    pub(super) fn new(source: Arc<dyn BundleSource>, settings: Settings) -> Self {
        let cache = (settings.cache_bytes > 0).then(|| VerifiedCache::new(settings.cache_bytes));
        Self(Arc::new(Checks {
            source,
            settings,
            cache,
        }))
    }

    /// Checks one token: the bare text, without `Bearer`.
    ///
    /// # Errors
    /// A [`ValidateError`]; the first check that fails decides its class.
    pub fn validate(&self, token: &str) -> Result<VerifiedSvid, ValidateError> {
        let (verdict, cached) = self.check(token, Sight::First);
        let (reason, claimed) = match &verdict {
            Ok(svid) => (None, Some(svid.spiffe_id().trust_domain_name())),
            Err(error) => (Some(error.reason()), error.trust_domain()),
        };
        self.record(reason, cached, claimed);
        verdict
    }

    /// Checks one token without recording it. Also returns whether the cache had it.
    pub(crate) fn check(
        &self,
        token: &str,
        sight: Sight,
    ) -> (Result<VerifiedSvid, ValidateError>, bool) {
        self.0.check(token, sight)
    }

    /// Records a validation: the reason of a rejection, or `None`.
    pub(crate) fn record(
        &self,
        reason: Option<ValidateReason>,
        cached: bool,
        claimed: Option<&str>,
    ) {
        let inner = &*self.0;
        let Some(metrics) = &inner.settings.metrics else {
            return;
        };
        // Anyone can claim a name: only known ones become labels.
        let known = claimed.and_then(|name| match inner.source.bundle(name) {
            BundleAnswer::Ready(bundle) => Some(bundle),
            _ => None,
        });
        let label = known
            .as_ref()
            .map_or("unknown", |bundle| bundle.trust_domain().name());
        let outcome = reason.map_or("ok", ValidateReason::as_str);
        let why = match reason {
            Some(ValidateReason::BundlesUnavailable(why)) => why.as_str(),
            _ => "",
        };
        metrics.record_verification(&Verification::new(outcome, cached, label).because(why));
    }

    /// Returns the audiences that tokens are accepted for; never empty.
    pub fn audiences(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.0.settings.audiences.iter().map(AsRef::as_ref)
    }

    /// The recorder that layers inherit.
    #[cfg(feature = "server")]
    pub(crate) fn metrics(&self) -> Option<Arc<dyn MetricsRecorder>> {
        self.0.settings.metrics.clone()
    }

    #[cfg(feature = "server")]
    pub(crate) fn accepted_audiences(&self) -> &[Box<str>] {
        &self.0.settings.audiences
    }

    /// Returns the longest token that is accepted, in bytes.
    pub fn max_token_len(&self) -> usize {
        self.0.settings.max_token_len
    }

    /// Returns how much before `nbf` and after `exp` a token is accepted.
    pub fn leeway(&self) -> Duration {
        self.0.settings.leeway
    }

    /// Returns its clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.settings.clock
    }

    /// Returns its source of bundles.
    pub fn source(&self) -> &dyn BundleSource {
        &*self.0.source
    }

    /// Returns the counters of the verified cache; all zero if it is switched off.
    pub fn cache_stats(&self) -> VerifiedCacheStats {
        self.0
            .cache
            .as_ref()
            .map(VerifiedCache::stats)
            .unwrap_or_default()
    }
}

impl fmt::Debug for Validator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Validator")
            .field("audiences", &self.0.settings.audiences)
            .field("leeway", &self.0.settings.leeway)
            .field("cache", &self.cache_stats())
            .finish_non_exhaustive()
    }
}
