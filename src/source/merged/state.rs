//! The state of a merged source, for operators.

use crate::bundle::BundlesUnavailable;
use crate::identity::TrustDomain;

/// The state of a [`MergedBundles`](super::MergedBundles) at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedState {
    pub(super) revision: Result<u64, BundlesUnavailable>,
    pub(super) members: Vec<MergedMemberState>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedMemberState {
    pub(super) name: Box<str>,
    pub(super) trust_domains: Vec<TrustDomain>,
    pub(super) is_default: bool,
    pub(super) revision: Result<u64, BundlesUnavailable>,
    pub(super) healthy: bool,
}

impl MergedState {
    /// Returns the revision, or why no member is available.
    ///
    /// # Errors
    /// No member is available; the reason is the first member's.
    pub fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.revision
    }

    /// Returns whether any member is available.
    pub fn is_ready(&self) -> bool {
        self.revision.is_ok()
    }

    /// Returns whether every member is healthy.
    pub fn is_healthy(&self) -> bool {
        self.members.iter().all(|member| member.healthy)
    }

    /// Returns the members, in the order in which they were added.
    pub fn members(&self) -> &[MergedMemberState] {
        &self.members
    }
}

impl MergedMemberState {
    /// Returns the name that it was added with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the trust domains that are routed to it, by name.
    pub fn trust_domains(&self) -> &[TrustDomain] {
        &self.trust_domains
    }

    /// Returns whether it owns all trust domains that no other member owns.
    pub fn is_default(&self) -> bool {
        self.is_default
    }

    /// Returns its own revision, or why it is unavailable.
    ///
    /// # Errors
    /// The member is unavailable.
    pub fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.revision
    }

    /// Returns whether it is available.
    pub fn is_ready(&self) -> bool {
        self.revision.is_ok()
    }

    /// Returns whether it is healthy, by [`BundleSource::is_healthy`](crate::bundle::BundleSource::is_healthy).
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }
}
