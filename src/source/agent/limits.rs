//! What the source takes in, and what it does when the issuer takes back.

use std::time::Duration;

/// Limits on each message of the agent, checked before a key is read. The size of a whole message
/// has its own limit, checked before decoding: see
/// [`max_message_bytes`](super::JwtSourceBuilder::max_message_bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceLimits {
    max_bundles: usize,
    max_bundle_jwks_bytes: usize,
}

impl ResourceLimits {
    /// Limits the trust domains in one message. 200 by default. They are counted before anything is
    /// stored; a message with more is discarded, the last bundles stay, and the source is unhealthy.
    #[must_use]
    pub fn max_bundles(mut self, bundles: usize) -> Self {
        self.max_bundles = bundles.max(1);
        self
    }

    /// Limits the JWK Set of one trust domain, in bytes. 4 MiB by default. If it is larger, the last
    /// bundle of that trust domain stays and its state reports the error.
    #[must_use]
    pub fn max_bundle_jwks_bytes(mut self, bytes: usize) -> Self {
        self.max_bundle_jwks_bytes = bytes.max(1);
        self
    }

    pub(crate) fn bundles(&self) -> usize {
        self.max_bundles
    }

    pub(crate) fn jwks_bytes(&self) -> usize {
        self.max_bundle_jwks_bytes
    }
}

impl Default for ResourceLimits {
    fn default() -> Self {
        Self {
            max_bundles: 200,
            max_bundle_jwks_bytes: 4 << 20,
        }
    }
}

/// What to do when the issuer withdraws the bundles, by `PermissionDenied` on their stream
/// (Workload API section 6.2.2: a client should cease using them).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WithdrawalPolicy {
    /// Validation answers "cannot judge" at once.
    #[default]
    Immediate,
    /// Validation goes on for this long, should they come back. The time is taken on the monotonic
    /// clock and on the wall clock, whichever shows more.
    ///
    /// Bridges a restart of a SPIRE agent, which answers `PermissionDenied` for about 5 s until it
    /// has attested and synced again; the source retries every 125 ms to 1 s for the first 10 s. 30 s
    /// is a good start. The cost: a workload that is really deregistered is trusted on for so long,
    /// and so are keys that are revoked in that time.
    After(Duration),
    /// Validation goes on with the last set for as long as the source lives. A key that the issuer
    /// revokes in that time stays good here.
    Keep,
}
