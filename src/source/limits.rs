//! What the source takes in, and what it does when the issuer takes back.

use std::time::Duration;

/// How much the source takes in. Checked before a key is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceLimits {
    max_bundles: usize,
    max_bundle_jwks_bytes: usize,
}

impl ResourceLimits {
    /// How many trust domains one message may hold; a message with more is discarded, and the set
    /// before it stays. 200 by default.
    #[must_use]
    pub fn max_bundles(mut self, bundles: usize) -> Self {
        self.max_bundles = bundles.max(1);
        self
    }

    /// How many bytes the JWK Set of one trust domain may have; of a larger one that domain's last
    /// bundle stays, and its state says so. 4 MiB by default.
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

    /// A gRPC message within these limits is never larger than this: each entry holds a JWK Set,
    /// a name, and a few bytes around them; and a set over the limit must be seen to be refused
    /// alone, so there is room for one more of the allowed size.
    pub(crate) fn message_bytes(&self) -> usize {
        const NAME_AND_FRAME: usize = crate::spiffe_id::MAX_SPIFFE_ID_LEN + 64;
        let entry = self.max_bundle_jwks_bytes.saturating_add(NAME_AND_FRAME);
        // The length of a gRPC message is a 32-bit number.
        let most = usize::try_from(u32::MAX).unwrap_or(usize::MAX);
        self.max_bundles
            .saturating_add(1)
            .saturating_mul(entry)
            .min(most)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_limit_fits_the_others() {
        let limits = ResourceLimits::default();
        assert!(limits.message_bytes() >= 200 * (4 << 20));
        let small = ResourceLimits::default()
            .max_bundles(2)
            .max_bundle_jwks_bytes(1000);
        assert!((2000..20_000).contains(&small.message_bytes()));
        let endless = ResourceLimits::default().max_bundles(usize::MAX);
        assert!(endless.message_bytes() <= u32::MAX as usize);
    }
}
