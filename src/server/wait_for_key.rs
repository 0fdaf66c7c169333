//! Waits for the key of a token if the bundle does not have it yet.
//!
//! An issuer may sign with a new key before all verifiers have it. Then its tokens are rejected
//! until the bundle arrives. SPIRE publishes a key long before it signs with it, so this is for
//! other issuers. Off by default.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::request::Parts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use super::gate::{Checked, Gate};
use super::rejection::Rejection;
use crate::clock::Clock;
use crate::runtime;
use crate::verify::Sight;

/// How long requests wait for an unknown key, and how many of them.
///
/// Requests with a forged token and a made-up `kid` wait too, because the key might still arrive.
/// So the number of waiting requests is limited, and after a failed wait no wait begins for some
/// time. Both limits are per trust domain, so that made-up keys in one trust domain do not affect
/// another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKeyWait {
    max_wait: Duration,
    max_waiting: usize,
    cool_down: Duration,
}

impl UnknownKeyWait {
    /// Waits for at most this long. By default at most 64 requests per trust domain wait, and after
    /// a failed wait no request waits for ten seconds.
    pub fn new(max_wait: Duration) -> Self {
        Self {
            max_wait,
            max_waiting: 64,
            cool_down: Duration::from_secs(10),
        }
    }

    /// Sets how many requests wait at the same time for keys of one trust domain. Further ones are
    /// rejected immediately.
    #[must_use]
    pub fn max_waiting(mut self, requests: usize) -> Self {
        self.max_waiting = requests;
        self
    }

    /// Sets the time after a failed wait in which no request waits for keys of that trust domain.
    #[must_use]
    pub fn cool_down(mut self, pause: Duration) -> Self {
        self.cool_down = pause;
        self
    }
}

/// The limits of all waits of a layer.
pub(crate) struct Room {
    pub(crate) config: UnknownKeyWait,
    clock: Arc<dyn Clock>,
    // Only trust domains of the bundle set are added.
    domains: Mutex<HashMap<Box<str>, Domain>>,
}

struct Domain {
    places: Arc<Semaphore>,
    paused_until: Duration,
}

impl Room {
    pub(crate) fn new(config: UnknownKeyWait, clock: Arc<dyn Clock>) -> Self {
        Self {
            config,
            clock,
            domains: Mutex::default(),
        }
    }

    /// Returns a permit to wait, if one is free and no wait for this trust domain has failed
    /// recently.
    fn enter(&self, trust_domain: &str) -> Option<OwnedSemaphorePermit> {
        // Before the lock: the clock may be code of the user.
        let now = self.clock.monotonic();
        let mut domains = self.domains();
        let places = self.config.max_waiting.min(Semaphore::MAX_PERMITS);
        let domain = domains
            .entry(trust_domain.into())
            .or_insert_with(|| Domain {
                places: Arc::new(Semaphore::new(places)),
                paused_until: Duration::ZERO,
            });
        if now < domain.paused_until {
            return None;
        }
        domain.places.clone().try_acquire_owned().ok()
    }

    /// A wait for this trust domain failed.
    fn pause(&self, trust_domain: Option<&str>) {
        let until = self.clock.monotonic().saturating_add(self.config.cool_down);
        let mut domains = self.domains();
        if let Some(domain) = trust_domain.and_then(|name| domains.get_mut(name)) {
            domain.paused_until = until;
        }
    }

    fn domains(&self) -> MutexGuard<'_, HashMap<Box<str>, Domain>> {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait for a change of the bundles, until the time is up.
pub(crate) struct KeyWait {
    room: Arc<Room>,
    changed: Changed,
    rejection: Rejection,
    time_up: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

type Changed = Pin<Box<dyn Future<Output = ()> + Send>>;

impl KeyWait {
    /// Begins to wait, if waiting can help. Returns the verdict otherwise.
    pub(crate) fn begin(
        gate: &Gate,
        room: &Arc<Room>,
        parts: &mut Parts,
        checked: Checked,
    ) -> Result<Self, Checked> {
        let Some(rejection) = checked.unknown_key() else {
            return Err(checked);
        };
        // Without timers the wait would never end.
        let place = runtime::with_timers()
            .ok()
            .and(rejection.trust_domain())
            .and_then(|trust_domain| room.enter(trust_domain));
        let Some(place) = place else {
            gate.access.telemetry.key_wait("turned-away");
            return Err(checked);
        };
        let (changed, rejection) = check_again(gate, parts)?;
        Ok(Self {
            room: room.clone(),
            changed,
            rejection,
            time_up: Box::pin(tokio::time::sleep(room.config.max_wait)),
            _place: place,
        })
    }

    /// Returns the verdict once the wait is over.
    pub(crate) fn poll_verdict(
        &mut self,
        gate: &Gate,
        parts: &mut Parts,
        cx: &mut Context<'_>,
    ) -> Poll<Checked> {
        let is_over = self.time_up.as_mut().poll(cx).is_ready();
        // Also at the timeout: the key may have arrived before this poll.
        if self.changed.as_mut().poll(cx).is_ready() {
            match check_again(gate, parts) {
                Ok(unknown) => (self.changed, self.rejection) = unknown,
                Err(checked) => {
                    gate.access.telemetry.key_wait("judged");
                    return Poll::Ready(checked);
                }
            }
            if !is_over {
                // One change per poll, so that a source that reports changes all the time does not
                // keep the timer from being polled.
                cx.waker().wake_by_ref();
            }
        }
        if !is_over {
            return Poll::Pending;
        }
        self.room.pause(self.rejection.trust_domain());
        gate.access.telemetry.key_wait("in-vain");
        Poll::Ready(Checked::rejected(self.rejection.clone()))
    }
}

/// Checks the request again. If the key is still unknown, returns a future of the next change of the
/// bundles; otherwise the verdict.
fn check_again(gate: &Gate, parts: &mut Parts) -> Result<(Changed, Rejection), Checked> {
    let source = gate.validator.source();
    // Read before the check, so that no change between the two is missed.
    let seen = source.revision();
    let checked = gate.check(parts, Sight::Again);
    let Some(rejection) = checked.unknown_key() else {
        return Err(checked);
    };
    match seen.ok().and_then(|seen| source.changed_since(seen)) {
        Some(changed) => Ok((changed, rejection.clone())),
        None => Err(checked),
    }
}
