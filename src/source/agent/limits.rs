//! Limits on messages of the agent, and what a withdrawal of the bundles does.

use std::time::Duration;

use crate::workload_api::DEFAULT_MAX_MESSAGE_BYTES;

/// Limits on each message of the agent, checked before a key is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceLimits {
    pub(super) max_bundles: usize,
    pub(super) max_bundle_jwks_bytes: usize,
    pub(super) max_message_bytes: usize,
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

    /// Limits the size of one message, in bytes. 64 MiB by default. It is checked before the message
    /// is decoded; a larger message is discarded, the last bundles stay, and the source is unhealthy
    /// until a message within the limit arrives. It bounds all trust domains together.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }
}

impl Default for ResourceLimits {
    fn default() -> Self {
        Self {
            max_bundles: 200,
            max_bundle_jwks_bytes: 4 << 20,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
        }
    }
}

/// What to do when the issuer withdraws the bundles, by `PermissionDenied` on their stream
/// (Workload API section 6.2.2: a client should cease using them).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WithdrawalPolicy {
    /// Tokens cannot be verified from that moment.
    #[default]
    Immediate,
    /// Validation continues for this long, in case the issuer restores them. The time is the longer
    /// of the times on the monotonic clock and on the wall clock.
    ///
    /// Bridges a restart of a SPIRE agent, which returns `PermissionDenied` for about 5 s until it
    /// has attested and synced again; the source retries every 125 ms to 1 s for the first 10 s. 30 s
    /// is a good start. The cost: keys that are revoked in that time stay trusted,
    /// and a workload whose registration entry was removed keeps accepting callers.
    After(Duration),
    /// Validation continues with the last bundles as long as the source lives. A key that the issuer
    /// revokes in that time stays trusted here.
    Keep,
}
