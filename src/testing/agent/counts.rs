//! What the agent received.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the agent received since it was created, and what is open now. It is independent of the
/// counters of a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Connections that were opened.
    pub connections: u64,
    /// Connections that are open now.
    pub open_connections: u64,
    /// FetchJWTSVID calls, including rejected ones.
    pub fetch_jwt_svid: u64,
    /// FetchJWTBundles calls, including rejected ones.
    pub fetch_jwt_bundles: u64,
    /// ValidateJWTSVID calls, including rejected ones.
    pub validate_jwt_svid: u64,
    /// Bundle streams that are open now.
    pub open_streams: u64,
    /// Messages sent on bundle streams.
    pub bundle_messages: u64,
    /// Tokens that were signed for FetchJWTSVID. The others came from the agent's cache.
    pub tokens_signed: u64,
    /// HTTP/2 pings that clients sent, without responses to pings.
    pub pings: u64,
    /// Connections that were closed because their client pinged too often.
    pub too_many_pings: u64,
}

macro_rules! counters {
    ($($name:ident),*) => {
        #[derive(Default)]
        pub(super) struct Counters { $(pub(super) $name: Counter,)* }

        impl Counters {
            pub(super) fn read(&self) -> Counts {
                Counts { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters!(
    connections,
    open_connections,
    fetch_jwt_svid,
    fetch_jwt_bundles,
    validate_jwt_svid,
    open_streams,
    bundle_messages,
    tokens_signed,
    pings,
    too_many_pings
);

#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
