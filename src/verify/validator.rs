//! The validator: cache, then judgement.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::builder::{Settings, ValidatorBuilder};
use super::cache::{VerifiedCache, VerifiedCacheStats};
use super::{ValidateError, ValidateReason, VerifiedSvid};
use crate::bundle::{BundleAnswer, BundleSource};
use crate::clock::Clock;
use crate::metrics::Verification;

/// Checks callers' tokens (JWT-SVID sections 3 and 4), and remembers those that it verified.
///
/// A clone is one reference count and shares the cache.
///
/// The cache holds verified tokens only, never a refusal, compared byte by byte. An entry counts
/// for as long as its trust domain's bundle has the very key that it was verified with, and on
/// every hit the time is judged anew, and whether the source can judge at all.
#[derive(Clone)]
pub struct Validator(Arc<Inner>);

/// Whether a token comes with this request for the first time, or is judged anew while its request
/// waits. Only the first is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    First,
    #[cfg_attr(
        not(feature = "server"),
        allow(dead_code, reason = "only a layer waits")
    )]
    Again,
}

pub(super) struct Inner {
    pub(super) source: Arc<dyn BundleSource>,
    pub(super) settings: Settings,
    pub(super) cache: Option<VerifiedCache>,
}

impl Validator {
    /// Begins a validator that takes its bundles from `source`.
    pub fn builder(source: impl BundleSource) -> ValidatorBuilder {
        ValidatorBuilder::new(Arc::new(source))
    }

    pub(super) fn new(source: Arc<dyn BundleSource>, settings: Settings) -> Self {
        let cache = (settings.cache_bytes > 0).then(|| VerifiedCache::new(settings.cache_bytes));
        Self(Arc::new(Inner {
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
        let (verdict, cached) = self.judge(token, Sight::First);
        let (reason, claimed) = match &verdict {
            Ok(svid) => (None, Some(svid.spiffe_id().trust_domain_name())),
            Err(error) => (Some(error.reason()), error.trust_domain()),
        };
        self.record(reason, cached, claimed);
        verdict
    }

    /// The verdict, and whether the cache had it; told to nobody.
    pub(crate) fn judge(
        &self,
        token: &str,
        sight: Sight,
    ) -> (Result<VerifiedSvid, ValidateError>, bool) {
        self.0.judge(token, sight)
    }

    /// Tells the recorder of a verdict: a refusal for this reason, or none.
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
        // Anyone can claim a name; a label is only what we know.
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

    /// The audiences that we go by.
    pub fn audiences(&self) -> &[Box<str>] {
        &self.0.settings.audiences
    }

    /// The longest token, in bytes.
    pub fn max_token_len(&self) -> usize {
        self.0.settings.max_token_len
    }

    /// How much before `nbf` and after `exp` a token is taken.
    pub fn leeway(&self) -> Duration {
        self.0.settings.leeway
    }

    /// The clock that it goes by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.settings.clock
    }

    /// Where its bundles come from.
    pub fn source(&self) -> &dyn BundleSource {
        &*self.0.source
    }

    /// What the verified cache did so far; all zero where it is switched off.
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
