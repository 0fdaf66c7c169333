//! Who may call which gRPC method.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use http::request::Parts;

use super::policy::{Allow, Policy};
use super::policy_error::PolicyError;
use crate::svid::VerifiedSvid;

/// A policy by gRPC method. A method that it does not name is denied.
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
    /// This method is for these callers.
    pub fn method(self, path: impl Into<String>, callers: Allow) -> Self {
        self.rule(path.into(), Rule::Allow(callers))
    }

    /// This method is for everybody: a token is not looked at, the caller stays anonymous. For
    /// health checks and reflection.
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
    fn allows(&self, caller: &VerifiedSvid, parts: &Parts) -> bool {
        match self.methods.get(parts.uri.path()) {
            Some(Rule::Allow(callers)) => callers.allows(caller, parts),
            Some(Rule::Public) => true,
            None => false,
        }
    }

    fn is_public(&self, parts: &Parts) -> bool {
        matches!(self.methods.get(parts.uri.path()), Some(Rule::Public))
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
        policy.is_public(&request.into_parts().0)
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
