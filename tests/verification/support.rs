//! What these tests share: a source and a clock that can be swapped beneath a validator.

use std::sync::Arc;

use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::{BundleAnswer, BundleSource, BundlesUnavailable, JwtBundleSet};
use tower_spiffe::verify::{ValidateReason, ValidatorBuilder};
use tower_spiffe::{Validator, VerifiedSvid};
use tower_spiffe_test_support::bundles::Bundles;
pub use tower_spiffe_test_support::clock::HandClock;

use crate::signer::{AUDIENCE, NOW, Signer, set_of};

/// Bundles that a test swaps, of a source whose changes cannot be waited for.
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

/// A source, a clock, and two validators on them: one without a cache, and one whose cache is warm.
pub struct Fixture {
    pub source: Swappable,
    pub clock: Arc<HandClock>,
    pub cold: Validator,
    pub warm: Validator,
}

impl Fixture {
    /// For `td.test`, which has the keys of these signers.
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

    /// The verdict, which must be one: without a cache, at first sight, and at second.
    #[track_caller]
    pub fn judge(&self, token: &str) -> Result<VerifiedSvid, ValidateReason> {
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
        match self.judge(token) {
            Ok(svid) => svid,
            Err(reason) => panic!("refused: {reason}: {token}"),
        }
    }

    #[track_caller]
    pub fn refuses(&self, token: &str, reason: ValidateReason) {
        match self.judge(token) {
            Ok(_) => panic!("accepted: {token}"),
            Err(got) => assert_eq!(got, reason, "{token}"),
        }
    }
}

/// A bundle of `td.test` with the keys of these signers.
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
