//! Who may call which gRPC service and method.

use std::collections::HashMap;
use std::sync::Arc;

use http::request::Parts;

use super::allow::Allow;
use super::original_uri::original_uri;
use super::policy::{Decision, Policy};
use super::policy_error::PolicyError;
use super::protocol::Protocol;
use crate::metrics::MetricsRecorder;
use crate::verify::VerifiedSvid;

/// A policy by gRPC service and method. All other methods are denied, and anonymous callers may call
/// public methods only, in every mode of the layer.
///
/// The rule of a method ([`method`](GrpcPolicyBuilder::method),
/// [`public`](GrpcPolicyBuilder::public)) overrides that of its service
/// ([`service`](GrpcPolicyBuilder::service),
/// [`public_service`](GrpcPolicyBuilder::public_service)). There are no wildcards.
///
/// A server with this policy speaks gRPC: rejections use gRPC status codes, in gRPC-Web if the
/// request does, unless the layer's `protocol` is set.
///
/// Paths are compared exactly, as gRPC routes them: `/package.Service/Method`. If the services are
/// behind a path prefix, see [`prefix`](GrpcPolicyBuilder::prefix).
///
/// ```
/// use tower_spiffe::server::{Allow, GrpcPolicy};
///
/// let policy = GrpcPolicy::deny_by_default()
///     .service("r.Reports", Allow::trust_domain("example.org")?)
///     .method("/r.Reports/Delete", Allow::id("spiffe://example.org/ops")?)
///     .public_health()
///     .build()?;
/// # drop(policy);
/// let wrong = GrpcPolicy::deny_by_default().public("r.Reports/Get").build();
/// assert!(wrong.unwrap_err().to_string().contains("write `/package.Service/Method`"));
/// # Ok::<(), tower_spiffe::server::PolicyError>(())
/// ```
#[derive(Debug, Clone)]
#[doc(alias = "authorize")]
pub struct GrpcPolicy {
    rules: Rules,
}

/// Collects the rules of a [`GrpcPolicy`].
#[derive(Debug, Clone)]
#[must_use = "it is a policy once `build` has checked it"]
pub struct GrpcPolicyBuilder {
    rules: Result<Rules, PolicyError>,
}

#[derive(Debug, Clone, Default)]
struct Rules {
    prefix: Option<Box<str>>,
    /// By path.
    methods: HashMap<Box<str>, Rule>,
    /// By full name, for methods without a rule.
    services: HashMap<Box<str>, Rule>,
}

#[derive(Debug, Clone)]
enum Rule {
    Public,
    Allow(Allow),
}

impl GrpcPolicy {
    /// Creates a builder that denies every method.
    pub fn deny_by_default() -> GrpcPolicyBuilder {
        GrpcPolicyBuilder {
            rules: Ok(Rules::default()),
        }
    }
}

const HEALTH: &str = "grpc.health.v1.Health";
const REFLECTION: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

impl GrpcPolicyBuilder {
    /// Allows these callers to call this method (`/package.Service/Method`). Overrides the rule of
    /// its service. Anonymous callers are asked for a token, even if `callers` is
    /// [`Allow::anyone`]. To allow them, make the method [`public`](Self::public).
    pub fn method(self, path: impl Into<String>, callers: Allow) -> Self {
        self.method_rule(path.into(), Rule::Allow(callers))
    }

    /// Allows everyone to call this method (`/package.Service/Method`), with or without a token,
    /// also if the layer is [`required`](super::ValidateJwtSvidLayer::required). Overrides the rule
    /// of its service.
    ///
    /// A token is verified if the request has one: the handler sees the caller, and an invalid
    /// token is rejected. Probes should send no token.
    pub fn public(self, path: impl Into<String>) -> Self {
        self.method_rule(path.into(), Rule::Public)
    }

    /// Allows these callers to call every method of this service (`package.Service`) that has no
    /// rule of its own, including methods that are added later. Anonymous callers are asked for a
    /// token, as by [`method`](Self::method).
    pub fn service(self, name: impl Into<String>, callers: Allow) -> Self {
        self.service_rule(name.into(), Rule::Allow(callers))
    }

    /// Allows everyone, as [`public`](Self::public) does, to call every method of this service
    /// (`package.Service`) that has no rule of its own, including methods that are added later.
    pub fn public_service(self, name: impl Into<String>) -> Self {
        self.service_rule(name.into(), Rule::Public)
    }

    /// Makes the health service public: `grpc.health.v1.Health`.
    pub fn public_health(self) -> Self {
        self.public_service(HEALTH)
    }

    /// Makes server reflection public: `grpc.reflection.v1.ServerReflection` and its predecessor
    /// `grpc.reflection.v1alpha.ServerReflection`. It shows every service and message of the server
    /// to everyone.
    pub fn public_reflection(self) -> Self {
        REFLECTION.into_iter().fold(self, Self::public_service)
    }

    /// Allows these callers to use server reflection, both versions of
    /// [`public_reflection`](Self::public_reflection).
    pub fn reflection(self, callers: Allow) -> Self {
        REFLECTION
            .into_iter()
            .fold(self, |builder, name| builder.service(name, callers.clone()))
    }

    /// Sets the prefix before `/package.Service/Method` in the path that clients request: `/api`.
    /// All other paths are denied. It is compared with the [original URI](super::original_uri), so
    /// the policy decides the same outside of a `Router::nest("/api", …)` and inside.
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        let prefix = prefix.into();
        self.checked(|rules| {
            let segments = prefix.strip_prefix('/').map(|rest| rest.split('/'));
            let is_plain = segments.is_some_and(|mut segments| {
                segments.all(|segment| {
                    let is_legal = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
                    !matches!(segment, "" | "." | "..") && segment.bytes().all(is_legal)
                })
            });
            if !is_plain {
                return Err(PolicyError::Prefix(prefix));
            }
            rules.prefix = Some(prefix.into());
            Ok(())
        })
    }

    /// Returns the policy.
    ///
    /// # Errors
    /// The first invalid rule, or an error if there is no rule.
    pub fn build(self) -> Result<GrpcPolicy, PolicyError> {
        let rules = self.rules?;
        if rules.methods.is_empty() && rules.services.is_empty() {
            return Err(PolicyError::Empty);
        }
        Ok(GrpcPolicy { rules })
    }

    fn method_rule(self, path: String, rule: Rule) -> Self {
        self.checked(|rules| {
            if !is_method_path(&path) {
                return Err(PolicyError::MethodPath(path));
            }
            match rules.methods.insert(path.as_str().into(), rule) {
                None => Ok(()),
                Some(_) => Err(PolicyError::MethodTwice(path)),
            }
        })
    }

    fn service_rule(self, name: String, rule: Rule) -> Self {
        self.checked(|rules| {
            if !is_service_name(&name) {
                return Err(PolicyError::ServiceName(name));
            }
            match rules.services.insert(name.as_str().into(), rule) {
                None => Ok(()),
                Some(_) => Err(PolicyError::ServiceTwice(name)),
            }
        })
    }

    /// Keeps the first error.
    fn checked(mut self, add: impl FnOnce(&mut Rules) -> Result<(), PolicyError>) -> Self {
        if let Ok(rules) = &mut self.rules
            && let Err(error) = add(rules)
        {
            self.rules = Err(error);
        }
        self
    }
}

/// Accepts protobuf names only. They need no escapes.
pub(super) fn is_service_name(name: &str) -> bool {
    name.split('.').all(is_identifier)
}

fn is_identifier(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// `/package.Service/Method`.
pub(super) fn is_method_path(path: &str) -> bool {
    service_of(path).is_some_and(is_service_name)
}

/// The service in the path of a method. Only a plain name may follow it, so that every router and
/// proxy reads the path in the same way.
fn service_of(path: &str) -> Option<&str> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    is_identifier(method).then_some(service)
}

impl GrpcPolicy {
    fn rule(&self, parts: &Parts) -> Option<&Rule> {
        let Rules {
            prefix,
            methods,
            services,
        } = &self.rules;
        let path = match prefix {
            None => parts.uri.path(),
            Some(prefix) => original_uri(parts).path().strip_prefix(&**prefix)?,
        };
        methods.get(path).or_else(|| {
            if services.is_empty() {
                return None;
            }
            services.get(service_of(path)?)
        })
    }
}

impl Policy for GrpcPolicy {
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> Decision {
        match (self.rule(parts), caller) {
            (Some(Rule::Public), _) => Decision::Allow,
            // An anonymous caller does not learn which methods have a rule.
            (_, None) => Decision::AuthenticationRequired,
            (Some(Rule::Allow(callers)), Some(_)) => callers.decide(caller, parts),
            (None, Some(_)) => Decision::Deny,
        }
    }

    fn is_public(&self, parts: &Parts) -> bool {
        matches!(self.rule(parts), Some(Rule::Public))
    }

    fn protocol(&self) -> Option<Protocol> {
        Some(Protocol::Grpc)
    }

    fn inherit_metrics(&self, recorder: &Arc<dyn MetricsRecorder>) {
        let Rules {
            methods, services, ..
        } = &self.rules;
        for rule in methods.values().chain(services.values()) {
            if let Rule::Allow(callers) = rule {
                callers.inherit_metrics(recorder);
            }
        }
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
        // Routers ignore the query and the fragment.
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
    fn invalid_grpc_policy_is_an_error() {
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
