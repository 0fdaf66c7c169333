//! Waits for a key that a token names and the bundle does not have yet.
//!
//! A new key reaches its signer and its verifiers at different times. If the signer has it first, its
//! tokens are rejected until the bundle arrives. SPIRE publishes a key long before it signs with it,
//! so this is for other issuers. Off by default.
//!
//! A wait can be long, for the key and then for the inner service. Right before the call the token
//! is checked again: it has not expired, and its key is still in the bundle.

mod future;
mod room;
mod service;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tower_layer::Layer;

pub use self::future::WaitFuture;
pub(crate) use self::room::Room;
pub use self::service::WaitForKey;
use super::layer::Shared;
use super::on_reject::DefaultOnReject;

/// How long requests wait for an unknown key, and how many of them.
///
/// Requests with a forged token and a made-up `kid` wait too, because nothing shows yet that the key
/// does not exist. So the number of waiting requests is bounded, and no wait begins for some time
/// after one that failed. Cancelled waits count as a failed one once their sum is as long. Both
/// limits are per trust domain, so that made-up keys of one do not affect another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKeyWait {
    pub(crate) max_wait: Duration,
    pub(crate) max_waiting: usize,
    pub(crate) cool_down: Duration,
}

impl UnknownKeyWait {
    /// Waits for at most this long. By default at most 64 requests per trust domain wait, and after a
    /// failed wait none waits for ten seconds.
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

    /// Sets how long no request waits for keys of a trust domain after a failed wait.
    #[must_use]
    pub fn cool_down(mut self, pause: Duration) -> Self {
        self.cool_down = pause;
        self
    }
}

/// A [`ValidateJwtSvidLayer`](super::ValidateJwtSvidLayer) that waits for unknown keys; made by its
/// [`wait_for_unknown_keys`](super::ValidateJwtSvidLayer::wait_for_unknown_keys).
pub struct WaitForKeyLayer<R = DefaultOnReject> {
    shared: Arc<Shared<R>>,
    room: Arc<Room>,
}

impl<R> WaitForKeyLayer<R> {
    pub(crate) fn new(shared: Arc<Shared<R>>, wait: UnknownKeyWait) -> Self {
        let room = Arc::new(Room::new(wait, shared.gate.validator.clock().clone()));
        Self { shared, room }
    }
}

impl<S, R> Layer<S> for WaitForKeyLayer<R> {
    type Service = WaitForKey<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        WaitForKey::new(inner, self.shared.clone(), self.room.clone())
    }
}

impl<R> Clone for WaitForKeyLayer<R> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            room: self.room.clone(),
        }
    }
}

impl<R> fmt::Debug for WaitForKeyLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitForKeyLayer")
            .field("gate", &self.shared.gate)
            .field("wait", self.room.config())
            .finish()
    }
}
