//! Withdrawals at the same moment as other work on the source: each test runs one interleaving, by a
//! clock that acts when it is read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::intake;
use super::limits::{ResourceLimits, WithdrawalPolicy};
use super::shared::Shared;
use super::state::LastError;
use crate::bundle::{BundleAnswer, BundlesUnavailable};
use crate::clock::{Clock, UnixTime};
use crate::source::trust_clock::TrustClock;
use crate::testing::Issuer;
use crate::workload_api::{Call, WorkloadApiClient, WorkloadApiError, WorkloadApiErrorReason};

/// A withdrawal takes effect after this time.
const DELAY: Duration = Duration::from_secs(10);
/// Keys are stale after this time.
const STALE: Duration = Duration::from_secs(100);
const UNREADABLE: &[u8] = b"not a JWK Set";

/// Both clocks, in seconds; only the test advances them.
#[derive(Default)]
struct ActingClock {
    seconds: AtomicU64,
    at_next_reading: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl ActingClock {
    fn advance(&self, by: Duration) {
        self.seconds.fetch_add(by.as_secs(), Ordering::SeqCst);
    }

    /// Runs this right after the clock is read next: the reader still gets the time from before.
    fn after_reading(&self, act: impl FnOnce() + Send + 'static) {
        *self.at_next_reading.lock().unwrap() = Some(Box::new(act));
    }
}

impl Clock for ActingClock {
    fn now(&self) -> UnixTime {
        let seconds = self.seconds.load(Ordering::SeqCst);
        UnixTime::from_secs(1_790_000_000).saturating_add(Duration::from_secs(seconds))
    }

    fn monotonic(&self) -> Duration {
        let now = Duration::from_secs(self.seconds.load(Ordering::SeqCst));
        let act = self.at_next_reading.lock().unwrap().take();
        if let Some(act) = act {
            act();
        }
        now
    }
}

/// A source with keys of `x`, whose task is the test.
fn source() -> (Arc<ActingClock>, Arc<Shared>, Bytes) {
    let clock = Arc::new(ActingClock::default());
    let client = WorkloadApiClient::with_connector(|| async {
        Err::<tokio::io::DuplexStream, _>(std::io::ErrorKind::NotFound.into())
    });
    let shared = Shared::new(
        client.build().unwrap(),
        Arc::new(TrustClock::new(clock.clone())),
        Arc::new(()),
        WithdrawalPolicy::After(DELAY),
        Some(STALE),
    );
    let jwks = Bytes::from(Issuer::new("x").unwrap().jwks());
    let shared = Arc::new(shared);
    send(&shared, &[("x", &jwks)]);
    (clock, shared, jwks)
}

fn read(shared: &Shared, bundles: &[(&str, &[u8])]) -> intake::Intake {
    let bundles = bundles.iter();
    let bundles = bundles.map(|(name, jwks)| (format!("spiffe://{name}"), jwks.to_vec().into()));
    intake::read(
        bundles.collect(),
        &shared.known(),
        &ResourceLimits::default(),
    )
    .unwrap()
}

fn send(shared: &Shared, bundles: &[(&str, &[u8])]) {
    shared.take_in(read(shared, bundles));
}

fn withdraw(shared: &Shared) {
    let reason = WorkloadApiErrorReason::PermissionDenied;
    let denied = WorkloadApiError::new(Call::FetchJwtBundles, reason, "no identity issued");
    shared.stream_ended(Some(LastError::of(&denied)));
}

/// The number of keys of this trust domain.
fn keys(shared: &Shared, trust_domain: &str) -> Result<usize, BundlesUnavailable> {
    match shared.published.bundle(trust_domain) {
        BundleAnswer::Ready(bundle) => Ok(bundle.len()),
        BundleAnswer::UnknownTrustDomain => Ok(0),
        BundleAnswer::Unavailable(why) => Err(why),
    }
}

#[tokio::test]
async fn withdrawal_during_age_check_takes_effect() {
    let (clock, shared, _) = source();
    // Its newest keys cannot be read, so the last good ones age.
    send(&shared, &[("x", UNREADABLE)]);
    clock.advance(STALE);
    let task = shared.clone();
    clock.after_reading(move || _ = task.withdraw_now());
    assert_eq!(shared.revision(), Err(BundlesUnavailable::Withdrawn));
    assert_eq!(shared.revision(), Err(BundlesUnavailable::Withdrawn));
}

#[tokio::test]
async fn withdrawal_during_a_lookup_returns_no_empty_set() {
    let (clock, shared, _) = source();
    let task = shared.clone();
    clock.after_reading(move || _ = task.withdraw_now());
    assert_eq!(
        shared.published.bundle_set(),
        Err(BundlesUnavailable::Withdrawn)
    );
}

#[tokio::test]
async fn due_withdrawal_precedes_an_unreadable_message() {
    for beats in [false, true] {
        let (clock, shared, jwks) = source();
        withdraw(&shared);
        let message = read(&shared, &[("x", UNREADABLE)]);
        let other = read(&shared, &[("x", UNREADABLE), ("y", &jwks)]);
        clock.advance(DELAY);
        if beats {
            shared.beat();
        }
        // The keys that the message keeps are withdrawn.
        shared.take_in(message);
        assert_eq!(keys(&shared, "x"), Err(BundlesUnavailable::Withdrawn));
        // A bundle ends the withdrawal, but does not bring the keys of another back.
        shared.take_in(other);
        assert_eq!((keys(&shared, "x"), keys(&shared, "y")), (Ok(0), Ok(1)));
        send(&shared, &[("x", &jwks)]);
        assert_eq!(keys(&shared, "x"), Ok(1));
    }
}

#[tokio::test]
async fn message_before_a_withdrawal_takes_effect_keeps_keys() {
    let (clock, shared, _) = source();
    withdraw(&shared);
    clock.advance(DELAY - Duration::from_secs(1));
    send(&shared, &[("x", UNREADABLE)]);
    clock.advance(DELAY);
    assert_eq!(keys(&shared, "x"), Ok(1));
}

#[tokio::test]
async fn end_of_withdrawal_while_reading_wakes_waiting_tasks() {
    let (clock, shared, jwks) = source();
    withdraw(&shared);
    clock.advance(DELAY - Duration::from_secs(1));
    let message = read(&shared, &[("x", &jwks)]);
    let mut notices = shared.published.notices();
    notices.mark_unchanged();
    // It becomes due when the message is already being applied.
    let (later, readers) = (clock.clone(), shared.clone());
    clock.after_reading(move || {
        later.advance(Duration::from_secs(1));
        assert_eq!(readers.revision(), Err(BundlesUnavailable::Withdrawn));
    });
    shared.take_in(message);
    assert_eq!(keys(&shared, "x"), Ok(1));
    assert!(
        notices.has_changed().unwrap(),
        "waiting tasks were not woken"
    );
}

/// Our own tokens that a removed key signed are replaced.
#[tokio::test]
async fn removed_keys_and_trust_domains_are_reported() {
    let (_, shared, x) = source();
    let y = Issuer::new("y").unwrap().jwks();
    let empty = br#"{"keys": []}"#;
    let check = |bundles: &[(&str, &[u8])], loses: bool| {
        let change = shared.take_in(read(&shared, bundles));
        assert_eq!(change.lost_keys, loses, "{:?}", shared.known());
    };
    check(&[("x", &x), ("y", &y)], false);
    check(&[("x", &x), ("y", &y)], false);
    check(&[("x", &x), ("y", empty)], true);
    check(&[("x", &x), ("y", &y)], false);
    check(&[("x", &x), ("y", empty)], true);
    check(&[("x", &x)], false);
    check(&[("x", &x), ("y", &y)], false);
    check(&[("y", &y)], true);
    check(&[("x", &x)], true);
}
