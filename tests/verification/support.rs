//! What these tests share: a source and a clock that can be swapped beneath a validator.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tower_spiffe::bundle::{BundleAnswer, BundleSource, CannotJudge, JwtBundleSet};
use tower_spiffe::{
    Algorithm, Clock, UnixTime, ValidateReason, Validator, ValidatorBuilder, VerifiedSvid,
};

use crate::signer::{AUDIENCE, NOW, Signer, set_of};

/// Bundles that a test swaps; `Err` is a source that cannot judge.
#[derive(Clone)]
pub struct Swappable(Arc<State>);

struct State {
    answer: RwLock<Result<JwtBundleSet, CannotJudge>>,
    revision: AtomicU64,
}

impl Swappable {
    pub fn new(set: JwtBundleSet) -> Self {
        Self(Arc::new(State {
            answer: RwLock::new(Ok(set)),
            revision: AtomicU64::new(0),
        }))
    }

    pub fn set(&self, answer: Result<JwtBundleSet, CannotJudge>) {
        *self.0.answer.write().unwrap() = answer;
        self.0.revision.fetch_add(1, Ordering::SeqCst);
    }
}

impl BundleSource for Swappable {
    fn revision(&self) -> Result<u64, CannotJudge> {
        let judges = self.0.answer.read().unwrap().as_ref().err().copied();
        match judges {
            Some(why) => Err(why),
            None => Ok(self.0.revision.load(Ordering::SeqCst)),
        }
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        match &*self.0.answer.read().unwrap() {
            Err(why) => BundleAnswer::CannotJudge(*why),
            Ok(set) => match set.get(trust_domain) {
                Some(bundle) => BundleAnswer::Ready(bundle.clone()),
                None => BundleAnswer::UnknownTrustDomain,
            },
        }
    }
}

/// A clock that a test sets.
#[derive(Default)]
pub struct HandClock(std::sync::RwLock<Option<UnixTime>>);

impl HandClock {
    pub fn at(secs: i64) -> Arc<Self> {
        let clock = Self::default();
        clock.set(UnixTime::from_secs(secs));
        Arc::new(clock)
    }

    pub fn set(&self, now: UnixTime) {
        *self.0.write().unwrap() = Some(now);
    }
}

impl Clock for HandClock {
    fn now(&self) -> UnixTime {
        self.0.read().unwrap().unwrap()
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
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
