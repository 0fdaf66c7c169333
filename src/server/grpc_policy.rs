//! Who may call which gRPC method.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use http::request::Parts;

use super::policy::{Allow, Decision, Policy};
use super::policy_error::PolicyError;
use super::protocol::Protocol;
use crate::verify::VerifiedSvid;

/// A policy by gRPC method. All other methods are denied, and anonymous callers may call
/// [`public`](GrpcPolicyBuilder::public) methods only, in every mode of the layer.
///
/// A server with this policy speaks gRPC: rejections use gRPC status codes, in gRPC-Web if the
/// request does, unless the layer's `protocol` is set.
///
/// Paths are compared exactly, as gRPC routes them: `/package.Service/Method`.
///
/// ```
/// use tower_spiffe::server::{Allow, GrpcPolicy};
///
/// let policy = GrpcPolicy::deny_by_default()
///     .method("/r.Reports/Get", Allow::trust_domain("example.org")?)
///     .method("/r.Reports/Delete", Allow::id("spiffe://example.org/ops")?)
///     .public("/grpc.health.v1.Health/Check")
///     .build()?;
/// # drop(policy);
/// let wrong = GrpcPolicy::deny_by_default().public("r.Reports/Get").build();
/// assert!(wrong.unwrap_err().to_string().contains("write `/package.Service/Method`"));
/// # Ok::<(), tower_spiffe::server::PolicyError>(())
/// ```
#[derive(Debug, Clone)]
pub struct GrpcPolicy {
    methods: HashMap<Box<str>, Rule>,
}

/// Collects the rules of a [`GrpcPolicy`].
#[derive(Debug, Clone)]
#[must_use = "it is a policy once `build` has checked it"]
pub struct GrpcPolicyBuilder {
    methods: Result<HashMap<Box<str>, Rule>, PolicyError>,
}

#[derive(Debug, Clone)]
enum Rule {
    Public,
    Allow(Allow),
}

impl GrpcPolicy {
    /// Begins with every method denied.
    pub fn deny_by_default() -> GrpcPolicyBuilder {
        GrpcPolicyBuilder {
            methods: Ok(HashMap::new()),
        }
    }
}

impl GrpcPolicyBuilder {
    /// Allows these callers to call this method. Anonymous callers are asked for a token, also by
    /// [`Allow::anyone`]: for them the method must be [`public`](Self::public).
    pub fn method(self, path: impl Into<String>, callers: Allow) -> Self {
        self.rule(path.into(), Rule::Allow(callers))
    }

    /// Allows everyone to call this method, with or without a token, also if the layer is
    /// [`required`](super::ValidateJwtSvidLayer::required). For health checks and reflection.
    ///
    /// A token is verified if the request has one: the handler sees the caller, and an invalid
    /// token is rejected. Let probes send none.
    pub fn public(self, path: impl Into<String>) -> Self {
        self.rule(path.into(), Rule::Public)
    }

    /// The policy.
    ///
    /// # Errors
    /// The first mistake in the rules, or that there are none.
    pub fn build(self) -> Result<GrpcPolicy, PolicyError> {
        let methods = self.methods?;
        if methods.is_empty() {
            return Err(PolicyError::Empty);
        }
        Ok(GrpcPolicy { methods })
    }

    fn rule(mut self, path: String, rule: Rule) -> Self {
        if let Ok(methods) = &mut self.methods {
            if !is_method_path(&path) {
                self.methods = Err(PolicyError::MethodPath(path));
            } else {
                match methods.entry(path.into()) {
                    Entry::Vacant(entry) => {
                        entry.insert(rule);
                    }
                    Entry::Occupied(entry) => {
                        let path = entry.key().to_string();
                        self.methods = Err(PolicyError::MethodTwice(path));
                    }
                }
            }
        }
        self
    }
}

/// `/package.Service/Method`: what protobuf names can be, and nothing that needs an escape.
fn is_method_path(path: &str) -> bool {
    let name = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._".contains(&b))
    };
    path.strip_prefix('/')
        .and_then(|rest| rest.split_once('/'))
        .is_some_and(|(service, method)| name(service) && name(method))
}

impl Policy for GrpcPolicy {
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision {
        match (self.methods.get(parts.uri.path()), caller) {
            (Some(Rule::Public), _) => Decision::Allow,
            // An anonymous caller does not learn which methods have a rule.
            (_, None) => Decision::AuthenticationRequired,
            (Some(Rule::Allow(callers)), Some(_)) => callers.decide(caller, parts),
            (None, Some(_)) => Decision::Deny,
        }
    }

    fn is_public(&self, parts: &Parts) -> bool {
        matches!(self.methods.get(parts.uri.path()), Some(Rule::Public))
    }

    fn protocol(&self) -> Option<Protocol> {
        Some(Protocol::Grpc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(path: &str, asked: &str) -> bool {
        let policy = GrpcPolicy::deny_by_default().public(path).build().unwrap();
        let Ok(request) = http::Request::builder().uri(asked).body(()) else {
            return false;
        };
        let parts = request.into_parts().0;
        let is_public = policy.is_public(&parts);
        assert_eq!(policy.decide(None, &parts) == Decision::Allow, is_public);
        is_public
    }

    #[test]
    fn a20_only_the_exact_path_is_public() {
        let path = "/grpc.health.v1.Health/Check";
        assert!(public(path, path));
        assert!(public(
            path,
            "http://host:50051/grpc.health.v1.Health/Check"
        ));
        // What follows `?` or `#` is no part of the path that a router looks at.
        assert!(public(path, "/grpc.health.v1.Health/Check?x=1"));
        for other in [
            "/grpc.health.v1.Health/Check/",
            "//grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health//Check",
            "/grpc.health.v1.Health/Check/../../r.Reports/Delete",
            "/r.Reports/../grpc.health.v1.Health/Check",
            "/./grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/Chec%6b",
            "/grpc.health.v1.Health/Check%00",
            "/grpc.health.v1.Health/Check;x",
            "/grpc.health.v1.Health/CheckAll",
            "/grpc.health.v1.health/check",
            "/grpc.health.v1.Health",
            "/",
            "*",
        ] {
            assert!(!public(path, other), "{other}");
        }
    }

    #[test]
    fn a_policy_with_a_mistake_is_not_built() {
        let build = |builder: GrpcPolicyBuilder| builder.build().map(drop);
        let new = GrpcPolicy::deny_by_default;
        assert_eq!(build(new()), Err(PolicyError::Empty));
        for path in [
            "", "/", "r.R/M", "/r.R", "/r.R/", "//M", "/r.R/M/", "/r.R/M?", "/r.R/*",
        ] {
            assert_eq!(
                build(new().public(path)),
                Err(PolicyError::MethodPath(path.into()))
            );
        }
        let twice = new()
            .public("/r.R/M")
            .method("/r.R/M", Allow::any_trust_domain());
        assert_eq!(build(twice), Err(PolicyError::MethodTwice("/r.R/M".into())));
    }
}
