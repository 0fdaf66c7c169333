//! What a source keeps of a bundle stream, held against a model of the rules.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tower_spiffe::bundle::{Algorithm, BundleAnswer, BundlesUnavailable, JwtBundleSet};
use tower_spiffe::clock::{Clock, UnixTime};
use tower_spiffe::source::WithdrawalPolicy;
use tower_spiffe::testing::{Issuer, internals};
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::workload_api::WorkloadApiClient;
use tower_spiffe::{BundleSource as _, Validator};

use super::is_presentable;

const AUDIENCE: &str = "spiffe://example.org/reports";
const NAMES: [&str; 3] = ["one.test", "two.test", "three.test"];
const BOTH: usize = 0b11;
/// Seconds.
const MAX_STALENESS: u64 = 100;
const WITHDRAWN_AFTER: u64 = 50;
const NEVER: u64 = u64::MAX;

/// A clock that is moved by hand, in seconds.
#[derive(Default)]
struct Hands(AtomicU64);

const START: i64 = 1_790_000_000;

impl Clock for Hands {
    fn now(&self) -> UnixTime {
        UnixTime::from_secs(START).saturating_add(self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// Three trust domains with two keys each, by which keys are in it: none, the first, the second,
/// both.
struct World {
    client: WorkloadApiClient,
    key_sets: [[Vec<u8>; 4]; 3],
    key_ids: [[String; 2]; 3],
    /// Of the first trust domain, one for each key.
    tokens: [String; 2],
}

/// Made once for the whole process.
fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let runtime = runtime.expect("a runtime");
        let _inside = runtime.enter();
        let nowhere =
            async || Err::<tokio::io::DuplexStream, _>(std::io::Error::other("nobody calls"));
        let client = WorkloadApiClient::with_connector(nowhere);
        let issuers = NAMES.map(|name| {
            let clock = Arc::new(Hands::default());
            Issuer::with_clock(name, clock).expect("a trust domain")
        });
        let key_ids = issuers.each_ref().map(|issuer| {
            let second = issuer.prepare(Algorithm::ES256);
            [issuer.signing_key_id(), second]
        });
        let [first, ..] = &issuers;
        let tokens = key_ids[0].each_ref().map(|key_id| {
            let token = first.token("spiffe://one.test/web", AUDIENCE).key(key_id);
            token
                .expires_in(Duration::from_secs(30 * 24 * 3_600))
                .sign()
        });
        let mut key_sets = [const { [const { Vec::new() }; 4] }; 3];
        for ((issuer, key_ids), sets) in issuers.iter().zip(&key_ids).zip(&mut key_sets) {
            sets[BOTH] = issuer.jwks();
            issuer.revoke(&key_ids[0]);
            sets[0b10] = issuer.jwks();
            issuer.revoke(&key_ids[1]);
            sets[0] = issuer.jwks();
            let all: serde_json::Value = serde_json::from_slice(&sets[BOTH]).expect("JSON");
            let mut first = all["keys"].clone();
            let keys = first.as_array_mut().expect("a list");
            keys.retain(|key| key["kid"] == key_ids[0].as_str());
            assert_eq!(keys.len(), 1);
            sets[0b01] = serde_json::json!({ "keys": first })
                .to_string()
                .into_bytes();
        }
        World {
            client: client.build().expect("inside of a runtime"),
            key_sets,
            key_ids,
            tokens,
        }
    })
}

/// What one byte of the input does.
enum Step {
    /// A message: what it says of each trust domain.
    Message([Said; 3]),
    Withdraw,
    /// A message without any bundle.
    Nothing,
    /// No message at all.
    Rubbish,
    Wait(u64),
}

#[derive(Clone, Copy, PartialEq)]
enum Said {
    Absent,
    Unreadable,
    Keys(usize),
}

impl Step {
    fn of(byte: u8) -> Self {
        let said = |digit: u8| match digit % 6 {
            0 => Said::Absent,
            1 => Said::Unreadable,
            keys => Said::Keys(usize::from(keys - 2)),
        };
        match byte {
            0 | 216..=219 => Self::Nothing,
            1..=215 => Self::Message([said(byte), said(byte / 6), said(byte / 36)]),
            220..=227 => Self::Withdraw,
            228..=230 => Self::Rubbish,
            231.. => Self::Wait(10 * u64::from(byte - 230)),
        }
    }
}

/// The rules, written down a second time.
struct Model {
    policy: WithdrawalPolicy,
    max_staleness: u64,
    now: u64,
    verdict: Result<(), BundlesUnavailable>,
    withdrawal_told: bool,
    withdrawn_at: u64,
    stale_at: u64,
    domains: [Domain; 3],
}

#[derive(Clone, Copy, Default, PartialEq)]
struct Domain {
    named: bool,
    keys: Option<usize>,
    updated: u64,
    unreadable: bool,
}

/// What validation gets for one trust domain.
type Answer = Result<Option<usize>, BundlesUnavailable>;

impl Model {
    fn message(&mut self, said: [Said; 3]) {
        let mut domains = self.domains;
        for (domain, said) in domains.iter_mut().zip(said) {
            match said {
                Said::Absent => *domain = Domain::default(),
                Said::Unreadable => (domain.named, domain.unreadable) = (true, true),
                Said::Keys(keys) => {
                    *domain = Domain {
                        named: true,
                        keys: Some(keys),
                        updated: self.now,
                        unreadable: false,
                    };
                }
            }
        }
        self.withdrawal_told = false;
        let nothing_to_start_with = domains.iter().all(|domain| domain.keys.is_none());
        if self.verdict == Err(BundlesUnavailable::NotReady) && nothing_to_start_with {
            return;
        }
        self.domains = domains;
        self.verdict = Ok(());
        self.withdrawn_at = NEVER;
        self.stale_at = self.now.saturating_add(self.max_staleness);
    }

    fn withdraw(&mut self) {
        if self.verdict.is_err() {
            return;
        }
        let new = !std::mem::replace(&mut self.withdrawal_told, true);
        match self.policy {
            WithdrawalPolicy::Immediate => {
                self.verdict = Err(BundlesUnavailable::Withdrawn);
                self.domains = Default::default();
            }
            WithdrawalPolicy::After(_) if new => self.withdrawn_at = self.now + WITHDRAWN_AFTER,
            _ => {}
        }
    }

    fn can_judge(&self) -> Result<(), BundlesUnavailable> {
        self.verdict?;
        if self.now >= self.withdrawn_at {
            return Err(BundlesUnavailable::Withdrawn);
        }
        if self.now >= self.stale_at {
            return Err(BundlesUnavailable::Stale);
        }
        Ok(())
    }

    fn answer(&self, domain: &Domain) -> Answer {
        self.can_judge()?;
        let aged = domain.updated.saturating_add(self.max_staleness);
        match domain.keys {
            Some(_) if domain.unreadable && self.now >= aged => Err(BundlesUnavailable::Stale),
            // Named, and never readable: known, and without a key.
            None if domain.named => Ok(Some(0)),
            keys => Ok(keys),
        }
    }
}

fn asked(keeper: &internals::Keeper, domain: usize) -> Answer {
    match keeper.bundle(NAMES[domain]) {
        BundleAnswer::Ready(bundle) => {
            let [first, second] = &world().key_ids[domain];
            let has = |key_id: &str| usize::from(bundle.authority(key_id).is_some());
            assert_eq!(bundle.len(), has(first) + has(second));
            Ok(Some(has(first) | has(second) << 1))
        }
        BundleAnswer::UnknownTrustDomain => Ok(None),
        BundleAnswer::Unavailable(why) => Err(why),
        other => panic!("{other:?}"),
    }
}

/// A source that is given this message answers by the set that was read from it, and shows what is
/// wrong with it in few words.
pub(crate) fn is_kept(message: &[u8], set: &JwtBundleSet) {
    let clock = Arc::new(Hands::default());
    let keeper = internals::Keeper::new(
        world().client.clone(),
        clock,
        WithdrawalPolicy::default(),
        None,
    );
    assert!(keeper.take_in(message));
    assert_eq!(keeper.revision().is_ok(), !set.is_empty());
    for bundle in set.iter() {
        match keeper.bundle(bundle.trust_domain().name()) {
            BundleAnswer::Ready(kept) => assert!(kept == *bundle),
            other => panic!("{other:?}"),
        }
    }
    let state = keeper.state();
    for (name, why) in state.unnamed() {
        assert!(name.len() < 1_024 && !name.chars().any(char::is_control));
        is_presentable(&why);
    }
    let errors = state.trust_domains().iter();
    errors
        .filter_map(|domain| domain.last_error())
        .for_each(|error| is_presentable(&error));
}

/// The first byte says how the source is set up, each other one what happens to it: a message of
/// three trust domains, a withdrawal, a message to discard, time that passes. After each it answers
/// as the rules say; no verdict outlives its revision; and what is the same is told to nobody.
pub fn bundle_stream(data: &[u8]) {
    let Some((set_up, steps)) = data.split_first() else {
        return;
    };
    let world = world();
    let policy = match set_up % 3 {
        0 => WithdrawalPolicy::Immediate,
        1 => WithdrawalPolicy::After(Duration::from_secs(WITHDRAWN_AFTER)),
        _ => WithdrawalPolicy::Keep,
    };
    let limited = set_up / 3 % 2 == 0;
    let max_staleness = limited.then_some(Duration::from_secs(MAX_STALENESS));
    let hands = Arc::new(Hands::default());
    let clock: Arc<dyn Clock> = hands.clone();
    let keeper = internals::Keeper::new(world.client.clone(), clock.clone(), policy, max_staleness);
    let keeper = Arc::new(keeper);
    let validator = Validator::builder(keeper.clone()).audience(AUDIENCE);
    let validator = validator.clock(clock).build().expect("an audience");
    let mut model = Model {
        policy,
        max_staleness: if limited { MAX_STALENESS } else { NEVER },
        now: 0,
        verdict: Err(BundlesUnavailable::NotReady),
        withdrawal_told: false,
        withdrawn_at: NEVER,
        stale_at: NEVER,
        domains: Default::default(),
    };

    let mut last = Last::default();
    // As many as say something new.
    for byte in steps.iter().take(64) {
        match Step::of(*byte) {
            Step::Message(said) => {
                model.message(said);
                let message = message(said);
                assert!(keeper.take_in(&message));
                let revision = keeper.state().revision();
                assert!(keeper.take_in(&message));
                assert_eq!(keeper.state().revision(), revision, "told of nothing");
            }
            Step::Withdraw => {
                model.withdraw();
                keeper.withdraw();
            }
            Step::Nothing => assert!(!keeper.take_in(&[])),
            Step::Rubbish => assert!(!keeper.take_in(b"\x0f rubbish")),
            Step::Wait(seconds) => {
                model.now += seconds;
                hands.0.store(model.now, Ordering::Relaxed);
            }
        }
        holds(&keeper, &model, &validator, &mut last);
    }
}

fn message(said: [Said; 3]) -> Vec<u8> {
    let named = NAMES.iter().zip(&world().key_sets).zip(said);
    let bundles = named.filter_map(|((name, key_sets), said)| match said {
        Said::Absent => None,
        Said::Unreadable => Some((*name, &b"{\"keys\": ["[..])),
        Said::Keys(keys) => Some((*name, &key_sets[keys][..])),
    });
    internals::write_bundle_message(bundles)
}

/// What it answered when it last could judge, and whether it could not since.
struct Last {
    revision: u64,
    answers: [Answer; 3],
    blind: bool,
}

impl Default for Last {
    fn default() -> Self {
        Self {
            revision: 0,
            answers: [Ok(None); 3],
            blind: true,
        }
    }
}

fn holds(keeper: &internals::Keeper, model: &Model, validator: &Validator, last: &mut Last) {
    let revision = keeper.revision();
    assert_eq!(revision.map(drop), model.can_judge());
    let answers = [0, 1, 2].map(|domain| asked(keeper, domain));
    assert_eq!(answers, model.domains.map(|domain| model.answer(&domain)));
    if let Ok(revision) = revision {
        assert!(revision >= last.revision, "revisions only rise");
        let told = revision > last.revision;
        assert!(
            told || answers == last.answers,
            "another answer, the same revision"
        );
        assert!(told || !last.blind, "it can judge again, and tells nobody");
        (last.revision, last.answers) = (revision, answers);
    }
    last.blind = revision.is_err();

    // What validation makes of it, verdicts of before included.
    for (key, token) in world().tokens.iter().enumerate() {
        let verdict = validator
            .validate(token)
            .map(drop)
            .map_err(|error| error.reason());
        let expected = match answers[0] {
            Ok(Some(keys)) if keys >> key & 1 == 1 => Ok(()),
            Ok(Some(_)) => Err(ValidateReason::KeyUnknown),
            Ok(None) => Err(ValidateReason::TrustDomainUnknown),
            Err(why) => Err(ValidateReason::BundlesUnavailable(why)),
        };
        assert_eq!(verdict, expected);
    }

    let state = keeper.state();
    assert_eq!(state.bundles_unavailable(), model.can_judge().err());
    assert_eq!(state.withdrawn().is_some(), model.withdrawal_told);
    if model.verdict.is_ok() {
        let named = model.domains.iter().filter(|domain| domain.named);
        assert_eq!(state.trust_domains().len(), named.count());
    }
}
