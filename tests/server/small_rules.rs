//! Small rules of policies and layers: defaults, tables, and calls that do not happen.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderName, Request, Response};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_spiffe::server::{
    Allow, AllowCallersLayer, AsyncPolicy, Decision, DecisionFuture, Policy, PolicyUnavailable,
    ValidateJwtSvidLayer,
};
use tower_spiffe::testing::verified_svid;
use tower_spiffe::verify::VerifiedSvid;

use crate::support::{OPS, WEB, World};

const X_SVID: HeaderName = HeaderName::from_static("x-jwt-svid");

fn parts() -> Parts {
    Request::new(()).into_parts().0
}

#[test]
fn decisions_combine_as_in_the_table() {
    use Decision::{Allow, AuthenticationRequired as Auth, Deny, DenyBecause};
    let because = DenyBecause("a");
    for (first, second, and, or) in [
        (Allow, Allow, Allow, Allow),
        (Allow, Deny, Deny, Allow),
        (Allow, because, because, Allow),
        (Allow, Auth, Auth, Allow),
        (Deny, Deny, Deny, Deny),
        (Deny, because, because, because),
        (Deny, Auth, Deny, Auth),
        (because, because, because, because),
        (because, Auth, because, Auth),
        (Auth, Auth, Auth, Auth),
    ] {
        assert_eq!(first.and(second), and, "{first:?} and {second:?}");
        assert_eq!(second.and(first), and, "{second:?} and {first:?}");
        assert_eq!(first.or(second), or, "{first:?} or {second:?}");
        assert_eq!(second.or(first), or, "{second:?} or {first:?}");
    }
    // The first of two reasons is kept.
    let other = DenyBecause("b");
    assert_eq!((because.and(other), because.or(other)), (because, because));
    for (decision, denies, reason) in [
        (Allow, false, None),
        (Auth, false, None),
        (Deny, true, None),
        (because, true, Some("a")),
    ] {
        assert_eq!((decision.is_deny(), decision.reason()), (denies, reason));
    }
}

#[test]
fn second_policy_is_not_called_after_a_denial() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let second = Allow::when(move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        true
    });
    let caller = verified_svid(WEB);
    let both = Allow::id(OPS).unwrap().and(second.clone());
    assert!(both.decide(Some(&caller), &parts()).is_deny());
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    let both = Allow::id(WEB).unwrap().and(second.clone());
    assert_eq!(both.decide(Some(&caller), &parts()), Decision::Allow);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let either = Allow::id(WEB).unwrap().or(second);
    assert_eq!(either.decide(Some(&caller), &parts()), Decision::Allow);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

/// Only the required methods.
struct Minimal;

impl Policy for Minimal {
    fn decide(&self, _: Option<&VerifiedSvid>, _: &Parts) -> Decision {
        Decision::Allow
    }
}

impl AsyncPolicy for Minimal {
    fn decide(&self, _: Option<&VerifiedSvid>, _: &Parts) -> DecisionFuture {
        Box::pin(async { Ok(Decision::Allow.into()) })
    }
}

/// A policy with a cache key.
struct Keyed;

impl AsyncPolicy for Keyed {
    fn decide(&self, _: Option<&VerifiedSvid>, _: &Parts) -> DecisionFuture {
        Box::pin(async { Ok(Decision::Allow.into()) })
    }

    fn cache_key(&self, _: Option<&VerifiedSvid>, parts: &Parts) -> Option<String> {
        Some(parts.uri.to_string())
    }
}

#[test]
fn minimal_policy_denies_and_caches_nothing() {
    assert!(!Policy::is_public(&Minimal, &parts()));
    assert_eq!(Policy::protocol(&Minimal), None);
    assert_eq!(Minimal.cache_key(None, &parts()), None);
    // An `Arc` of a policy forwards to it.
    let shared: Arc<dyn AsyncPolicy> = Arc::new(Keyed);
    let key = AsyncPolicy::cache_key(&shared, None, &parts());
    assert_eq!(key.as_deref(), Some("/"));
    let error = PolicyUnavailable::new("no answer");
    assert_eq!(error.to_string(), "the policy cannot decide: no answer");
}

/// A layer of another header removes the note of an outer layer about its header.
#[tokio::test]
async fn identity_of_another_header_is_not_taken_over() {
    let world = World::new();
    let layer = || ValidateJwtSvidLayer::required(world.validator.clone(), Allow::anyone());
    let by_header = || layer().header(X_SVID);
    let inner =
        service_fn(async |_: Request<String>| Ok::<_, Infallible>(Response::new(String::new())));
    let (outer, middle, last) = (by_header(), layer(), by_header());
    let service = outer.layer(middle.layer(last.layer(inner)));
    let mut request = Request::new(String::new());
    let bearer = world.bearer(OPS);
    request.headers_mut().insert(AUTHORIZATION, bearer);
    let token = world.issuer.token(WEB).parse().unwrap();
    request.headers_mut().insert(X_SVID, token);
    assert_eq!(service.oneshot(request).await.unwrap().status(), 401);
}

/// A service that is never ready.
#[derive(Clone)]
struct Busy;

impl Service<Request<String>> for Busy {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Pending
    }

    fn call(&mut self, _: Request<String>) -> Self::Future {
        std::future::ready(Ok(Response::default()))
    }
}

#[test]
fn readiness_of_the_inner_service_is_forwarded() {
    let world = World::new();
    let mut context = Context::from_waker(Waker::noop());
    let mut narrow = AllowCallersLayer::new(Allow::anyone()).layer(Busy);
    assert!(narrow.poll_ready(&mut context).is_pending());
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::anyone());
    assert!(layer.layer(Busy).poll_ready(&mut context).is_pending());
}
