//! Waiting a little for a key that the token has and the bundle does not have yet.
//!
//! A new key reaches its signer and its verifiers at different moments. Where the signer is first,
//! its tokens are refused until the bundle arrives. SPIRE publishes a key long before it signs with
//! it, so this is for issuers that don't. Off unless asked for.
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

/// How long, and for how many at once, an unknown key is waited for.
///
/// An unsigned token with a made-up `kid` is waited for too: nothing shows yet that it is made up.
/// So the number of waiters is bounded, and a wait in vain is followed by a pause in which none
/// begins; several that were broken off count as one when they lasted as long. Both go by trust
/// domain, so that made-up keys of one do not stand in the way of another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKeyWait {
    pub(crate) max_wait: Duration,
    pub(crate) max_waiting: usize,
    pub(crate) cool_down: Duration,
}

impl UnknownKeyWait {
    /// Waits for at most this long; at most 64 requests at once for keys of one trust domain; and
    /// after a wait in vain not again for ten seconds.
    pub fn new(max_wait: Duration) -> Self {
        Self {
            max_wait,
            max_waiting: 64,
            cool_down: Duration::from_secs(10),
        }
    }

    /// So many requests wait at once for keys of one trust domain; the others are refused at once.
    #[must_use]
    pub fn max_waiting(mut self, requests: usize) -> Self {
        self.max_waiting = requests;
        self
    }

    /// After a wait in vain for a key of a trust domain, none begins for this long.
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
