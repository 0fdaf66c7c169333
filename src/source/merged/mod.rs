//! Several sources as one.

mod builder;
mod state;

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

pub use self::builder::{MergedBundlesBuilder, MergedBundlesError, MergedBundlesErrorReason};
pub use self::state::{MergedMemberState, MergedState};
use crate::bundle::{BundleAnswer, BundleSource, BundlesUnavailable};
use crate::identity::TrustDomain;
use crate::metrics::MetricsRecorder;

/// Several sources as one: each trust domain is owned by one member, and only that member is used.
///
/// A member owns the trust domains that it is added with; the
/// [default member](MergedBundlesBuilder::default_member), if there is one, owns all others. There is
/// no fall-through: a trust domain that its owner does not know, or has withdrawn, is not looked up
/// elsewhere. So a member has keys only for the trust domains of its routes.
///
/// An unavailable member affects its own trust domains only. The merged source is available while any
/// member is. Its revision rises if a member's revision or readiness changes.
///
/// Clones are cheap. For the full state of a member, keep a clone of it; the state here
/// has what all sources have in common.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_spiffe::bundle::{BundleAnswer, BundleSource, JwtBundle, JwtBundleSet};
/// use tower_spiffe::{TrustDomain, Validator};
/// use tower_spiffe::source::{MemoryBundles, MergedBundles};
///
/// let set = |name: &str| {
///     let domain = TrustDomain::parse(name).unwrap();
///     JwtBundleSet::from_iter([JwtBundle::from_jwks(domain, br#"{"keys": []}"#).unwrap()])
/// };
/// // In a service: a `JwtSource` for this trust domain, another source for a partner's.
/// let agent = MemoryBundles::new(set("example.org"));
/// let partner = MemoryBundles::default();
///
/// let bundles = MergedBundles::builder()
///     .default_member("agent", agent)
///     .member("partner", partner.clone(), [TrustDomain::parse("partner.test")?])
///     .build()?;
/// assert!(matches!(bundles.bundle("example.org"), BundleAnswer::Ready(_)));
/// assert!(matches!(bundles.bundle("partner.test"), BundleAnswer::Unavailable(_)));
/// assert!(!bundles.is_healthy());
///
/// partner.replace(set("partner.test"));
/// assert!(matches!(bundles.bundle("partner.test"), BundleAnswer::Ready(_)));
/// assert!(bundles.is_healthy());
///
/// let validator = Validator::builder(bundles).audience("spiffe://example.org/reports").build()?;
/// # drop(validator);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MergedBundles {
    inner: Arc<Inner>,
}

struct Inner {
    members: Box<[Member]>,
    routes: HashMap<TrustDomain, usize>,
    default: Option<usize>,
    metrics: Option<Arc<dyn MetricsRecorder>>,
    seen: ArcSwap<Seen>,
}

struct Member {
    name: Box<str>,
    source: Arc<dyn BundleSource>,
}

/// The revisions of the members at one merged revision, in their order.
struct Seen {
    revision: u64,
    members: Box<[Result<u64, BundlesUnavailable>]>,
}

impl MergedBundles {
    /// Creates a builder; add the members on it.
    pub fn builder() -> MergedBundlesBuilder {
        MergedBundlesBuilder::new()
    }

    /// Returns whether any member is available.
    pub fn is_ready(&self) -> bool {
        self.inner.revision().is_ok()
    }

    /// Returns whether every member is healthy, for alerts.
    pub fn is_healthy(&self) -> bool {
        self.inner
            .members
            .iter()
            .all(|member| member.source.is_healthy())
    }

    /// Returns the state of all members, as it is now.
    pub fn state(&self) -> MergedState {
        let inner = &*self.inner;
        let routed = |at: usize| {
            let routes = inner.routes.iter().filter(move |(_, owner)| **owner == at);
            let mut domains: Vec<_> = routes.map(|(domain, _)| domain.clone()).collect();
            domains.sort();
            domains
        };
        let members = inner.members.iter().enumerate();
        MergedState {
            revision: inner.revision(),
            members: members
                .map(|(at, member)| MergedMemberState {
                    name: member.name.clone(),
                    trust_domains: routed(at),
                    default: inner.default == Some(at),
                    revision: member.source.revision(),
                    healthy: member.source.is_healthy(),
                })
                .collect(),
        }
    }
}

impl Inner {
    /// Compares the members' revisions with the `Seen` ones. If they differ, a new `Seen` with the
    /// next revision replaces it. A revision is returned only while the members match its `Seen`, so
    /// the bundles that a caller reads afterwards are at least as new. Without a lock: a thread that
    /// loses the exchange compares again.
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        let mut seen = self.seen.load();
        loop {
            let mut pairs = self.members.iter().zip(&seen.members);
            if pairs.all(|(member, seen)| member.source.revision() == *seen) {
                return seen.answer();
            }
            let members = self.members.iter();
            let fresh = Arc::new(Seen {
                revision: seen.revision.wrapping_add(1),
                members: members.map(|member| member.source.revision()).collect(),
            });
            let before = self.seen.compare_and_swap(&*seen, fresh.clone());
            if Arc::ptr_eq(&before, &seen) {
                return fresh.answer();
            }
            seen = before;
        }
    }

    fn owner(&self, trust_domain: &str) -> Option<usize> {
        self.routes.get(trust_domain).copied().or(self.default)
    }

    /// Why the member was unavailable when the revisions were last compared. An unavailable member
    /// has no revision: if its bundle were read before its return is in `Seen`, a token cached then
    /// would still match the current revision when the member is unavailable again.
    fn unavailable(&self, at: usize) -> Option<BundlesUnavailable> {
        self.seen.load().members.get(at)?.err()
    }

    /// Waits for each available member that reports changes. `None` if the revision is not `since`.
    fn wait(&self, since: u64) -> Option<Vec<Changed>> {
        let seen = self.seen.load();
        let pairs = self.members.iter().zip(&seen.members);
        let waits = pairs.filter_map(|(member, seen)| member.source.changed_since((*seen).ok()?));
        (seen.revision == since).then(|| waits.collect())
    }
}

impl Seen {
    fn answer(&self) -> Result<u64, BundlesUnavailable> {
        if self.members.iter().any(Result::is_ok) {
            return Ok(self.revision);
        }
        let first = self.members.iter().find_map(|member| member.err());
        Err(first.unwrap_or(BundlesUnavailable::NotReady))
    }
}

type Changed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How often the members are compared while a change is awaited: bundles become stale without a
/// signal, for example.
const TICK: Duration = Duration::from_millis(250);

impl BundleSource for MergedBundles {
    fn metrics(&self) -> Option<Arc<dyn MetricsRecorder>> {
        self.inner.metrics.clone()
    }

    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.inner.revision()
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        let Some(at) = self.inner.owner(trust_domain) else {
            return BundleAnswer::UnknownTrustDomain;
        };
        // The caller may not have read the revision just now.
        let _ = self.inner.revision();
        if let Some(why) = self.inner.unavailable(at) {
            return BundleAnswer::Unavailable(why);
        }
        match self.inner.members.get(at) {
            Some(owner) => owner.source.bundle(trust_domain),
            None => BundleAnswer::UnknownTrustDomain,
        }
    }

    /// Resolves immediately if a member signals a change, and within 250 ms if its readiness changes
    /// without a signal. `None` if every member is available and none reports changes. Must be polled on
    /// a tokio runtime with timers.
    fn changed_since(&self, seen: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let is_current = self.inner.revision() == Ok(seen);
        let Some(mut waits) = self.inner.wait(seen).filter(|_| is_current) else {
            return Some(Box::pin(std::future::ready(())));
        };
        let current = self.inner.seen.load();
        if waits.is_empty() && current.members.iter().all(Result::is_ok) {
            return None;
        }
        // A pending wait does not keep the members alive.
        let inner = Arc::downgrade(&self.inner);
        Some(Box::pin(async move {
            let mut tick = Box::pin(tokio::time::sleep(TICK));
            poll_fn(|cx| {
                loop {
                    let before = waits.len();
                    waits.retain_mut(|wait| wait.as_mut().poll(cx).is_pending());
                    let is_signal = waits.len() < before;
                    // Compared after the signals: a change in between wakes this again.
                    let Some(inner) = inner.upgrade() else {
                        return Poll::Ready(());
                    };
                    if inner.revision() != Ok(seen) {
                        return Poll::Ready(());
                    }
                    // A signal without a change is not awaited again before the next tick.
                    if is_signal {
                        continue;
                    }
                    if tick.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    tick.as_mut().reset(Instant::now() + TICK);
                    match inner.wait(seen) {
                        Some(anew) => waits = anew,
                        None => return Poll::Ready(()),
                    }
                }
            })
            .await;
        }))
    }

    fn is_healthy(&self) -> bool {
        self.is_healthy()
    }

    /// Reports it to the owner of the trust domain only.
    fn unknown_key(&self, trust_domain: &str, key_id: &str) {
        let owner = self.inner.owner(trust_domain);
        if let Some(owner) = owner.and_then(|at| self.inner.members.get(at)) {
            owner.source.unknown_key(trust_domain, key_id);
        }
    }
}

impl fmt::Debug for MergedBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MergedBundles")
            .field("revision", &self.inner.revision())
            .field("members", &self.inner.members)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}
