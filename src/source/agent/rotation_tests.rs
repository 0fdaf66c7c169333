//! Keys that come and go while threads validate, by every way in which they do: the real source's
//! state under real validators, whose caches are small and large.
//!
//! What is asserted is all that a caller may count on: a verdict that began after a key was gone,
//! and ended before it came back, is a refusal; one that began and ended while the key stood is
//! none. Found by it in each of several runs were, made on purpose: an entry of the cache renewed
//! without a look at its key; a trust domain that grew too old without a new revision; a withdrawal
//! that empties the snapshot before it is said. Two neighbouring steps in the wrong order are too
//! quick for it in most runs: those are found by the model in `tests/model.rs`.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::intake;
use super::limits::{ResourceLimits, WithdrawalPolicy};
use super::shared::{Shared, StreamError};
use crate::bundle::{BundleAnswer, BundleSource, BundlesUnavailable};
use crate::clock::{Clock, UnixTime};
use crate::source::trust_clock::TrustClock;
use crate::testing::Issuer;
use crate::verify::{ValidateReason, Validator};
use crate::workload_api::{Call, WorkloadApiClient, WorkloadApiError, WorkloadApiErrorReason};

const AUDIENCE: &str = "reports";
const NOW: i64 = 1_790_000_000;
/// After so long without a word from the issuer nothing can be judged.
const STALE: Duration = Duration::from_secs(100);
/// A withdrawal takes effect after so long.
const DELAY: Duration = Duration::from_secs(10);
/// Keys of a name each, and two that share one.
const KEYS: usize = 5;
/// Tokens of each key, so that a small cache is always full.
const TOKENS: usize = 8;

/// Monotonic time in milliseconds, which the writer moves; the wall stands.
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

/// As `JwtSource` asks it.
struct Handle(Arc<Shared>);

impl BundleSource for Handle {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.0.revision()
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        self.0.bundle(trust_domain)
    }

    fn changed_since(&self, _: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        None
    }
}

/// Whether a key's tokens are good, as far as the writer has told: it stands, it is gone, or it is
/// on its way between the two. Each step is another number, so that what was meanwhile is seen.
#[derive(Default)]
struct Told(AtomicU64);

#[derive(Debug, PartialEq)]
enum Phase {
    Gone,
    Stands,
    Between,
}

impl Told {
    fn step(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn phase(step: u64) -> Phase {
        match step % 4 {
            0 => Phase::Gone,
            2 => Phase::Stands,
            _ => Phase::Between,
        }
    }

    fn stands(&self) -> bool {
        Self::phase(self.now()) == Phase::Stands
    }
}

struct World {
    shared: Arc<Shared>,
    clock: Arc<HandClock>,
    told: [Told; KEYS],
    jwks: [Value; KEYS],
    tokens: [Vec<String>; KEYS],
    done: AtomicBool,
    verdicts: [AtomicU64; 2],
}

/// The last two keys have one name.
fn key_id(key: usize) -> String {
    format!("key-{}", key.min(KEYS - 2))
}

impl World {
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
            told: Default::default(),
            jwks: std::array::from_fn(|key| {
                let jwks: Value = serde_json::from_slice(&issuers[key].jwks()).expect("a set");
                let mut jwk = jwks["keys"][0].clone();
                jwk["kid"] = json!(key_id(key));
                jwk
            }),
            tokens: std::array::from_fn(|key| (0..TOKENS).map(|n| token(key, n)).collect()),
            done: AtomicBool::new(false),
            verdicts: Default::default(),
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

    /// What the agent sends: these keys of `x`, and another trust domain that is always well.
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

    fn standing(&self) -> Vec<usize> {
        (0..KEYS).filter(|key| self.told[*key].stands()).collect()
    }

    /// These keys change, by this, and by nothing else.
    fn change(&self, keys: &[usize], how: impl FnOnce()) {
        keys.iter().for_each(|key| self.told[*key].step());
        how();
        keys.iter().for_each(|key| self.told[*key].step());
    }

    /// Everything goes by this. Some of it comes back with the next message; of what does not, no
    /// verdict of before may be given again.
    fn interrupt(&self, rng: &mut fastrand::Rng, how: impl FnOnce()) {
        let keys = self.standing();
        self.change(&keys, how);
        pause(rng);
        let back: Vec<_> = keys.into_iter().filter(|_| rng.u8(0..3) > 0).collect();
        self.change(&back, || self.send(&back));
    }

    fn act(&self, rng: &mut fastrand::Rng) {
        let standing = self.standing();
        match rng.u8(0..12) {
            // A key comes or goes; of the two with one name only one is ever there.
            0..=3 => {
                let key = rng.usize(0..KEYS - 2);
                let mut keys = standing;
                match keys.iter().position(|there| *there == key) {
                    Some(at) => drop(keys.remove(at)),
                    None => keys.push(key),
                }
                self.change(&[key], || self.send(&keys));
            }
            // Another key under the same name.
            4..=5 => {
                let twins = [KEYS - 2, KEYS - 1];
                let mut keys: Vec<_> = standing;
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
            // The same again.
            6 => self.send(&standing),
            7 => self.interrupt(rng, || _ = self.shared.withdraw_now()),
            // A withdrawal that nobody carries out: it strikes by itself.
            8 => self.interrupt(rng, || {
                self.withdraw();
                self.clock.advance(DELAY);
            }),
            // One that is taken back before it strikes.
            9 => {
                self.withdraw();
                self.clock.advance(DELAY / 2);
                pause(rng);
                self.send(&standing);
            }
            10 => self.interrupt(rng, || self.clock.advance(STALE)),
            // One trust domain's keys cannot be read any more, until the last ones are too old.
            _ => {
                self.message(b"no JWK Set");
                self.clock.advance(STALE / 2);
                self.message(b"no JWK Set");
                pause(rng);
                self.interrupt(rng, || self.clock.advance(STALE / 2));
            }
        }
    }

    // === The readers ===

    fn ask(&self, validators: &[Validator], rng: &mut fastrand::Rng) {
        let key = rng.usize(0..KEYS);
        let token = &self.tokens[key][rng.usize(0..TOKENS)];
        let validator = &validators[rng.usize(0..validators.len())];
        let told = &self.told[key];
        let before = told.now();
        let verdict = validator.validate(token).map_err(|error| error.reason());
        if let Err(reason) = verdict {
            use ValidateReason as Reason;
            // The trust domain never goes, so nobody is told that it is unknown.
            let why = match reason {
                Reason::KeyUnknown | Reason::Signature => true,
                Reason::BundlesUnavailable(why) => {
                    matches!(
                        why,
                        BundlesUnavailable::Withdrawn | BundlesUnavailable::Stale
                    )
                }
                _ => false,
            };
            assert!(why, "{reason}");
        }
        if told.now() != before {
            return;
        }
        match Told::phase(before) {
            Phase::Gone => {
                assert!(verdict.is_err(), "key {key} is gone at {before}");
                self.verdicts[0].fetch_add(1, Ordering::Relaxed);
            }
            Phase::Stands => {
                assert!(verdict.is_ok(), "key {key} stands at {before}: {verdict:?}");
                self.verdicts[1].fetch_add(1, Ordering::Relaxed);
            }
            Phase::Between => {}
        }
    }
}

/// So that there are verdicts which no change comes into.
fn pause(rng: &mut fastrand::Rng) {
    for _ in 0..rng.u32(0..200) {
        std::hint::spin_loop();
    }
    if rng.u8(0..4) == 0 {
        std::thread::yield_now();
    }
}

impl World {
    fn withdraw(&self) {
        let denied = denied();
        let error = StreamError::of(&denied, "no identity issued");
        self.shared.stream_ended(Some(&error));
    }
}

fn denied() -> WorkloadApiError {
    let reason = WorkloadApiErrorReason::PermissionDenied;
    WorkloadApiError::new(Call::FetchJwtBundles, reason, "no identity issued")
}

/// Ends the readers whatever becomes of the writer.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a22_no_verdict_outlives_its_key_in_the_real_source() {
    let world = World::new();
    // One with room on each thread, one whose shared level evicts all the time, one without.
    let validators = [1 << 20, 8 * 1024, 0].map(|bytes| world.validator(bytes));
    world.send(&[]);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (world, validators) = (&world, &validators);
            scope.spawn(move || {
                let _done = Done(&world.done);
                let mut rng = fastrand::Rng::with_seed(reader);
                while !world.done.load(Ordering::Relaxed) {
                    world.ask(validators, &mut rng);
                }
            });
        }
        let _done = Done(&world.done);
        let mut rng = fastrand::Rng::with_seed(7);
        let enough = || {
            world
                .verdicts
                .iter()
                .all(|n| n.load(Ordering::Relaxed) > 2_000)
        };
        let mut acts = 0;
        while (acts < 3_000 || !enough()) && !world.done.load(Ordering::Relaxed) {
            world.act(&mut rng);
            pause(&mut rng);
            acts += 1;
        }
    });
    let [large, small, _] = validators.map(|validator| validator.cache_stats());
    assert!(large.hits > 1_000, "{large:?}");
    assert!(small.evictions > 1_000, "{small:?}");
}
