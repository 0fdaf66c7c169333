//! The builder of a validator.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{MAX_TOKEN_LEN, Validator};
use crate::bundle::BundleSource;
use crate::clock::{Clock, SystemClock};
use crate::jwt::{Algorithm, AlgorithmSet};
use crate::metrics::{MetricsRecorder, Shielded};

/// The longest leeway that is allowed.
pub(super) const MAX_LEEWAY: Duration = Duration::from_secs(300);
const DEFAULT_LEEWAY: Duration = Duration::from_secs(10);
const DEFAULT_CACHE_BYTES: usize = 8 * 1024 * 1024;

/// The options of a [`Validator`]. At least one audience is required; everything else has a safe default.
#[must_use = "nothing is built until `build`"]
pub struct ValidatorBuilder {
    source: Arc<dyn BundleSource>,
    settings: Settings,
}

pub(super) struct Settings {
    pub(super) audiences: Vec<Box<str>>,
    pub(super) sole_audience: bool,
    pub(super) leeway: Duration,
    pub(super) max_token_len: usize,
    pub(super) allow_unknown_headers: bool,
    pub(super) require_key_id: bool,
    pub(super) algorithms: AlgorithmSet,
    pub(super) max_lifetime: Option<Duration>,
    pub(super) cache_bytes: usize,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Option<Arc<dyn MetricsRecorder>>,
}

/// Why a validator cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BuildValidatorError {
    /// No audience was given: tokens for every audience would be accepted.
    NoAudience,
    /// An audience is the empty string.
    EmptyAudience,
    /// An audience begins or ends with white space, as text from a file may: no token would match it.
    AudienceWhitespace,
    /// The leeway is longer than 300 s.
    LeewayTooLong,
    /// No algorithm is allowed.
    NoAlgorithm,
    /// The longest token would have zero bytes.
    MaxTokenLen,
}

impl ValidatorBuilder {
    pub(super) fn new(source: Arc<dyn BundleSource>) -> Self {
        let settings = Settings {
            audiences: Vec::new(),
            sole_audience: false,
            leeway: DEFAULT_LEEWAY,
            max_token_len: MAX_TOKEN_LEN,
            allow_unknown_headers: false,
            require_key_id: false,
            algorithms: AlgorithmSet::ALL,
            max_lifetime: None,
            cache_bytes: DEFAULT_CACHE_BYTES,
            clock: SystemClock::shared(),
            metrics: None,
        };
        Self { source, settings }
    }

    /// Adds a name of this service. One of the token's audiences must equal one of these names, byte for
    /// byte (JWT-SVID section 3.2).
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        let audience: String = audience.into();
        self.settings.audiences.push(audience.into());
        self
    }

    /// Adds several names.
    pub fn audiences<A: Into<String>>(self, audiences: impl IntoIterator<Item = A>) -> Self {
        audiences.into_iter().fold(self, Self::audience)
    }

    /// Requires a token to have exactly one audience, one of the validator's. Other tokens are
    /// rejected with [`ValidateReason::Audience`](super::ValidateReason::Audience). Off by default.
    ///
    /// For authorization servers: in a client assertion, the server's issuer identifier must be the
    /// only `aud`. Otherwise another server that the token names could present it here
    /// (draft-ietf-oauth-spiffe-client-auth, RFC 7523 section 3). `iss` is not required, and `jti`
    /// is not checked: the token can be used again until it expires.
    ///
    /// ```
    /// # #[cfg(feature = "testing")] {
    /// use tower_spiffe::testing::Issuer;
    /// use tower_spiffe::Validator;
    /// use tower_spiffe::bundle::FixedBundles;
    /// use tower_spiffe::verify::ValidateReason;
    ///
    /// # let spire = Issuer::new("example.org")?;
    /// # let bundles = FixedBundles::new([spire.bundle()].into_iter().collect());
    /// const ISSUER: &str = "https://as.example.org";
    /// let assertions = Validator::builder(bundles).audience(ISSUER).sole_audience().build()?;
    ///
    /// // In the token endpoint, if `client_assertion_type` is
    /// // `urn:ietf:params:oauth:client-assertion-type:jwt-spiffe`:
    /// let client_assertion = spire.token("spiffe://example.org/web", ISSUER).sign();
    /// let client = assertions.validate(&client_assertion)?;
    /// assert_eq!(client.spiffe_id().as_str(), "spiffe://example.org/web"); // the `client_id`
    ///
    /// let for_two = spire.token("spiffe://example.org/web", ISSUER).audience("reports").sign();
    /// let error = assertions.validate(&for_two).unwrap_err();
    /// assert_eq!(error.reason(), ValidateReason::Audience);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "oauth")]
    pub fn sole_audience(mut self) -> Self {
        self.settings.sole_audience = true;
        self
    }

    /// Sets how far the clocks of this service and of an issuer may differ: a token is accepted this much before `nbf` and
    /// after `exp`. 10 s by default, at most 300 s.
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.settings.leeway = leeway;
        self
    }

    /// Sets the longest token, in bytes; a longer one is rejected unread. 8 KiB by default.
    pub fn max_token_len(mut self, bytes: usize) -> Self {
        self.settings.max_token_len = bytes;
        self
    }

    /// Allows unknown header fields. Issuers must not write any (JWT-SVID section 2), so by default a
    /// token with one is rejected. Fields that change how a token is read or that contain a key (`crit`,
    /// `b64`, `jku`, `jwk`, `x5…`) are always rejected.
    pub fn allow_unknown_headers(mut self, allow: bool) -> Self {
        self.settings.allow_unknown_headers = allow;
        self
    }

    /// Requires each token to name its key with `kid`; others are rejected with
    /// [`ValidateReason::Header`](super::ValidateReason::Header). `false` by default.
    ///
    /// `kid` is optional in a JWT-SVID (section 2.2). Without it, the keys of the subject's trust
    /// domain that fit `alg` are tried, if there are at most four; with more than four the token is
    /// rejected with [`ValidateReason::KeyUnknown`](super::ValidateReason::KeyUnknown) and none is
    /// tried. SPIRE always writes `kid`, so `true` saves these signature checks.
    pub fn require_key_id(mut self, require: bool) -> Self {
        self.settings.require_key_id = require;
        self
    }

    /// Allows these algorithms only. All nine by default.
    pub fn algorithms(mut self, algorithms: impl IntoIterator<Item = Algorithm>) -> Self {
        self.settings.algorithms = algorithms
            .into_iter()
            .fold(AlgorithmSet::NONE, AlgorithmSet::with);
        self
    }

    /// Rejects tokens with a longer lifetime, counted from `iat`, or from now (plus leeway) if `iat` is
    /// missing or in the future. `None`, the default, sets no limit.
    pub fn max_lifetime(mut self, longest: Option<Duration>) -> Self {
        self.settings.max_lifetime = longest;
        self
    }

    /// Limits the cache of verified tokens, in bytes; 8 MiB by default, 0 switches it off.
    ///
    /// In addition, each thread that validates keeps its most recent tokens: at most the same
    /// number of bytes per thread, and at most 640 KiB per thread for all validators together.
    /// After a validator is dropped they stay until the thread verifies another new token, or ends.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.settings.cache_bytes = bytes;
        self
    }

    /// Switches the verified cache off: each token is verified each time.
    pub fn no_cache(self) -> Self {
        self.cache_bytes(0)
    }

    /// Sets the clock. The system clock by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.settings.clock = clock;
        self
    }

    /// Sets the recorder of validations. By default it is that of the source; `Arc::new(())` records
    /// nothing.
    pub fn metrics(mut self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.settings.metrics = Some(Arc::new(Shielded::new(recorder)));
        self
    }

    /// Builds the validator.
    ///
    /// # Errors
    /// A setting is invalid; see [`BuildValidatorError`].
    pub fn build(self) -> Result<Validator, BuildValidatorError> {
        let settings = &self.settings;
        if settings.audiences.is_empty() {
            return Err(BuildValidatorError::NoAudience);
        }
        let mut audiences = settings.audiences.iter();
        if audiences.clone().any(|audience| audience.is_empty()) {
            return Err(BuildValidatorError::EmptyAudience);
        }
        if audiences.any(|audience| audience.trim().len() != audience.len()) {
            return Err(BuildValidatorError::AudienceWhitespace);
        }
        if settings.leeway > MAX_LEEWAY {
            return Err(BuildValidatorError::LeewayTooLong);
        }
        if settings.algorithms.is_empty() {
            return Err(BuildValidatorError::NoAlgorithm);
        }
        if settings.max_token_len == 0 {
            return Err(BuildValidatorError::MaxTokenLen);
        }
        let mut settings = self.settings;
        if settings.metrics.is_none() {
            let inherited = self.source.metrics();
            settings.metrics = inherited.map(|recorder| Arc::new(Shielded::new(recorder)) as _);
        }
        Ok(Validator::new(self.source, settings))
    }
}

impl fmt::Debug for ValidatorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidatorBuilder")
            .field("audiences", &self.settings.audiences)
            .field("leeway", &self.settings.leeway)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for BuildValidatorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAudience => {
                "no audience given; name this service with `.audience(\"spiffe://…\")`"
            }
            Self::EmptyAudience => {
                "an audience is empty; use the name that callers request tokens for"
            }
            Self::AudienceWhitespace => {
                "an audience begins or ends with white space, such as a line break, and would match no \
                 token; trim it"
            }
            Self::LeewayTooLong => {
                "the leeway is longer than 300 s; reduce it, or fix the clock skew"
            }
            Self::NoAlgorithm => "no algorithm is allowed; name one, or remove `.algorithms`",
            Self::MaxTokenLen => "the maximum length of a token is 0; raise it, or remove `.max_token_len`",
        })
    }
}

impl std::error::Error for BuildValidatorError {}
