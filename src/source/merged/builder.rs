//! The builder of a merged source.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Inner, Member, MergedBundles, Seen};
use crate::bundle::BundleSource;
use crate::identity::TrustDomain;
use crate::metrics::MetricsRecorder;

/// Collects the members of a [`MergedBundles`].
#[must_use]
pub struct MergedBundlesBuilder {
    members: Vec<Member>,
    routes: HashMap<TrustDomain, usize>,
    default: Option<usize>,
    metrics: Option<Arc<dyn MetricsRecorder>>,
    fault: Option<MergedBundlesError>,
}

/// Why members cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedBundlesError {
    reason: MergedBundlesErrorReason,
    text: Box<str>,
}

/// The class of a [`MergedBundlesError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MergedBundlesErrorReason {
    /// There is no member.
    NoMember,
    /// A member that is not the default has no trust domain.
    NoTrustDomain,
    /// Two members have the same trust domain.
    TwoForOneTrustDomain,
    /// There are two default members.
    TwoDefaults,
    /// Two members have the same name.
    SameName,
}

impl MergedBundlesBuilder {
    pub(super) fn new() -> Self {
        Self {
            members: Vec::new(),
            routes: HashMap::new(),
            default: None,
            metrics: None,
            fault: None,
        }
    }

    /// Adds a member that owns these trust domains. The state shows it under `name`.
    pub fn member(
        mut self,
        name: impl Into<Box<str>>,
        source: impl BundleSource,
        trust_domains: impl IntoIterator<Item = TrustDomain>,
    ) -> Self {
        let name = name.into();
        let at = self.members.len();
        let mut is_empty = true;
        for domain in trust_domains {
            is_empty = false;
            let text = format!("member \"{name}\": {domain} is already routed to another member");
            if self.routes.insert(domain, at).is_some_and(|it| it != at) {
                self.fail(MergedBundlesErrorReason::TwoForOneTrustDomain, text);
            }
        }
        if is_empty {
            let text = format!(
                "member \"{name}\" has no trust domain, so it would never be used; name its trust \
                 domains, or add it by `default_member`"
            );
            self.fail(MergedBundlesErrorReason::NoTrustDomain, text);
        }
        self.push(name, source)
    }

    /// Adds the member that owns all trust domains that no other member owns. There can be only one.
    ///
    /// It can then supply keys for any of these trust domains: use a source that you trust for all of
    /// them, such as the agent of this workload.
    pub fn default_member(mut self, name: impl Into<Box<str>>, source: impl BundleSource) -> Self {
        let name = name.into();
        let at = self.members.len();
        if self.default.replace(at).is_some() {
            let text = format!(
                "member \"{name}\" is a second default member: only one can own the trust domains that \
                 no other member owns; add it by `member`"
            );
            self.fail(MergedBundlesErrorReason::TwoDefaults, text);
        }
        self.push(name, source)
    }

    /// Sets the recorder that validators and server layers built on the source use, unless they are
    /// given one of their own. By default that of the first member that has one. The members record
    /// their own updates, errors and readiness, each by its own recorder: give them different ones,
    /// such as [`FacadeRecorder::for_source`](crate::metrics), so that their readiness stays apart.
    pub fn metrics(mut self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.metrics = Some(recorder);
        self
    }

    /// Creates the source.
    ///
    /// # Errors
    /// There is no member; a member has no trust domain and is not the default; two members have the
    /// same trust domain or the same name; there are two defaults.
    pub fn build(mut self) -> Result<MergedBundles, MergedBundlesError> {
        if self.members.is_empty() {
            let text = "a merged source has no members; add one by `member` or `default_member`";
            self.fail(MergedBundlesErrorReason::NoMember, text);
        }
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let members = self.members.iter();
        let seen = Seen {
            revision: 1,
            members: members.map(|member| member.source.revision()).collect(),
        };
        let inherited = self.members.iter().find_map(|it| it.source.metrics());
        Ok(MergedBundles {
            inner: Arc::new(Inner {
                members: self.members.into(),
                routes: self.routes,
                default: self.default,
                metrics: self.metrics.or(inherited),
                seen: ArcSwap::from_pointee(seen),
            }),
        })
    }

    fn push(mut self, name: Box<str>, source: impl BundleSource) -> Self {
        if self.members.iter().any(|member| member.name == name) {
            let text = format!("two members have the name \"{name}\"; name each differently");
            self.fail(MergedBundlesErrorReason::SameName, text);
        }
        let source = Arc::new(source);
        self.members.push(Member { name, source });
        self
    }

    /// Keeps the first fault.
    fn fail(&mut self, reason: MergedBundlesErrorReason, text: impl Into<Box<str>>) {
        self.fault.get_or_insert_with(|| MergedBundlesError {
            reason,
            text: text.into(),
        });
    }
}

impl MergedBundlesError {
    /// Returns the class.
    pub fn reason(&self) -> MergedBundlesErrorReason {
        self.reason
    }
}

impl fmt::Display for MergedBundlesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for MergedBundlesError {}

impl fmt::Debug for MergedBundlesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MergedBundlesBuilder")
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}
