//! Anonymous callers are never allowed more than callers with a valid token.

use std::convert::Infallible;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Request, Response};
use proptest::prelude::*;
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::server::{
    Allow, AllowCallersLayer, Decision, GrpcPolicy, Policy, Protocol, Rejection, RejectionReason,
    SwapPolicy, ValidateJwtSvidLayer,
};
use tower_spiffe::verify::VerifiedSvid;

use crate::support::{OPS, WEB, World, bearer, with_authorization};

const GET: &str = "/r.Reports/Get";
const DELETE: &str = "/r.Reports/Delete";
const UNNAMED: &str = "/r.Reports/Unnamed";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

fn methods() -> GrpcPolicy {
    GrpcPolicy::deny_by_default()
        .method(GET, Allow::anyone())
        .method(DELETE, Allow::id(OPS).unwrap())
        .public(HEALTH)
        .build()
        .unwrap()
}

async fn ok(_: Request<String>) -> Result<Response<String>, Infallible> {
    Ok(Response::new(String::new()))
}

/// Returns the HTTP status of one request.
async fn status(layer: &ValidateJwtSvidLayer, mut request: Request<String>, path: &str) -> u16 {
    *request.uri_mut() = path.parse().unwrap();
    let service = layer.clone().protocol(Protocol::Http).layer(service_fn(ok));
    service.oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn e12_anonymous_callers_reach_public_methods_only() {
    let world = World::new();
    let validator = || world.validator.clone();
    let shared: Arc<dyn Policy> = Arc::new(methods());
    let any = Allow::any_trust_domain;
    let layers = [
        ValidateJwtSvidLayer::optional(validator(), methods()),
        ValidateJwtSvidLayer::required(validator(), methods()),
        ValidateJwtSvidLayer::optional(validator(), SwapPolicy::new(methods())),
        ValidateJwtSvidLayer::required(validator(), SwapPolicy::new(methods())),
        ValidateJwtSvidLayer::optional(validator(), shared.clone()),
        ValidateJwtSvidLayer::required(validator(), SwapPolicy::new(shared.clone())),
        ValidateJwtSvidLayer::optional(validator(), Allow::policy(shared).and(Allow::anyone())),
        ValidateJwtSvidLayer::required(validator(), Allow::policy(methods()).and(Allow::anyone())),
    ];
    for layer in layers {
        for path in [GET, DELETE, UNNAMED, "/", HEALTH] {
            let expected = if path == HEALTH { 200 } else { 401 };
            assert_eq!(
                status(&layer, Request::default(), path).await,
                expected,
                "{path}"
            );
        }
        for (path, expected) in [(GET, 200), (DELETE, 403), (UNNAMED, 403), (HEALTH, 200)] {
            assert_eq!(
                status(&layer, world.request(WEB), path).await,
                expected,
                "{path}"
            );
        }
        // An invalid token is not treated as a missing token.
        for bad in ["Bearer a.b.c", "Bearer", "Bearer x, Bearer y"] {
            let request = with_authorization(&HeaderValue::from_static(bad));
            let answer = status(&layer, request, HEALTH).await;
            assert!(matches!(answer, 400 | 401), "{bad}: {answer}");
        }
    }
    // It is enough that one of two rules requires a token.
    let both = ValidateJwtSvidLayer::optional(validator(), Allow::policy(methods()).and(any()));
    assert_eq!(status(&both, Request::default(), HEALTH).await, 401);
    assert_eq!(status(&both, world.request(WEB), HEALTH).await, 200);
}

#[tokio::test]
async fn e12_only_anyone_allows_anonymous_callers_everywhere() {
    let world = World::new();
    let optional = |policy| ValidateJwtSvidLayer::optional(world.validator.clone(), policy);
    let everyone = Allow::when(|_, _| true);
    for (policy, anonymous) in [
        (Allow::any_trust_domain(), 401),
        (Allow::trust_domain("x").unwrap(), 401),
        (everyone.clone(), 401),
        (Allow::anyone(), 200),
        (everyone.clone().or(Allow::anyone()), 200),
        (Allow::anyone().or(everyone.clone()), 200),
        (Allow::anyone().and(everyone), 401),
    ] {
        let layer = optional(policy.clone());
        let answer = status(&layer, Request::default(), "/").await;
        assert_eq!(answer, anonymous, "{policy:?}");
        assert_eq!(
            status(&layer, world.request(OPS), "/").await,
            200,
            "{policy:?}"
        );
        let other = with_authorization(&HeaderValue::from_static("Basic eDp5"));
        assert_eq!(status(&layer, other, "/").await, anonymous, "{policy:?}");
        let request = with_authorization(&bearer("a.b.c"));
        assert_eq!(status(&layer, request, "/").await, 401, "{policy:?}");
        // `required` rejects before the policy is called.
        let required = ValidateJwtSvidLayer::required(world.validator.clone(), policy);
        assert_eq!(status(&required, Request::default(), "/").await, 401);
    }
}

/// An invalid policy: anonymous callers are allowed, verified callers are denied.
struct Inverted(Decision);

impl Policy for Inverted {
    fn decide(&self, caller: Option<&VerifiedSvid>, _: &Parts) -> Decision {
        match caller {
            None => self.0,
            Some(_) => Decision::Deny,
        }
    }
}

#[tokio::test]
async fn e12_hiding_the_identity_never_helps() {
    let world = World::new();
    let narrow = |policy| AllowCallersLayer::new(policy).layer(service_fn(ok));
    let open = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    for (decision, anonymous, verified) in [
        (Decision::Allow, 200, 200),
        (Decision::Deny, 403, 403),
        (Decision::AuthenticationRequired, 401, 403),
    ] {
        let layer = ValidateJwtSvidLayer::optional(world.validator.clone(), Inverted(decision));
        assert_eq!(status(&layer, Request::default(), "/").await, anonymous);
        assert_eq!(status(&layer, world.request(WEB), "/").await, verified);
        let nested = open.layer(narrow(Inverted(decision)));
        for (request, expected) in [
            (Request::default(), anonymous),
            (world.request(WEB), verified),
        ] {
            let response = nested.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), expected, "{decision:?}");
        }
    }
}

#[tokio::test]
async fn e12_a_denied_anonymous_caller_has_no_name() {
    let world = World::new();
    let policy = Inverted(Decision::Deny);
    let layer = ValidateJwtSvidLayer::optional(world.validator.clone(), policy);
    let service = layer.layer(service_fn(ok));
    let response = service.oneshot(Request::default()).await.unwrap();
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.reason(), RejectionReason::NotAllowed);
    assert!(rejection.caller().is_none());
}

#[tokio::test]
async fn e12_a_nested_policy_decides_about_anonymous_callers() {
    let world = World::new();
    let open = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    for (policy, anonymous) in [(Allow::anyone(), 200), (Allow::any_trust_domain(), 401)] {
        let service = open.layer(open.allow_callers(policy).layer(service_fn(ok)));
        let response = service.clone().oneshot(Request::default()).await.unwrap();
        assert_eq!(response.status(), anonymous);
        let response = service.oneshot(world.request(OPS)).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

fn policies() -> impl Strategy<Value = Allow> {
    let leaf = prop_oneof![
        Just(Allow::anyone()),
        Just(Allow::any_trust_domain()),
        Just(Allow::id(OPS).unwrap()),
        Just(Allow::when(|_, _| false)),
        Just(Allow::when(|_, parts| parts.uri.path() == GET)),
        Just(Allow::policy(methods())),
    ];
    leaf.prop_recursive(4, 24, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(one, other)| one.or(other)),
            (inner.clone(), inner.clone()).prop_map(|(one, other)| one.and(other)),
            inner.clone().prop_map(Allow::not),
            inner
                .clone()
                .prop_map(|policy| policy.because("for a reason")),
            inner
                .clone()
                .prop_map(|policy| Allow::policy(SwapPolicy::new(policy))),
            inner.clone().prop_map(|policy| {
                let shared: Arc<dyn Policy> = Arc::new(policy);
                Allow::policy(shared)
            }),
            inner.prop_map(|policy| {
                let methods = GrpcPolicy::deny_by_default()
                    .method(GET, policy)
                    .public(HEALTH);
                Allow::policy(methods.build().unwrap())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn e12_verified_callers_may_do_the_same(
        policy in policies(),
        path in prop::sample::select(&[GET, DELETE, UNNAMED, HEALTH][..]),
    ) {
        let request = Request::builder().uri(path).body(()).unwrap();
        let (parts, ()) = request.into_parts();
        let verified = [WEB, OPS, "spiffe://elsewhere/x"].map(tower_spiffe::testing::verified_svid);
        if policy.decide(None, &parts) == Decision::Allow {
            for caller in &verified {
                let decision = policy.decide(Some(caller), &parts);
                prop_assert_eq!(decision, Decision::Allow, "{:?} {}", policy, path);
            }
        }
        // A rejection of a verified caller never says that a token is required.
        for caller in &verified {
            let decision = policy.decide(Some(caller), &parts);
            prop_assert_ne!(decision, Decision::AuthenticationRequired);
        }
    }
}
