//! Gateways do not forward a caller's token.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::client::{AddJwtSvidLayer, Audience, OnExisting};
use tower_spiffe::server::{Allow, CallerState, GrpcPolicy, UnknownKeyWait, ValidateJwtSvidLayer};
use tower_spiffe::testing::{self, FakeAgent};
use tower_spiffe::verify::Validator;

use crate::agent;
use crate::support::{AUDIENCE, OPS, WEB, World, with_authorization};

const X_SVID: HeaderName = HeaderName::from_static("x-jwt-svid");

/// What the inner service received.
type Seen = Arc<Mutex<Option<(HeaderMap, Extensions)>>>;

async fn through<L>(layer: &L, request: Request<String>) -> (u16, HeaderMap, Extensions)
where
    L: Layer<tower::util::BoxCloneService<Request<String>, Response<String>, Infallible>>,
    L::Service: tower::Service<Request<String>, Response = Response<String>, Error = Infallible>,
{
    let seen = Seen::default();
    let log = seen.clone();
    let inner = service_fn(move |request: Request<String>| {
        let (parts, _) = request.into_parts();
        *log.lock().unwrap() = Some((parts.headers, parts.extensions));
        async { Ok::<_, Infallible>(Response::new(String::new())) }
    });
    let service = layer.layer(tower::util::BoxCloneService::new(inner));
    let status = service.oneshot(request).await.unwrap().status().as_u16();
    let (headers, extensions) = seen.lock().unwrap().take().unwrap_or_default();
    (status, headers, extensions)
}

fn caller(extensions: &Extensions) -> Option<String> {
    let caller = CallerState::from_extensions(extensions)?.verified()?;
    Some(caller.spiffe_id().to_string())
}

/// A verified caller in the extensions is recognized, also without a server layer.
#[tokio::test]
async fn e03_a_caller_set_by_hand_counts() {
    let world = World::new();
    let agent = agent::start("x").await;
    let source = agent.source().await.unwrap();
    let audience = Audience::fixed("ledger").for_origin("https://ledger");
    let client = AddJwtSvidLayer::new(source, audience.unwrap());
    let bearer = world.bearer(WEB);
    let token = bearer.to_str().unwrap().strip_prefix("Bearer ").unwrap();
    let caller = CallerState::Verified(world.validator.validate(token).unwrap());
    for (uri, signed) in [("https://ledger/", true), ("https://other/", false)] {
        let mut request = with_authorization(&bearer);
        *request.uri_mut() = uri.parse().unwrap();
        request.extensions_mut().insert(caller.clone());
        let upstream = service_fn(async |request: Request<String>| {
            let sent = request.headers().get(AUTHORIZATION).cloned();
            Ok::<_, Infallible>(Response::new(sent))
        });
        let sent = client.layer(upstream).oneshot(request).await.unwrap();
        let sent = sent.into_body();
        assert_eq!(sent.is_some(), signed, "{uri}");
        assert_ne!(sent, Some(bearer.clone()), "{uri}");
    }
}

/// Audit mode lets invalid and denied tokens pass; a gateway still signs as itself.
#[tokio::test]
async fn e03_an_audited_token_is_replaced() {
    let world = World::new();
    let agent = agent::start("x").await;
    let audience = Audience::fixed("ledger").for_origin("https://ledger");
    let client = AddJwtSvidLayer::new(agent.source().await.unwrap(), audience.unwrap());
    let denies_web = Allow::id(OPS).unwrap();
    let audit = ValidateJwtSvidLayer::audit(world.validator.clone(), denies_web);
    for bearer in [world.bearer(WEB), HeaderValue::from_static("Bearer a.b.c")] {
        let mut request = with_authorization(&bearer);
        *request.uri_mut() = "https://ledger/".parse().unwrap();
        let upstream = service_fn(async |request: Request<String>| {
            let sent = request.headers().get(AUTHORIZATION).cloned();
            let sent = sent.and_then(|sent| sent.to_str().map(str::to_owned).ok());
            Ok::<_, tower::BoxError>(Response::new(sent.unwrap_or_default()))
        });
        let gateway = audit.layer(client.layer(upstream));
        let sent = gateway.oneshot(request).await.unwrap().into_body();
        assert!(sent.starts_with("Bearer ey"), "{sent}");
        assert_ne!(sent.as_bytes(), bearer.as_bytes());
    }
}

#[tokio::test]
async fn e03_a_verified_token_is_removed() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::anyone());
    let waiting = layer
        .clone()
        .wait_for_unknown_keys(UnknownKeyWait::new(std::time::Duration::MAX));
    for cold_and_cached in 0..2 {
        let (status, headers, extensions) = through(&layer, world.request(WEB)).await;
        assert_eq!((status, headers.len()), (200, 0), "{cold_and_cached}");
        assert_eq!(caller(&extensions).as_deref(), Some(WEB));
        let (status, headers, _) = through(&waiting, world.request(WEB)).await;
        assert_eq!((status, headers.len()), (200, 0));
    }
    // Only the header that was read is removed; other headers belong to other services.
    let by_header = layer.clone().header(X_SVID);
    let mut request = world.request(OPS);
    let token = world.issuer.token(WEB).parse().unwrap();
    request.headers_mut().insert(X_SVID, token);
    let (_, headers, _) = through(&by_header, request).await;
    assert_eq!(headers.len(), 1);
    assert!(headers.contains_key(AUTHORIZATION));
    // Public methods read and remove it too.
    let policy = GrpcPolicy::deny_by_default().public("/r.R/Open").build();
    let public = ValidateJwtSvidLayer::required(world.validator.clone(), policy.unwrap());
    let mut request = world.request(WEB);
    *request.uri_mut() = "/r.R/Open".parse().unwrap();
    assert!(through(&public, request).await.1.is_empty());
}

#[tokio::test]
async fn e03_an_inner_layer_decides_by_its_own_rules() {
    let world = World::new();
    let allow = Allow::any_trust_domain;
    let uncached = World::with(|builder| builder.cache_bytes(0));
    for (outer, world) in [(&world.validator, &world), (&uncached.validator, &uncached)] {
        let outer = ValidateJwtSvidLayer::required(outer.clone(), allow());
        let inner = |policy| ValidateJwtSvidLayer::required(world.validator.clone(), policy);
        let for_another = Validator::builder(world.bundles.clone()).audience("another");
        let for_another = for_another.build().unwrap();
        let strict = ValidateJwtSvidLayer::required(for_another.clone(), allow());
        let optional = ValidateJwtSvidLayer::optional(for_another.clone(), Allow::anyone());
        let elsewhere = inner(allow()).header(X_SVID);
        for (inner, expected) in [
            (inner(allow()), 200),
            (inner(Allow::id(WEB).unwrap()), 200),
            (inner(Allow::id(OPS).unwrap()), 403),
            (strict, 401),
            // A token for another audience is not anonymous.
            (optional, 401),
            // It reads another header, which is missing.
            (elsewhere, 401),
        ] {
            let stack = tower::layer::layer_fn(|service| outer.layer(inner.layer(service)));
            let (status, _, extensions) = through(&stack, world.request(WEB)).await;
            assert_eq!(status, expected, "{inner:?}");
            if status == 200 {
                assert_eq!(caller(&extensions).as_deref(), Some(WEB));
            }
        }
    }
    // Both layers read the same other header.
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), allow()).header(X_SVID);
    let stack = tower::layer::layer_fn(|service| layer.layer(layer.layer(service)));
    let mut request = Request::new(String::new());
    let token = world.issuer.token(WEB).parse().unwrap();
    request.headers_mut().insert(X_SVID, token);
    assert_eq!(through(&stack, request).await.0, 200);
    // A state without a token is not a credential.
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), allow());
    let mut request = Request::new(String::new());
    let assumed = CallerState::Verified(testing::verified_svid(WEB));
    request.extensions_mut().insert(assumed);
    assert_eq!(through(&layer, request).await.0, 401);
}

#[tokio::test]
async fn e03_the_token_is_not_shown() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::anyone());
    let request = world.request(WEB);
    let token = request.headers()[AUTHORIZATION].to_str().unwrap()[7..].to_owned();
    let (_, _, extensions) = through(&layer, request).await;
    let state = CallerState::from_extensions(&extensions).unwrap();
    assert!(!format!("{state:?} {extensions:?}").contains(&token));
}

/// Returns the headers that the upstream `https://ledger`, or another origin without an audience, gets.
async fn forwarded(
    agent: &FakeAgent,
    server: &ValidateJwtSvidLayer,
    client: &AddJwtSvidLayer,
    to: &'static str,
    copies: &'static [&'static str],
) -> (HeaderMap, String) {
    let bearer = agent.bearer("spiffe://x/web", AUDIENCE);
    let copy = bearer.clone();
    let stack = tower::layer::layer_fn(|upstream| {
        let client = client.layer(upstream);
        let copy = copy.clone();
        server.layer(service_fn(move |mut request: Request<String>| {
            *request.uri_mut() = to.parse().unwrap();
            // A gateway that puts the token back into the same request, or copies it.
            for name in copies {
                request.headers_mut().append(*name, copy.clone());
            }
            let client = client.clone();
            async move { Ok::<_, Infallible>(client.oneshot(request).await.unwrap()) }
        }))
    });
    let request = Request::get("/").header(AUTHORIZATION, &bearer);
    let request = request.body(String::new()).unwrap();
    let (status, headers, _) = through(&stack, request).await;
    assert_eq!(status, 200);
    (headers, bearer.to_str().unwrap()[7..].to_owned())
}

#[tokio::test]
async fn e03_a_gateway_sends_its_own_token() {
    let agent = agent::start("x").await;
    let source = agent.source().await.unwrap();
    let validator = Validator::builder(source.clone()).audience(AUDIENCE);
    let validator = validator.build().unwrap();
    let any = Allow::any_trust_domain;
    let audience = Audience::fixed("ledger")
        .for_origin("https://ledger")
        .unwrap();
    let client = AddJwtSvidLayer::new(source, audience);
    for server in [
        ValidateJwtSvidLayer::required(validator.clone(), any()),
        ValidateJwtSvidLayer::required(validator.clone(), any()).keep_credential(),
        ValidateJwtSvidLayer::audit(validator.clone(), any()),
    ] {
        for copies in [
            &[][..],
            &["authorization"],
            &["authorization", "x-copy"],
            &["x-copy"],
        ] {
            for client in [
                client.clone(),
                client.clone().on_existing(OnExisting::Replace),
            ] {
                for to in ["https://ledger/x", "https://elsewhere/x"] {
                    let (headers, callers) = forwarded(&agent, &server, &client, to, copies).await;
                    for (name, value) in &headers {
                        let value = value.to_str().unwrap();
                        assert!(!value.contains(&callers), "{name} to {to}, {copies:?}");
                    }
                    let signed = headers.contains_key(AUTHORIZATION);
                    assert_eq!(signed, to.contains("ledger"), "{copies:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn e03_other_credentials_stay_elsewhere() {
    let agent = agent::start("x").await;
    let source = agent.source().await.unwrap();
    let audience = Audience::fixed("ledger")
        .for_origin("https://ledger")
        .unwrap();
    let client = AddJwtSvidLayer::new(source, audience);
    let basic = HeaderValue::from_static("Basic eDp5");
    let caller = CallerState::Verified(testing::verified_svid(WEB));
    let send = async |to: &str, state: Option<CallerState>| {
        let mut request = Request::get(to).body(String::new()).unwrap();
        request.headers_mut().insert(AUTHORIZATION, basic.clone());
        if let Some(state) = state {
            request.extensions_mut().insert(state);
        }
        let seen = Arc::new(Mutex::new(None));
        let log = seen.clone();
        let upstream = service_fn(move |request: Request<String>| {
            *log.lock().unwrap() = request.headers().get(AUTHORIZATION).cloned();
            async { Ok::<_, Infallible>(Response::new(String::new())) }
        });
        client.layer(upstream).oneshot(request).await.unwrap();
        seen.lock().unwrap().take().unwrap()
    };
    assert_eq!(send("https://elsewhere", Some(caller.clone())).await, basic);
    // If the layer adds its token, it replaces the header of a caller, and only of a caller.
    assert_ne!(send("https://ledger", Some(caller)).await, basic);
    assert_eq!(
        send("https://ledger", Some(CallerState::Anonymous)).await,
        basic
    );
    assert_eq!(send("https://ledger", None).await, basic);
}
