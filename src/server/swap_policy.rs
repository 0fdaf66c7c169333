//! A policy that is replaced at runtime.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use http::request::Parts;

use super::policy::{Decision, Policy};
use super::protocol::Protocol;
use crate::metrics::MetricsRecorder;
use crate::verify::VerifiedSvid;

/// A policy that can be replaced while requests are served. Clones share the same policy.
///
/// ```
/// use tower_spiffe::server::{Allow, SwapPolicy};
///
/// let policy = SwapPolicy::new(Allow::trust_domain("example.org")?);
/// let layer_policy = policy.clone();
/// // After a configuration change: the new policy decides from the next request on.
/// policy.replace(Allow::id("spiffe://example.org/ops")?);
/// # drop(layer_policy);
/// # Ok::<(), tower_spiffe::server::PolicyError>(())
/// ```
#[derive(Clone)]
#[doc(alias = "reload")]
pub struct SwapPolicy(Arc<Shared>);

struct Shared {
    policy: ArcSwap<Box<dyn Policy>>,
    /// Of the layer, for policies that are set later.
    recorder: ArcSwapOption<Arc<dyn MetricsRecorder>>,
}

impl SwapPolicy {
    /// Creates a `SwapPolicy` with this policy.
    pub fn new(policy: impl Policy) -> Self {
        Self(Arc::new(Shared {
            policy: ArcSwap::from_pointee(Box::new(policy)),
            recorder: ArcSwapOption::empty(),
        }))
    }

    /// Replaces the policy, from the next request on.
    pub fn replace(&self, policy: impl Policy) {
        if let Some(recorder) = &*self.0.recorder.load() {
            policy.inherit_metrics(recorder);
        }
        self.0.policy.store(Arc::new(Box::new(policy)));
    }
}

impl Policy for SwapPolicy {
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision {
        self.0.policy.load().decide(caller, parts)
    }

    fn is_public(&self, parts: &Parts) -> bool {
        self.0.policy.load().is_public(parts)
    }

    fn allows_anonymous(&self, parts: &Parts) -> bool {
        self.0.policy.load().allows_anonymous(parts)
    }

    fn protocol(&self) -> Option<Protocol> {
        self.0.policy.load().protocol()
    }

    fn inherit_metrics(&self, recorder: &Arc<dyn MetricsRecorder>) {
        self.0.recorder.store(Some(Arc::new(recorder.clone())));
        self.0.policy.load().inherit_metrics(recorder);
    }
}

impl fmt::Debug for SwapPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwapPolicy")
    }
}
