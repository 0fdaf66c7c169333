//! The modes `required`, `optional` and `audit`, and the state each leaves in the request.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::server::{
    Allow, AllowCallersLayer, CallerState, Decision, EndAtExpiryLayer, GrpcPolicy, Policy,
    RejectionReason, UnknownKeyWait, ValidateJwtSvidLayer,
};
use tower_spiffe::verify::{ValidateReason, VerifiedSvid};

use crate::support::{OPS, WEB, World, bearer, with_authorization};

/// Returns what the inner service received, or the status of the rejection.
async fn seen(
    layer: &ValidateJwtSvidLayer,
    request: Request<String>,
) -> Result<(CallerState, Vec<String>), u16> {
    let inner = service_fn(|request: Request<String>| async move {
        let state = CallerState::from_extensions(request.extensions()).cloned();
        let values = request.headers().get_all(AUTHORIZATION).iter();
        let values: Vec<_> = values
            .map(|value| {
                assert!(value.is_sensitive());
                value.to_str().unwrap().to_owned()
            })
            .collect();
        let mut response = Response::new(String::new());
        response.extensions_mut().insert((state.unwrap(), values));
        Ok::<_, Infallible>(response)
    });
    let mut response = layer.layer(inner).oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    response
        .extensions_mut()
        .remove::<(CallerState, Vec<String>)>()
        .ok_or(status)
}

fn allow_web() -> Allow {
    Allow::id(WEB).unwrap()
}

#[tokio::test]
async fn a19_optional_allows_anonymous_but_rejects_invalid_credentials() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());

    let (state, _) = seen(&layer, Request::default()).await.unwrap();
    assert!(matches!(state, CallerState::Anonymous));
    let basic = with_authorization(&HeaderValue::from_static("Basic eDp5"));
    let (state, headers) = seen(&layer, basic).await.unwrap();
    assert!(matches!(state, CallerState::Anonymous));
    assert_eq!(
        headers,
        ["Basic eDp5"],
        "credentials of other schemes are kept"
    );
    let (state, _) = seen(&layer, world.request(WEB)).await.unwrap();
    assert_eq!(state.verified().unwrap().spiffe_id().as_str(), WEB);

    for (value, status) in [
        (HeaderValue::from_static("Bearer"), 400),
        (HeaderValue::from_static("Bearer "), 400),
        (HeaderValue::from_static(""), 400),
        (HeaderValue::from_static("Bearer a.b.c"), 401),
    ] {
        let answer = seen(&layer, with_authorization(&value)).await;
        assert_eq!(answer.err(), Some(status), "{value:?}");
    }
    world
        .bundles
        .bundles_unavailable(BundlesUnavailable::Withdrawn);
    assert_eq!(seen(&layer, world.request(WEB)).await.err(), Some(503));
}

#[tokio::test]
async fn a18_two_credentials_are_400() {
    let world = World::new();
    let good = world.bearer(WEB);
    let bad = HeaderValue::from_static("Bearer a.b.c");
    let text = good.to_str().unwrap();
    let joined = HeaderValue::from_str(&format!("{text}, {text}")).unwrap();
    let tab = HeaderValue::from_str(&text.replace(' ', "\t")).unwrap();
    let empty = HeaderValue::from_static("");
    let lines: &[&[&HeaderValue]] = &[
        &[&good, &bad],
        &[&bad, &good],
        &[&good, &good],
        &[&good, &empty],
        &[&joined],
        &[&tab],
        &[&empty],
    ];
    for layer in [
        ValidateJwtSvidLayer::required(world.validator.clone(), allow_web()),
        ValidateJwtSvidLayer::optional(world.validator.clone(), allow_web()),
    ] {
        // Without a cache, and with the good token in the cache.
        for _ in 0..2 {
            for lines in lines {
                let mut request = Request::new(String::new());
                for line in *lines {
                    request.headers_mut().append(AUTHORIZATION, (*line).clone());
                }
                assert_eq!(seen(&layer, request).await.err(), Some(400), "{lines:?}");
            }
            assert!(seen(&layer, world.request(WEB)).await.is_ok());
        }
    }
}

#[tokio::test]
async fn audit_rejects_nothing_and_reports_rejections() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::audit(world.validator.clone(), allow_web());
    let (state, _) = seen(&layer, world.request(WEB)).await.unwrap();
    assert_eq!(state.verified().unwrap().spiffe_id().as_str(), WEB);

    for (request, reason) in [
        (Request::default(), RejectionReason::Missing),
        (
            with_authorization(&HeaderValue::from_static("Bearer")),
            RejectionReason::Malformed,
        ),
        (
            with_authorization(&bearer("a.b.c")),
            RejectionReason::Token(ValidateReason::Malformed),
        ),
        (world.request(OPS), RejectionReason::NotAllowed),
    ] {
        let (state, _) = seen(&layer, request).await.unwrap();
        let CallerState::AuditFailed(rejection) = &state else {
            panic!("{state:?}");
        };
        assert_eq!(rejection.reason(), reason);
        assert!(state.verified().is_none());
    }
    world
        .bundles
        .bundles_unavailable(BundlesUnavailable::Closed);
    let (state, _) = seen(&layer, world.request(WEB)).await.unwrap();
    assert!(matches!(state, CallerState::AuditFailed(r)
        if r.reason() == RejectionReason::BundlesUnavailable(BundlesUnavailable::Closed)));
}

#[tokio::test]
async fn a19_existing_caller_state_is_replaced() {
    let world = World::new();
    let earlier = tower_spiffe::testing::verified_svid(OPS);
    let public = GrpcPolicy::deny_by_default()
        .public("/r.R/Open")
        .build()
        .unwrap();
    for layer in [
        ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone()),
        ValidateJwtSvidLayer::audit(world.validator.clone(), allow_web()),
        ValidateJwtSvidLayer::required(world.validator.clone(), public),
    ] {
        let mut request = Request::builder()
            .uri("/r.R/Open")
            .body(String::new())
            .unwrap();
        request
            .extensions_mut()
            .insert(CallerState::Verified(earlier.clone()));
        let (state, _) = seen(&layer, request).await.unwrap();
        assert!(state.verified().is_none(), "{state:?}");
    }
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), allow_web());
    let mut request = world.request(WEB);
    request
        .extensions_mut()
        .insert(CallerState::Verified(earlier));
    let (state, _) = seen(&layer, request).await.unwrap();
    assert_eq!(state.verified().unwrap().spiffe_id().as_str(), WEB);
}

#[tokio::test]
async fn stripping_removes_only_the_verified_token() {
    let world = World::new();
    let validator = || world.validator.clone();
    let required = ValidateJwtSvidLayer::required(validator(), allow_web());
    let optional = ValidateJwtSvidLayer::optional(validator(), Allow::anyone());
    let audit = ValidateJwtSvidLayer::audit(validator(), allow_web());
    let web = world.bearer(WEB);
    let basic = HeaderValue::from_static("Basic eDp5");
    for (layer, value, left) in [
        (&required, &web, 0),
        (&optional, &web, 0),
        (&optional, &basic, 1),
        (&required.clone().keep_credential(), &web, 1),
        // An audit removes nothing.
        (&audit, &web, 1),
        (&audit, &world.bearer(OPS), 1),
        (&audit, &HeaderValue::from_static("Bearer a.b.c"), 1),
        (&audit, &basic, 1),
    ] {
        let (_, headers) = seen(layer, with_authorization(value)).await.unwrap();
        assert_eq!(headers.len(), left, "{value:?}");
    }
}

#[tokio::test]
async fn another_header_can_carry_the_token() {
    let world = World::new();
    let name = HeaderName::from_static("x-jwt-svid");
    let layer =
        ValidateJwtSvidLayer::required(world.validator.clone(), allow_web()).header(name.clone());
    for value in [
        world.issuer.token(WEB),
        format!("bearer {}", world.issuer.token(WEB)),
    ] {
        let mut request = Request::new(String::new());
        request.headers_mut().insert(
            AUTHORIZATION,
            HeaderValue::from_static("Bearer of-another-service"),
        );
        request
            .headers_mut()
            .insert(name.clone(), value.parse().unwrap());
        let (state, headers) = seen(&layer, request).await.unwrap();
        assert_eq!(state.verified().unwrap().spiffe_id().as_str(), WEB);
        assert_eq!(headers, ["Bearer of-another-service"]);
    }
    // A token in another header is ignored.
    assert_eq!(seen(&layer, world.request(WEB)).await.err(), Some(401));
}

/// A policy that records its arguments, and denies every caller.
#[derive(Clone, Default)]
struct Printing(Arc<Mutex<String>>);

impl Policy for Printing {
    fn decide(&self, _: Option<&VerifiedSvid>, parts: &Parts) -> Decision {
        self.0.lock().unwrap().push_str(&format!("{parts:?}"));
        Decision::Deny
    }

    fn is_public(&self, parts: &Parts) -> bool {
        self.0.lock().unwrap().push_str(&format!("{parts:?}"));
        false
    }
}

#[tokio::test]
async fn a28_policies_see_credentials_marked_sensitive() {
    let world = World::new();
    let name = HeaderName::from_static("x-jwt-svid");
    let printing = Printing::default();
    let plain = ValidateJwtSvidLayer::required(world.validator.clone(), printing.clone());
    let other = plain.clone().header(name.clone());
    let two = |header: &HeaderName| {
        let mut request = Request::new(String::new());
        for value in ["Bearer first-secret", "Bearer second-secret"] {
            let value = HeaderValue::from_static(value);
            request.headers_mut().append(header.clone(), value);
        }
        request
    };
    assert_eq!(seen(&plain, two(&AUTHORIZATION)).await.err(), Some(400));
    assert_eq!(seen(&other, two(&name)).await.err(), Some(400));
    // A credential of another service is marked too.
    assert_eq!(seen(&other, two(&AUTHORIZATION)).await.err(), Some(401));
    assert_eq!(seen(&plain, world.request(WEB)).await.err(), Some(403));
    let printed = printing.0.lock().unwrap();
    assert!(printed.contains("Sensitive"), "{printed}");
    assert!(!printed.contains("secret"), "{printed}");
}

#[tokio::test]
async fn readiness_and_errors_come_from_the_inner_service() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), allow_web());
    let broken = service_fn(|_: Request<String>| async { Err::<Response<String>, _>("broken") });
    assert_eq!(
        layer.layer(broken).oneshot(world.request(WEB)).await.err(),
        Some("broken")
    );
    // A rejection is a response, not an error.
    assert!(
        layer
            .layer(broken)
            .oneshot(Request::default())
            .await
            .is_ok()
    );

    let taken = tower::limit::ConcurrencyLimit::new(broken, 1);
    let mut holder = taken.clone();
    holder.ready().await.unwrap();
    let mut guarded = layer.layer(taken);
    let ready =
        std::future::poll_fn(|cx| std::task::Poll::Ready(guarded.poll_ready(cx).is_ready()));
    assert!(!ready.await, "ready without a permit");
    drop(holder);
    assert!(guarded.ready().await.is_ok());
}

#[test]
fn the_inner_service_is_accessible() {
    let world = World::new();
    let required = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap());
    let wait = UnknownKeyWait::new(std::time::Duration::from_secs(1));
    let waiting = required.clone().wait_for_unknown_keys(wait).layer(1);
    let mut guarded = required.layer(2);
    let narrowed = AllowCallersLayer::new(Allow::id(WEB).unwrap()).layer(3);
    let ended = EndAtExpiryLayer::new(&world.validator).layer(4);
    *guarded.get_mut() += 10;
    let seen = [*waiting.get_ref(), guarded.into_inner()];
    assert_eq!(
        (seen, narrowed.into_inner(), ended.into_inner()),
        ([1, 12], 3, 4)
    );
}
