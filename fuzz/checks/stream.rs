//! The state of a source after events of a bundle stream, compared with a model of the rules.

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

use super::check_error_text;

const AUDIENCE: &str = "spiffe://example.org/reports";
const NAMES: [&str; 3] = ["one.test", "two.test", "three.test"];
const BOTH: usize = 0b11;
/// In seconds, as all times here.
const MAX_STALENESS: u64 = 100;
const WITHDRAWN_AFTER: u64 = 50;
const NEVER: u64 = u64::MAX;

/// A clock that the test sets, in seconds.
#[derive(Default)]
struct TestClock(AtomicU64);

const START: i64 = 1_790_000_000;

impl Clock for TestClock {
    fn now(&self) -> UnixTime {
        UnixTime::from_secs(START).saturating_add(self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// Three trust domains with two keys each.
struct Fixture {
    client: WorkloadApiClient,
    /// The JWK Sets of each trust domain: no key, the first, the second, both.
    key_sets: [[Vec<u8>; 4]; 3],
    key_ids: [[String; 2]; 3],
    /// Tokens of the first trust domain, one for each key.
    tokens: [String; 2],
}

/// Created once for the whole process.
fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let runtime = runtime.expect("a runtime");
        let _inside = runtime.enter();
        let connect = async || Err::<tokio::io::DuplexStream, _>(std::io::Error::other("not used"));
        let client = WorkloadApiClient::with_connector(connect);
        let issuers = NAMES.map(|name| {
            let clock = Arc::new(TestClock::default());
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
        Fixture {
            client: client.build().expect("inside a runtime"),
            key_sets,
            key_ids,
            tokens,
        }
    })
}

/// The event that one byte of the input stands for.
enum Step {
    /// A message with an entry for each trust domain.
    Message([Entry; 3]),
    Withdraw,
    /// A message without bundles.
    Empty,
    /// Bytes that are not a message.
    Malformed,
    Wait(u64),
}

#[derive(Clone, Copy, PartialEq)]
enum Entry {
    Absent,
    Unreadable,
    Keys(usize),
}

impl Step {
    fn of(byte: u8) -> Self {
        let entry = |digit: u8| match digit % 6 {
            0 => Entry::Absent,
            1 => Entry::Unreadable,
            keys => Entry::Keys(usize::from(keys - 2)),
        };
        match byte {
            0 | 216..=219 => Self::Empty,
            1..=215 => Self::Message([entry(byte), entry(byte / 6), entry(byte / 36)]),
            220..=227 => Self::Withdraw,
            228..=230 => Self::Malformed,
            231.. => Self::Wait(10 * u64::from(byte - 230)),
        }
    }
}

/// A second implementation of the rules.
struct Model {
    policy: WithdrawalPolicy,
    max_staleness: u64,
    now: u64,
    bundles: Result<(), BundlesUnavailable>,
    withdrawal_reported: bool,
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

/// The keys of one trust domain, as validation gets them.
type Keys = Result<Option<usize>, BundlesUnavailable>;

impl Model {
    fn message(&mut self, entries: [Entry; 3]) {
        // A withdrawal that is due takes effect before the message.
        if self.bundles.is_ok() && self.now >= self.withdrawn_at {
            self.bundles = Err(BundlesUnavailable::Withdrawn);
            self.domains = Default::default();
        }
        let mut domains = self.domains;
        for (domain, entry) in domains.iter_mut().zip(entries) {
            match entry {
                Entry::Absent => *domain = Domain::default(),
                Entry::Unreadable => (domain.named, domain.unreadable) = (true, true),
                Entry::Keys(keys) => {
                    *domain = Domain {
                        named: true,
                        keys: Some(keys),
                        updated: self.now,
                        unreadable: false,
                    };
                }
            }
        }
        self.withdrawal_reported = false;
        let no_keys = domains.iter().all(|domain| domain.keys.is_none());
        if self.bundles == Err(BundlesUnavailable::NotReady) && no_keys {
            return;
        }
        self.domains = domains;
        self.bundles = Ok(());
        self.withdrawn_at = NEVER;
        self.stale_at = self.now.saturating_add(self.max_staleness);
    }

    fn withdraw(&mut self) {
        if self.bundles.is_err() {
            return;
        }
        let new = !std::mem::replace(&mut self.withdrawal_reported, true);
        match self.policy {
            WithdrawalPolicy::Immediate => {
                self.bundles = Err(BundlesUnavailable::Withdrawn);
                self.domains = Default::default();
            }
            WithdrawalPolicy::After(_) if new => self.withdrawn_at = self.now + WITHDRAWN_AFTER,
            _ => {}
        }
    }

    fn available(&self) -> Result<(), BundlesUnavailable> {
        self.bundles?;
        if self.now >= self.withdrawn_at {
            return Err(BundlesUnavailable::Withdrawn);
        }
        if self.now >= self.stale_at {
            return Err(BundlesUnavailable::Stale);
        }
        Ok(())
    }

    fn keys(&self, domain: &Domain) -> Keys {
        self.available()?;
        let stale_at = domain.updated.saturating_add(self.max_staleness);
        match domain.keys {
            Some(_) if domain.unreadable && self.now >= stale_at => Err(BundlesUnavailable::Stale),
            // An entry that was never readable is a known trust domain without keys.
            None if domain.named => Ok(Some(0)),
            keys => Ok(keys),
        }
    }
}

fn keys_of(keeper: &internals::Keeper, domain: usize) -> Keys {
    match keeper.bundle(NAMES[domain]) {
        BundleAnswer::Ready(bundle) => {
            let [first, second] = &fixture().key_ids[domain];
            let has = |key_id: &str| usize::from(bundle.authority(key_id).is_some());
            assert_eq!(bundle.len(), has(first) + has(second));
            Ok(Some(has(first) | has(second) << 1))
        }
        BundleAnswer::UnknownTrustDomain => Ok(None),
        BundleAnswer::Unavailable(why) => Err(why),
        other => panic!("{other:?}"),
    }
}

/// Checks that a source returns the bundles of this message, and that its errors are short.
pub(crate) fn check_source(message: &[u8], set: &JwtBundleSet) {
    let clock = Arc::new(TestClock::default());
    let keeper = internals::Keeper::new(
        fixture().client.clone(),
        clock,
        WithdrawalPolicy::default(),
        None,
    );
    assert!(keeper.take_in(message));
    assert_eq!(keeper.revision().is_ok(), !set.is_empty());
    for bundle in set.iter() {
        match keeper.bundle(bundle.trust_domain().name()) {
            BundleAnswer::Ready(found) => assert!(found == *bundle),
            other => panic!("{other:?}"),
        }
    }
    let state = keeper.state();
    for (name, why) in state.unnamed {
        assert!(name.len() < 1_024 && !name.chars().any(char::is_control));
        check_error_text(&why);
    }
    let errors = state.trust_domains.iter();
    errors
        .filter_map(|domain| domain.last_error.as_deref())
        .for_each(|error| check_error_text(&error));
}

/// Checks a source against the model. The first byte is the configuration of the source. Each other
/// byte is an event: a message with three trust domains, a withdrawal, an invalid message, or elapsed
/// time. After each event the source behaves like the model. A cached result is not used after a
/// change, and equal bundles are not reported as an update.
pub fn bundle_stream(data: &[u8]) {
    let Some((settings, steps)) = data.split_first() else {
        return;
    };
    let fixture = fixture();
    let policy = match settings % 3 {
        0 => WithdrawalPolicy::Immediate,
        1 => WithdrawalPolicy::After(Duration::from_secs(WITHDRAWN_AFTER)),
        _ => WithdrawalPolicy::Keep,
    };
    let limited = settings / 3 % 2 == 0;
    let max_staleness = limited.then_some(Duration::from_secs(MAX_STALENESS));
    let time = Arc::new(TestClock::default());
    let clock: Arc<dyn Clock> = time.clone();
    let keeper =
        internals::Keeper::new(fixture.client.clone(), clock.clone(), policy, max_staleness);
    let keeper = Arc::new(keeper);
    let validator = Validator::builder(keeper.clone()).audience(AUDIENCE);
    let validator = validator.clock(clock).build().expect("an audience");
    let mut model = Model {
        policy,
        max_staleness: if limited { MAX_STALENESS } else { NEVER },
        now: 0,
        bundles: Err(BundlesUnavailable::NotReady),
        withdrawal_reported: false,
        withdrawn_at: NEVER,
        stale_at: NEVER,
        domains: Default::default(),
    };

    let mut last = Last::default();
    // More steps add no coverage.
    for byte in steps.iter().take(64) {
        match Step::of(*byte) {
            Step::Message(entries) => {
                model.message(entries);
                let message = message(entries);
                assert!(keeper.take_in(&message));
                let revision = keeper.state().revision;
                assert!(keeper.take_in(&message));
                assert_eq!(
                    keeper.state().revision,
                    revision,
                    "equal bundles are reported as an update"
                );
            }
            Step::Withdraw => {
                model.withdraw();
                keeper.withdraw();
            }
            Step::Empty => assert!(!keeper.take_in(&[])),
            Step::Malformed => assert!(!keeper.take_in(b"\x0f malformed")),
            Step::Wait(seconds) => {
                model.now += seconds;
                time.0.store(model.now, Ordering::Relaxed);
            }
        }
        compare(&keeper, &model, &validator, &mut last);
    }
}

fn message(entries: [Entry; 3]) -> Vec<u8> {
    let named = NAMES.iter().zip(&fixture().key_sets).zip(entries);
    let bundles = named.filter_map(|((name, key_sets), entry)| match entry {
        Entry::Absent => None,
        Entry::Unreadable => Some((*name, &b"{\"keys\": ["[..])),
        Entry::Keys(keys) => Some((*name, &key_sets[keys][..])),
    });
    internals::write_bundle_message(bundles)
}

/// The keys when bundles were last available, and whether they were unavailable after that.
struct Last {
    revision: u64,
    keys: [Keys; 3],
    unavailable: bool,
}

impl Default for Last {
    fn default() -> Self {
        Self {
            revision: 0,
            keys: [Ok(None); 3],
            unavailable: true,
        }
    }
}

fn compare(keeper: &internals::Keeper, model: &Model, validator: &Validator, last: &mut Last) {
    let revision = keeper.revision();
    assert_eq!(revision.map(drop), model.available());
    let keys = [0, 1, 2].map(|domain| keys_of(keeper, domain));
    assert_eq!(keys, model.domains.map(|domain| model.keys(&domain)));
    if let Ok(revision) = revision {
        assert!(revision >= last.revision, "revisions only rise");
        let raised = revision > last.revision;
        assert!(
            raised || keys == last.keys,
            "the keys changed, but not the revision"
        );
        assert!(
            raised || !last.unavailable,
            "bundles are available again, with the same revision"
        );
        (last.revision, last.keys) = (revision, keys);
    }
    last.unavailable = revision.is_err();

    // The results of validation, which may be cached.
    for (key, token) in fixture().tokens.iter().enumerate() {
        let result = validator
            .validate(token)
            .map(drop)
            .map_err(|error| error.reason());
        let expected = match keys[0] {
            Ok(Some(keys)) if keys >> key & 1 == 1 => Ok(()),
            Ok(Some(_)) => Err(ValidateReason::KeyUnknown),
            Ok(None) => Err(ValidateReason::TrustDomainUnknown),
            Err(why) => Err(ValidateReason::BundlesUnavailable(why)),
        };
        assert_eq!(result, expected);
    }

    let state = keeper.state();
    assert_eq!(state.bundles_unavailable, model.available().err());
    assert_eq!(state.withdrawn.is_some(), model.withdrawal_reported);
    if model.bundles.is_ok() {
        let named = model.domains.iter().filter(|domain| domain.named);
        assert_eq!(state.trust_domains.len(), named.count());
    }
}
