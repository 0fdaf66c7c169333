//! How a validator is set up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{MAX_TOKEN_LEN, Validator};
use crate::bundle::BundleSource;
use crate::clock::{Clock, SystemClock};
use crate::jwt::{Algorithm, AlgorithmSet};
use crate::metrics::{MetricsRecorder, Shielded};

/// The longest leeway that a validator takes.
pub(super) const MAX_LEEWAY: Duration = Duration::from_secs(300);
const DEFAULT_LEEWAY: Duration = Duration::from_secs(10);
const DEFAULT_CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Sets up a [`Validator`]. One audience at least is needed; all else has a safe default.
#[must_use = "nothing is built until `build`"]
pub struct ValidatorBuilder {
    source: Arc<dyn BundleSource>,
    settings: Settings,
}

pub(super) struct Settings {
    pub(super) audiences: Vec<Box<str>>,
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
    /// No audience was given: every token of the trust domain, for whomever, would be accepted.
    NoAudience,
    /// An audience is the empty string.
    EmptyAudience,
    /// An audience begins or ends with white space, as what is read from a file may: no token would
    /// ever be for it.
    AudienceWhitespace,
    /// The leeway is longer than 300 s.
    LeewayTooLong,
    /// No algorithm is allowed.
    NoAlgorithm,
    /// The longest token would have no bytes.
    MaxTokenLen,
}

impl ValidatorBuilder {
    pub(super) fn new(source: Arc<dyn BundleSource>) -> Self {
        let settings = Settings {
            audiences: Vec::new(),
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

    /// Adds a name that we go by. A token is for us when one of its audiences is one of ours, byte
    /// for byte (JWT-SVID section 3.2).
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        let audience: String = audience.into();
        self.settings.audiences.push(audience.into());
        self
    }

    /// Adds several.
    pub fn audiences<A: Into<String>>(self, audiences: impl IntoIterator<Item = A>) -> Self {
        audiences.into_iter().fold(self, Self::audience)
    }

    /// How far our clock and an issuer's may differ: a token is taken this much before `nbf` and
    /// after `exp`. 10 s by default, at most 300 s.
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.settings.leeway = leeway;
        self
    }

    /// The longest token, in bytes; a longer one is refused unread. 8 KiB by default.
    pub fn max_token_len(mut self, bytes: usize) -> Self {
        self.settings.max_token_len = bytes;
        self
    }

    /// Lets header fields pass which mean nothing to us. Issuers must not write any (JWT-SVID
    /// section 2), so that by default a token with one is refused. Fields that change how a token
    /// is read or that bring a key (`crit`, `b64`, `jku`, `jwk`, `x5…`) are refused always.
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

    /// Refuses tokens that live longer than this: counted from `iat`, or from now (leeway added)
    /// where `iat` is absent or ahead. `None`, the default, refuses none for it.
    pub fn max_lifetime(mut self, longest: Option<Duration>) -> Self {
        self.settings.max_lifetime = longest;
        self
    }

    /// How many bytes the verified cache may hold; 8 MiB by default, 0 switches it off.
    ///
    /// On top of that each thread that validates has the tokens at hand which it saw last: at most
    /// as many bytes again per thread, and with all validators together at most 640 KiB. A
    /// validator that is dropped leaves them there until that thread verifies another new token, or
    /// ends.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.settings.cache_bytes = bytes;
        self
    }

    /// Switches the verified cache off: each token is verified each time.
    pub fn no_cache(self) -> Self {
        self.cache_bytes(0)
    }

    /// The clock to go by; the machine's by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.settings.clock = clock;
        self
    }

    /// Who is told of each verdict; nobody by default.
    pub fn metrics(mut self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.settings.metrics = Some(Arc::new(Shielded::new(recorder)));
        self
    }

    /// Builds the validator.
    ///
    /// # Errors
    /// A [`BuildValidatorError`] that says what to mend.
    pub fn build(self) -> Result<Validator, BuildValidatorError> {
        let settings = &self.settings;
        if settings.audiences.is_empty() {
            return Err(BuildValidatorError::NoAudience);
        }
        if settings
            .audiences
            .iter()
            .any(|audience| audience.is_empty())
        {
            return Err(BuildValidatorError::EmptyAudience);
        }
        if settings
            .audiences
            .iter()
            .any(|audience| audience.trim().len() != audience.len())
        {
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
        Ok(Validator::new(self.source, self.settings))
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
                "an audience is empty; give the name that callers ask tokens for"
            }
            Self::AudienceWhitespace => {
                "an audience begins or ends with white space, a line break perhaps; no token would \
                 be for it, so trim it"
            }
            Self::LeewayTooLong => "the leeway is longer than 300 s; give less, or mend the clocks",
            Self::NoAlgorithm => "no algorithm is allowed; name one, or leave `.algorithms` out",
            Self::MaxTokenLen => "the longest token has no bytes; leave `.max_token_len` out",
        })
    }
}

impl std::error::Error for BuildValidatorError {}
