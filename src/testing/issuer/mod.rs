//! An issuer of JWT-SVIDs with keys of its own.

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

/// How long a token lives unless told otherwise: SPIRE's default.
pub(super) const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(300);

/// The JWT authority of one trust domain: it signs tokens as SPIRE does, and wrong ones as no
/// SPIRE would. Clones are the same issuer.
///
/// ```
/// use tower_spiffe::testing::Issuer;
///
/// let issuer = Issuer::new("example.org")?;
/// let token = issuer.token("spiffe://example.org/web", "spiffe://example.org/db").sign();
/// assert_eq!(token.split('.').count(), 3);
///
/// // The keys by which others check it: a JWK Set as SPIRE's agent serves it.
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
    /// Told when what [`Issuer::jwks`] gives has changed.
    listeners: Mutex<Vec<Weak<dyn OnChange>>>,
}

/// Whoever serves an issuer's bundle.
pub(super) trait OnChange: Send + Sync {
    /// The bundle is another one now.
    fn changed(&self);
}

struct Keys {
    /// In the bundle, oldest first.
    published: Vec<Arc<SigningKey>>,
    /// No longer in it. A thief may still sign with them, so a test must be able to.
    revoked: Vec<Arc<SigningKey>>,
    signing: Arc<SigningKey>,
    sequence: u64,
    token_life: Duration,
}

impl Issuer {
    /// The issuer of this trust domain, with one ES256 key, on the machine's clock.
    ///
    /// # Errors
    /// The trust domain's name is malformed.
    pub fn new(trust_domain: &str) -> Result<Self, SpiffeIdError> {
        Self::with_clock(trust_domain, SystemClock::shared())
    }

    /// The same on another clock, so that `iat` and `exp` follow it.
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

    /// Whose issuer this is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.inner.trust_domain
    }

    /// How long tokens live from now on, unless they are told otherwise one by one: five minutes
    /// at first, as with SPIRE.
    pub fn set_token_life(&self, life: Duration) {
        self.keys().token_life = life;
    }

    /// A token of this ID for this audience, to be changed and signed. Both go into it as they
    /// are, checked by nobody.
    pub fn token(&self, spiffe_id: &str, audience: &str) -> TokenBuilder {
        TokenBuilder::new(self.clone(), spiffe_id, [audience])
    }

    /// The key set as SPIRE's agent serves it: indented JSON, without `use` and `alg`.
    pub fn jwks(&self) -> Vec<u8> {
        jwks::jwks(&self.keys().jwks().collect::<Vec<_>>())
    }

    /// The same keys in another order, which says nothing new: SPIRE's agent writes them as they
    /// happen to lie in a Go map.
    pub fn jwks_in_another_order(&self) -> Vec<u8> {
        let keys = self.keys();
        let mut jwks: Vec<_> = keys.jwks().collect();
        jwks.reverse();
        jwks::jwks(&jwks)
    }

    /// The key set as a SPIFFE bundle document, as a bundle endpoint or file has it: with `use`,
    /// a sequence number and a refresh hint (SPIFFE Trust Domain and Bundle section 4).
    pub fn spiffe_bundle(&self) -> Vec<u8> {
        let keys = self.keys();
        jwks::spiffe_bundle(keys.jwks().collect(), keys.sequence)
    }

    /// The key set as it is now, ready to verify by.
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
            "a JWK set that we wrote can be read",
        )
    }

    /// The ID of the key that signs now.
    pub fn signing_key_id(&self) -> String {
        self.keys().signing.kid().to_owned()
    }

    /// The IDs of the keys in the bundle, oldest first.
    pub fn key_ids(&self) -> Vec<String> {
        self.keys()
            .published
            .iter()
            .map(|key| key.kid().to_owned())
            .collect()
    }

    /// Puts a new key, fit for this algorithm, into the bundle, and gives its ID. It does not sign
    /// yet.
    pub fn prepare(&self, algorithm: Algorithm) -> String {
        let key = Arc::new(SigningKey::generate(algorithm));
        let kid = key.kid().to_owned();
        self.publish(|keys| {
            keys.published.push(key);
            true
        });
        kid
    }

    /// Signs with this key from now on; `false` where no key in the bundle has this ID.
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
    /// // By hand what `FakeAgent::rotate` does: published first, then signed with.
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

    /// Takes this key out of the bundle; `false` where it is not in it. Where it was the one that
    /// signs, it goes on signing: nobody will believe it any more.
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

    /// Makes a new key for the algorithm in use and signs with it at once. The old key stays in
    /// the bundle. Gives the new key's ID.
    pub fn rotate_now(&self) -> String {
        let algorithm = self.keys().signing.algorithm();
        self.rotate_now_to(algorithm)
    }

    /// The same, to another algorithm.
    pub fn rotate_now_to(&self, algorithm: Algorithm) -> String {
        let kid = self.prepare(algorithm);
        self.activate(&kid);
        kid
    }

    /// The algorithm that it signs with unless told otherwise.
    pub fn algorithm(&self) -> Algorithm {
        self.keys().signing.algorithm()
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    pub(super) fn token_life(&self) -> Duration {
        self.keys().token_life
    }

    /// Tells this one whenever the bundle changes, for as long as it lives.
    pub(super) fn tell(&self, listener: &Arc<dyn OnChange>) {
        let mut listeners = self.listeners();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Arc::downgrade(listener));
    }

    /// The key that signs now.
    fn signing(&self) -> Arc<SigningKey> {
        self.keys().signing.clone()
    }

    /// The key of this ID, in the bundle or revoked.
    fn key(&self, kid: &str) -> Option<Arc<SigningKey>> {
        let keys = self.keys();
        keys.find(kid)
            .or_else(|| keys.revoked.iter().find(|key| key.kid() == kid).cloned())
    }

    /// The newest key in the bundle that is fit for this algorithm; a new one where there is none.
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
            // Not under the lock: whoever is told asks for the keys.
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
