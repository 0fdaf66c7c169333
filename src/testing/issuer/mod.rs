//! An issuer of JWT-SVIDs with its own keys.

mod jwks;
mod key;
mod token;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use self::key::SigningKey;
pub use self::token::TokenBuilder;
use super::must;
use crate::bundle::JwtBundle;
use crate::clock::{Clock, SystemClock};
use crate::identity::{SpiffeIdError, TrustDomain};
use crate::jwt::Algorithm;

/// The default lifetime of tokens, as in SPIRE.
pub(super) const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(300);

/// The JWT authority of one trust domain. It signs tokens as SPIRE does, and also invalid ones. Clones
/// are the same issuer.
///
/// ```
/// use tower_spiffe::testing::Issuer;
///
/// let issuer = Issuer::new("example.org")?;
/// let token = issuer.token("spiffe://example.org/web", "spiffe://example.org/db").sign();
/// assert_eq!(token.split('.').count(), 3);
///
/// // The keys that verify it: a JWK Set as SPIRE's agent serves it.
/// let jwks = String::from_utf8(issuer.jwks()).unwrap();
/// assert!(jwks.contains(&issuer.signing_key_id()));
/// # Ok::<(), tower_spiffe::identity::SpiffeIdError>(())
/// ```
#[derive(Clone)]
pub struct Issuer {
    inner: Arc<Inner>,
}

struct Inner {
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    keys: Mutex<Keys>,
    /// Notified when the result of [`Issuer::jwks`] has changed.
    listeners: Mutex<Vec<Weak<dyn OnChange>>>,
}

/// A server of an issuer's bundle.
pub(super) trait OnChange: Send + Sync {
    /// Called when the bundle has changed.
    fn changed(&self);
}

struct Keys {
    /// In the bundle, oldest first.
    published: Vec<Arc<SigningKey>>,
    /// No longer in the bundle. A test can still sign with them, as an attacker with a stolen key.
    revoked: Vec<Arc<SigningKey>>,
    signing: Arc<SigningKey>,
    sequence: u64,
    token_life: Duration,
}

impl Issuer {
    /// Creates an issuer of this trust domain, with one ES256 key and the system's clock.
    ///
    /// # Errors
    /// The trust domain's name is malformed.
    pub fn new(trust_domain: &str) -> Result<Self, SpiffeIdError> {
        Self::with_clock(trust_domain, SystemClock::shared())
    }

    /// Creates an issuer with another clock, for `iat` and `exp`.
    ///
    /// # Errors
    /// The trust domain's name is malformed.
    pub fn with_clock(trust_domain: &str, clock: Arc<dyn Clock>) -> Result<Self, SpiffeIdError> {
        let trust_domain = TrustDomain::parse(trust_domain)?;
        Ok(Self::build(trust_domain, clock, Algorithm::ES256))
    }

    pub(super) fn build(
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
        algorithm: Algorithm,
    ) -> Self {
        let signing = Arc::new(SigningKey::generate(algorithm));
        let keys = Keys {
            published: vec![signing.clone()],
            revoked: Vec::new(),
            signing,
            sequence: 1,
            token_life: DEFAULT_TOKEN_LIFE,
        };
        Self {
            inner: Arc::new(Inner {
                trust_domain,
                clock,
                keys: Mutex::new(keys),
                listeners: Mutex::new(Vec::new()),
            }),
        }
    }

    /// Returns the trust domain of this issuer.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.inner.trust_domain
    }

    /// Sets the default lifetime of tokens from now on. Initially five minutes, as in SPIRE.
    pub fn set_token_life(&self, life: Duration) {
        self.keys().token_life = life;
    }

    /// Returns a builder of a token of this ID for this audience. Neither is checked.
    pub fn token(&self, spiffe_id: &str, audience: &str) -> TokenBuilder {
        TokenBuilder::new(self.clone(), spiffe_id, [audience])
    }

    /// Returns the key set as SPIRE's agent serves it: indented JSON, without `use` and `alg`.
    pub fn jwks(&self) -> Vec<u8> {
        jwks::jwks(&self.keys().jwks().collect::<Vec<_>>())
    }

    /// The same keys in another order, which is not a change: SPIRE's agent writes them in the random
    /// order of a Go map.
    pub fn jwks_in_another_order(&self) -> Vec<u8> {
        let keys = self.keys();
        let mut jwks: Vec<_> = keys.jwks().collect();
        jwks.reverse();
        jwks::jwks(&jwks)
    }

    /// Returns the key set as a SPIFFE bundle document, as in a bundle endpoint or a file: with `use`, a
    /// sequence number and a refresh hint (SPIFFE Trust Domain and Bundle section 4).
    pub fn spiffe_bundle(&self) -> Vec<u8> {
        let keys = self.keys();
        jwks::spiffe_bundle(keys.jwks().collect(), keys.sequence)
    }

    /// Returns the current key set as a bundle for validators.
    ///
    /// ```
    /// use tower_spiffe::testing::Issuer;
    /// use tower_spiffe::Validator;
    /// use tower_spiffe::bundle::FixedBundles;
    ///
    /// let issuer = Issuer::new("example.org")?;
    /// let bundles = FixedBundles::new([issuer.bundle()].into_iter().collect());
    /// let validator = Validator::builder(bundles).audience("db").build()?;
    ///
    /// let token = issuer.token("spiffe://example.org/web", "db").sign();
    /// assert!(validator.validate(&token).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn bundle(&self) -> JwtBundle {
        must(
            JwtBundle::from_jwks(self.inner.trust_domain.clone(), &self.jwks()),
            "the JWK Set of an issuer can be read",
        )
    }

    /// Returns the ID of the signing key.
    pub fn signing_key_id(&self) -> String {
        self.keys().signing.kid().to_owned()
    }

    /// Returns the IDs of the keys in the bundle, oldest first.
    pub fn key_ids(&self) -> Vec<String> {
        self.keys()
            .published
            .iter()
            .map(|key| key.kid().to_owned())
            .collect()
    }

    /// Adds a new key for this algorithm to the bundle, and returns its ID. It does not sign yet.
    pub fn prepare(&self, algorithm: Algorithm) -> String {
        let key = Arc::new(SigningKey::generate(algorithm));
        let kid = key.kid().to_owned();
        self.publish(|keys| {
            keys.published.push(key);
            true
        });
        kid
    }

    /// Makes this key the signing key. Returns false if no key in the bundle has this ID.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # use tower_spiffe::Validator;
    /// # use tower_spiffe::bundle::Algorithm;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    /// let validator = Validator::builder(source.clone()).audience("reports").build()?;
    /// let mut updates = source.updated();
    ///
    /// // The steps of `FakeAgent::rotate`: the key is published first, then it signs.
    /// let key = agent.issuer().prepare(Algorithm::ES384);
    /// updates.changed().await?;
    /// assert!(agent.issuer().activate(&key));
    /// let token = agent.token("spiffe://example.org/web", "reports");
    /// assert!(validator.validate(&token).is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn activate(&self, kid: &str) -> bool {
        let mut keys = self.keys();
        let Some(key) = keys.find(kid) else {
            return false;
        };
        keys.signing = key;
        true
    }

    /// Removes this key from the bundle. Returns false if it is not in the bundle. If it is the signing
    /// key, it still signs, but its tokens are rejected.
    ///
    /// ```
    /// # use tower_spiffe::testing::FakeAgent;
    /// # use tower_spiffe::Validator;
    /// # use tower_spiffe::verify::ValidateReason;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let agent = FakeAgent::start_in_memory("example.org").await?;
    /// let source = agent.source().await?;
    /// let validator = Validator::builder(source.clone()).audience("reports").build()?;
    /// let token = agent.token("spiffe://example.org/web", "reports");
    /// assert!(validator.validate(&token).is_ok());
    ///
    /// let mut updates = source.updated();
    /// agent.issuer().revoke(&agent.issuer().signing_key_id());
    /// updates.changed().await?;
    /// assert_eq!(validator.validate(&token).unwrap_err().reason(), ValidateReason::KeyUnknown);
    /// # Ok(())
    /// # }
    /// ```
    pub fn revoke(&self, kid: &str) -> bool {
        self.publish(|keys| {
            let Some(at) = keys.published.iter().position(|key| key.kid() == kid) else {
                return false;
            };
            let key = keys.published.remove(at);
            keys.revoked.push(key);
            true
        })
    }

    /// Creates a new key for the current algorithm, signs with it at once, and returns its ID. The old
    /// key stays in the bundle.
    pub fn rotate_now(&self) -> String {
        let algorithm = self.keys().signing.algorithm();
        self.rotate_now_to(algorithm)
    }

    /// Rotates as [`rotate_now`](Self::rotate_now), to another algorithm.
    pub fn rotate_now_to(&self, algorithm: Algorithm) -> String {
        let kid = self.prepare(algorithm);
        self.activate(&kid);
        kid
    }

    /// The default algorithm of new tokens.
    pub fn algorithm(&self) -> Algorithm {
        self.keys().signing.algorithm()
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    pub(super) fn token_life(&self) -> Duration {
        self.keys().token_life
    }

    /// Notifies this listener whenever the bundle changes, until it is dropped.
    pub(super) fn notify(&self, listener: &Arc<dyn OnChange>) {
        let mut listeners = self.listeners();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Arc::downgrade(listener));
    }

    /// The signing key.
    fn signing(&self) -> Arc<SigningKey> {
        self.keys().signing.clone()
    }

    /// The key with this ID, in the bundle or revoked.
    fn key(&self, kid: &str) -> Option<Arc<SigningKey>> {
        let keys = self.keys();
        keys.find(kid)
            .or_else(|| keys.revoked.iter().find(|key| key.kid() == kid).cloned())
    }

    /// The newest key in the bundle that fits this algorithm, or a new one if no key does.
    fn key_for(&self, algorithm: Algorithm) -> Arc<SigningKey> {
        let fit = |key: &&Arc<SigningKey>| key.fits(algorithm);
        if let Some(key) = self.keys().published.iter().rev().find(fit) {
            return key.clone();
        }
        let key = Arc::new(SigningKey::generate(algorithm));
        let published = key.clone();
        self.publish(|keys| {
            keys.published.push(published);
            true
        });
        key
    }

    fn publish(&self, change: impl FnOnce(&mut Keys) -> bool) -> bool {
        let mut keys = self.keys();
        let changed = change(&mut keys);
        if changed {
            keys.sequence += 1;
        }
        drop(keys);
        if changed {
            // Without the lock: listeners read the keys.
            let listeners = self.listeners().clone();
            for listener in listeners.iter().filter_map(Weak::upgrade) {
                listener.changed();
            }
        }
        changed
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Weak<dyn OnChange>>> {
        self.inner
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        // No code that holds the lock leaves the keys half changed.
        self.inner
            .keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn jwks(&self) -> impl Iterator<Item = jwks::Jwk<'_>> {
        self.published.iter().map(|key| key.jwk())
    }

    fn find(&self, kid: &str) -> Option<Arc<SigningKey>> {
        self.published.iter().find(|key| key.kid() == kid).cloned()
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer")
            .field("trust_domain", &self.inner.trust_domain)
            .field("keys", &self.key_ids())
            .finish_non_exhaustive()
    }
}
