//! Keys are added and removed while threads validate: the real source's state with real validators,
//! whose caches are small and large.
//!
//! A validation that begins after a key was removed, and ends before it is restored, must reject its
//! tokens. A validation that begins and ends while the key is present must accept them. These mutants
//! were found in every run: a cache entry renewed without a check of its key; a trust domain that
//! becomes stale without a new revision; a withdrawal that empties the snapshot before it sets the
//! status. Two adjacent steps in the wrong order are rarely found here: the model in `tests/model.rs`
//! covers them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::intake;
use super::limits::{ResourceLimits, WithdrawalPolicy};
use super::shared::Shared;
use super::state::LastError;
use crate::bundle::{BundleAnswer, BundleSource, BundlesUnavailable};
use crate::clock::{Clock, UnixTime};
use crate::source::trust_clock::TrustClock;
use crate::testing::Issuer;
use crate::verify::{ValidateReason, Validator};
use crate::workload_api::{Call, WorkloadApiClient, WorkloadApiError, WorkloadApiErrorReason};

const AUDIENCE: &str = "reports";
const NOW: i64 = 1_790_000_000;
/// Bundles are stale after this time.
const STALE: Duration = Duration::from_secs(100);
/// A withdrawal takes effect after this time.
const DELAY: Duration = Duration::from_secs(10);
/// Each key has its own key ID, except the last two, which share one.
const KEYS: usize = 5;
/// Tokens of each key: enough to keep a small cache full.
const TOKENS: usize = 8;

/// Monotonic time in milliseconds, which the writer advances. The wall clock never changes.
#[derive(Default)]
struct HandClock(AtomicU64);

impl HandClock {
    fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).expect("short");
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> UnixTime {
        UnixTime::from_secs(NOW)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// Reads the state as a `JwtSource` does.
struct Handle(Arc<Shared>);

impl BundleSource for Handle {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.0.revision()
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        self.0.published.bundle(trust_domain)
    }

    fn changed_since(&self, _: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        None
    }
}

/// The state of a key, as the writer records it: present, removed, or changing. It is a counter, so
/// that a reader notices changes during its validation.
#[derive(Default)]
struct KeyState(AtomicU64);

#[derive(Debug, PartialEq)]
enum Phase {
    Removed,
    Present,
    Changing,
}

impl KeyState {
    fn step(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn phase(step: u64) -> Phase {
        match step % 4 {
            0 => Phase::Removed,
            2 => Phase::Present,
            _ => Phase::Changing,
        }
    }

    fn is_present(&self) -> bool {
        Self::phase(self.now()) == Phase::Present
    }
}

struct Setup {
    shared: Arc<Shared>,
    clock: Arc<HandClock>,
    states: [KeyState; KEYS],
    jwks: [Value; KEYS],
    tokens: [Vec<String>; KEYS],
    done: AtomicBool,
    outcomes: [AtomicU64; 2],
}

/// The last two keys have the same key ID.
fn key_id(key: usize) -> String {
    format!("key-{}", key.min(KEYS - 2))
}

impl Setup {
    fn new() -> Self {
        let clock = Arc::new(HandClock::default());
        let issuers: [Issuer; KEYS] = std::array::from_fn(|_| Issuer::new("x").expect("x"));
        let client = WorkloadApiClient::with_connector(|| async {
            Err::<tokio::io::DuplexStream, _>(std::io::ErrorKind::NotFound.into())
        });
        let shared = Shared::new(
            client.build().expect("a runtime"),
            Arc::new(TrustClock::new(clock.clone())),
            Arc::new(()),
            WithdrawalPolicy::After(DELAY),
            Some(STALE),
        );
        let token = |key: usize, n: usize| {
            let token = issuers[key].token("spiffe://x/web", AUDIENCE);
            let token = token.header("kid", key_id(key)).claim("n", n);
            token.expires_at(UnixTime::from_secs(NOW + 300)).sign()
        };
        Self {
            shared: Arc::new(shared),
            clock,
            states: Default::default(),
            jwks: std::array::from_fn(|key| {
                let jwks: Value = serde_json::from_slice(&issuers[key].jwks()).expect("a set");
                let mut jwk = jwks["keys"][0].clone();
                jwk["kid"] = json!(key_id(key));
                jwk
            }),
            tokens: std::array::from_fn(|key| (0..TOKENS).map(|n| token(key, n)).collect()),
            done: AtomicBool::new(false),
            outcomes: Default::default(),
        }
    }

    fn validator(&self, bytes: usize) -> Validator {
        Validator::builder(Handle(self.shared.clone()))
            .audience(AUDIENCE)
            .clock(self.clock.clone())
            .cache_bytes(bytes)
            .build()
            .expect("a validator")
    }

    // === The writer ===

    /// Applies a message of the agent: these keys of `x`, and another trust domain that never changes.
    fn message(&self, x: &[u8]) {
        let bundles = HashMap::from([
            ("spiffe://x".to_owned(), Bytes::copy_from_slice(x)),
            (
                "spiffe://y".to_owned(),
                Bytes::from_static(b"{\"keys\":[]}"),
            ),
        ]);
        let known = self.shared.known();
        let read = intake::read(bundles, &known, &ResourceLimits::default());
        self.shared.take_in(read.expect("a message"));
    }

    fn send(&self, keys: &[usize]) {
        let keys: Vec<&Value> = keys.iter().map(|key| &self.jwks[*key]).collect();
        self.message(json!({ "keys": keys }).to_string().as_bytes());
    }

    fn present(&self) -> Vec<usize> {
        (0..KEYS)
            .filter(|key| self.states[*key].is_present())
            .collect()
    }

    /// Changes these keys by `how`, and no others.
    fn change(&self, keys: &[usize], how: impl FnOnce()) {
        keys.iter().for_each(|key| self.states[*key].step());
        how();
        keys.iter().for_each(|key| self.states[*key].step());
    }

    /// Makes all keys unusable by `how`. The next message restores some of them. Cached tokens of the
    /// others must not be accepted again.
    fn interrupt(&self, rng: &mut fastrand::Rng, how: impl FnOnce()) {
        let keys = self.present();
        self.change(&keys, how);
        pause(rng);
        let restored: Vec<_> = keys.into_iter().filter(|_| rng.u8(0..3) > 0).collect();
        self.change(&restored, || self.send(&restored));
    }

    fn act(&self, rng: &mut fastrand::Rng) {
        let present = self.present();
        match rng.u8(0..12) {
            // Adds or removes a key. Of the two with the same key ID only one is ever present.
            0..=3 => {
                let key = rng.usize(0..KEYS - 2);
                let mut keys = present;
                match keys.iter().position(|there| *there == key) {
                    Some(at) => drop(keys.remove(at)),
                    None => keys.push(key),
                }
                self.change(&[key], || self.send(&keys));
            }
            // Another key with the same key ID.
            4..=5 => {
                let twins = [KEYS - 2, KEYS - 1];
                let mut keys: Vec<_> = present;
                let old = keys.iter().position(|there| twins.contains(there));
                match old.map(|at| keys.remove(at)) {
                    Some(old) => {
                        let new = twins[usize::from(old == twins[0])];
                        keys.push(new);
                        self.change(&twins, || self.send(&keys));
                    }
                    None => {
                        keys.push(twins[0]);
                        self.change(&twins[..1], || self.send(&keys));
                    }
                }
            }
            // The same keys again.
            6 => self.send(&present),
            7 => self.interrupt(rng, || _ = self.shared.withdraw_now()),
            // A withdrawal that the task does not apply: it takes effect by its deadline.
            8 => self.interrupt(rng, || {
                self.withdraw();
                self.clock.advance(DELAY);
            }),
            // A withdrawal that ends before it takes effect.
            9 => {
                self.withdraw();
                self.clock.advance(DELAY / 2);
                pause(rng);
                self.send(&present);
            }
            10 => self.interrupt(rng, || self.clock.advance(STALE)),
            // The keys of one trust domain become unreadable, until the last good ones are stale.
            _ => {
                self.message(b"not a JWK Set");
                self.clock.advance(STALE / 2);
                self.message(b"not a JWK Set");
                pause(rng);
                self.interrupt(rng, || self.clock.advance(STALE / 2));
            }
        }
    }

    // === The readers ===

    fn validate_one(&self, validators: &[Validator], rng: &mut fastrand::Rng) {
        let key = rng.usize(0..KEYS);
        let token = &self.tokens[key][rng.usize(0..TOKENS)];
        let validator = &validators[rng.usize(0..validators.len())];
        let state = &self.states[key];
        let before = state.now();
        let result = validator.validate(token).map_err(|error| error.reason());
        if let Err(reason) = result {
            use ValidateReason as Reason;
            // The trust domain is never removed, so it is never unknown.
            let is_expected = match reason {
                Reason::KeyUnknown | Reason::Signature => true,
                Reason::BundlesUnavailable(why) => {
                    matches!(
                        why,
                        BundlesUnavailable::Withdrawn | BundlesUnavailable::Stale
                    )
                }
                _ => false,
            };
            assert!(is_expected, "{reason}");
        }
        if state.now() != before {
            return;
        }
        match KeyState::phase(before) {
            Phase::Removed => {
                assert!(result.is_err(), "key {key} is removed at {before}");
                self.outcomes[0].fetch_add(1, Ordering::Relaxed);
            }
            Phase::Present => {
                assert!(
                    result.is_ok(),
                    "key {key} is present at {before}: {result:?}"
                );
                self.outcomes[1].fetch_add(1, Ordering::Relaxed);
            }
            Phase::Changing => {}
        }
    }
}

/// So that there are outcomes which no change comes into.
fn pause(rng: &mut fastrand::Rng) {
    for _ in 0..rng.u32(0..200) {
        std::hint::spin_loop();
    }
    if rng.u8(0..4) == 0 {
        std::thread::yield_now();
    }
}

impl Setup {
    fn withdraw(&self) {
        self.shared.stream_ended(Some(LastError::of(&denied())));
    }
}

fn denied() -> WorkloadApiError {
    let reason = WorkloadApiErrorReason::PermissionDenied;
    WorkloadApiError::new(Call::FetchJwtBundles, reason, "no identity issued")
}

/// Ends the readers, also if the writer panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a22_removed_keys_are_never_accepted() {
    let world = Setup::new();
    // One that fits in each thread's level, one whose shared level evicts often, one without a cache.
    let validators = [1 << 20, 8 * 1024, 0].map(|bytes| world.validator(bytes));
    world.send(&[]);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (world, validators) = (&world, &validators);
            scope.spawn(move || {
                let _done = Done(&world.done);
                let mut rng = fastrand::Rng::with_seed(reader);
                while !world.done.load(Ordering::Relaxed) {
                    world.validate_one(validators, &mut rng);
                }
            });
        }
        let _done = Done(&world.done);
        let mut rng = fastrand::Rng::with_seed(7);
        // Also on a machine that rarely runs the readers.
        let enough = || {
            let outcomes = world.outcomes.iter().map(|n| n.load(Ordering::Relaxed));
            outcomes.min() > Some(2_000)
                && validators[0].cache_stats().hits > 1_000
                && validators[1].cache_stats().evictions > 1_000
        };
        let mut acts = 0;
        while (acts < 3_000 || acts < 300_000 && !enough()) && !world.done.load(Ordering::Relaxed) {
            world.act(&mut rng);
            pause(&mut rng);
            acts += 1;
        }
    });
    let [large, small, _] = validators.map(|validator| validator.cache_stats());
    assert!(large.hits > 1_000, "{large:?}");
    assert!(small.evictions > 1_000, "{small:?}");
}
