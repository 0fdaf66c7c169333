//! The state of a merged source, for operators.

use crate::bundle::BundlesUnavailable;
use crate::identity::TrustDomain;

/// The state of a [`MergedBundles`](super::MergedBundles) at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergedState {
    /// The revision, or why no member is available: the reason of the first one.
    pub revision: Result<u64, BundlesUnavailable>,
    /// The members, in the order in which they were added.
    pub members: Vec<MergedMemberState>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergedMemberState {
    /// The name that it was added with.
    pub name: Box<str>,
    /// The trust domains that are routed to it, by name.
    pub trust_domains: Vec<TrustDomain>,
    /// Whether it owns all trust domains that no other member owns.
    pub default: bool,
    /// Its own revision, or why it is unavailable.
    pub revision: Result<u64, BundlesUnavailable>,
    /// Whether it is healthy, by [`BundleSource::is_healthy`](crate::bundle::BundleSource::is_healthy).
    pub healthy: bool,
}

impl MergedState {
    /// Returns whether any member is available.
    pub fn is_ready(&self) -> bool {
        self.revision.is_ok()
    }

    /// Returns whether every member is healthy.
    pub fn is_healthy(&self) -> bool {
        self.members.iter().all(|member| member.healthy)
    }
}
