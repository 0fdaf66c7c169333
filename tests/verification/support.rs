//! Shared helpers: a source and a clock that tests can change while a validator uses them.

use std::sync::Arc;

use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::{BundleAnswer, BundleSource, BundlesUnavailable, JwtBundleSet};
use tower_spiffe::verify::{ValidateReason, ValidatorBuilder};
use tower_spiffe::{Validator, VerifiedSvid};
use tower_spiffe_test_support::bundles::Bundles;
pub use tower_spiffe_test_support::clock::HandClock;

use crate::signer::{AUDIENCE, NOW, Signer, set_of};

/// Bundles that a test can replace, without change notifications.
#[derive(Clone)]
pub struct Swappable(Bundles);

impl Swappable {
    pub fn new(set: JwtBundleSet) -> Self {
        Self(Bundles::new(set))
    }

    pub fn set(&self, answer: Result<JwtBundleSet, BundlesUnavailable>) {
        self.0.answer(answer);
    }
}

impl BundleSource for Swappable {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.0.revision()
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        self.0.bundle(trust_domain)
    }
}

/// A source, a clock, and two validators that use them: one without a cache, one with a warm cache.
pub struct Fixture {
    pub source: Swappable,
    pub clock: Arc<HandClock>,
    pub cold: Validator,
    pub warm: Validator,
}

impl Fixture {
    /// Creates a fixture for `td.test` with the keys of these signers.
    pub fn new(signers: &[&Signer]) -> Self {
        Self::with(keys_of(signers), |builder| builder)
    }

    pub fn with(
        set: JwtBundleSet,
        configure: impl Fn(ValidatorBuilder) -> ValidatorBuilder,
    ) -> Self {
        let source = Swappable::new(set);
        let clock = HandClock::at(NOW);
        let builder = || {
            let builder = Validator::builder(source.clone())
                .audience(AUDIENCE)
                .clock(clock.clone());
            configure(builder)
        };
        Self {
            cold: builder().no_cache().build().unwrap(),
            warm: builder().build().unwrap(),
            source,
            clock,
        }
    }

    /// Validates without a cache and twice with one, and asserts that the results agree.
    #[track_caller]
    pub fn validate(&self, token: &str) -> Result<VerifiedSvid, ValidateReason> {
        let cold = self.cold.validate(token);
        for sight in ["first", "second"] {
            let warm = self.warm.validate(token);
            let ids = |verdict: &Result<VerifiedSvid, _>| {
                verdict
                    .as_ref()
                    .map(|svid| svid.spiffe_id().clone())
                    .map_err(Clone::clone)
            };
            assert_eq!(ids(&cold), ids(&warm), "at {sight} sight");
        }
        cold.map_err(|error| error.reason())
    }

    #[track_caller]
    pub fn accepts(&self, token: &str) -> VerifiedSvid {
        match self.validate(token) {
            Ok(svid) => svid,
            Err(reason) => panic!("rejected: {reason}: {token}"),
        }
    }

    #[track_caller]
    pub fn rejects(&self, token: &str, reason: ValidateReason) {
        match self.validate(token) {
            Ok(_) => panic!("accepted: {token}"),
            Err(got) => assert_eq!(got, reason, "{token}"),
        }
    }
}

/// Returns the bundle of `td.test` with the keys of these signers.
pub fn keys_of(signers: &[&Signer]) -> JwtBundleSet {
    let keys: Vec<_> = signers.iter().map(|signer| signer.jwk()).collect();
    set_of("td.test", &keys)
}

pub fn es256() -> Signer {
    Signer::for_algorithm(Algorithm::ES256)
}

pub fn rs256() -> Signer {
    Signer::for_algorithm(Algorithm::RS256)
}
