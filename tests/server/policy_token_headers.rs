//! Several headers may carry the token: the first header that is present decides.

use std::convert::Infallible;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::server::{Allow, CallerState, ValidateJwtSvidLayer};

use crate::support::{OPS, WEB, World};

const FIRST: HeaderName = HeaderName::from_static("x-spiffe-authorization");

type Lines<'a> = &'a [(HeaderName, &'a str)];

/// Returns the caller or the status of the rejection, and the headers for the inner service.
async fn seen<L>(layer: L, lines: Lines<'_>) -> (String, Vec<(String, String)>)
where
    L: Layer<Handler>,
    L::Service: tower::Service<Request<String>, Response = Response<String>, Error = Infallible>,
{
    let mut request = Request::new(String::new());
    for (name, value) in lines {
        let value = HeaderValue::from_str(value).unwrap();
        request.headers_mut().append(name.clone(), value);
    }
    let response = layer.layer(service_fn(handler as _)).oneshot(request).await;
    let response = response.unwrap();
    if response.status() != 200 {
        return (response.status().as_u16().to_string(), Vec::new());
    }
    let headers = response.headers().iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    (response.body().clone(), headers.collect())
}

type Answer = std::future::Ready<Result<Response<String>, Infallible>>;
type Handler = tower::util::ServiceFn<fn(Request<String>) -> Answer>;

fn handler(request: Request<String>) -> Answer {
    let state = CallerState::from_extensions(request.extensions()).unwrap();
    let caller = state
        .verified()
        .map_or("anonymous".into(), |it| it.spiffe_id().to_string());
    let mut response = Response::new(caller);
    *response.headers_mut() = request.headers().clone();
    for value in response.headers().values() {
        assert!(value.is_sensitive());
    }
    std::future::ready(Ok(response))
}

fn layer(world: &World) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone())
        .header(FIRST)
        .or_header(AUTHORIZATION)
}

fn pair(name: &HeaderName, value: &str) -> (String, String) {
    (name.to_string(), value.to_owned())
}

#[tokio::test]
async fn the_first_header_present_decides() {
    let world = World::new();
    let [web, ops] = [WEB, OPS].map(|id| format!("Bearer {}", world.issuer.token(id)));
    let bare = world.issuer.token(WEB);
    for (lines, caller, left) in [
        (
            &[(FIRST, &*web), (AUTHORIZATION, &*ops)][..],
            WEB,
            vec![pair(&AUTHORIZATION, &ops)],
        ),
        (
            &[(AUTHORIZATION, &*ops), (FIRST, &*bare)],
            WEB,
            vec![pair(&AUTHORIZATION, &ops)],
        ),
        (
            &[(FIRST, &*web), (AUTHORIZATION, "Basic eDp5")],
            WEB,
            vec![pair(&AUTHORIZATION, "Basic eDp5")],
        ),
        (
            &[(FIRST, &*web), (AUTHORIZATION, "Bearer a, Bearer b")],
            WEB,
            vec![pair(&AUTHORIZATION, "Bearer a, Bearer b")],
        ),
        (&[(AUTHORIZATION, &*ops)], OPS, vec![]),
        (&[], "anonymous", vec![]),
        // `authorization` does not accept a bare token.
        (
            &[(AUTHORIZATION, &*bare)],
            "anonymous",
            vec![pair(&AUTHORIZATION, &bare)],
        ),
    ] {
        assert_eq!(
            seen(layer(&world), lines).await,
            (caller.to_owned(), left),
            "{lines:?}"
        );
    }
}

#[tokio::test]
async fn invalid_first_header_is_rejected() {
    let world = World::new();
    let [web, ops] = [WEB, OPS].map(|id| format!("Bearer {}", world.issuer.token(id)));
    for (lines, status) in [
        (
            &[(FIRST, "Bearer a.b.c"), (AUTHORIZATION, &*ops)][..],
            "401",
        ),
        (&[(FIRST, ""), (AUTHORIZATION, &*ops)], "400"),
        (&[(FIRST, "Bearer"), (AUTHORIZATION, &*ops)], "400"),
        (
            &[(FIRST, &*web), (FIRST, &*web), (AUTHORIZATION, &*ops)],
            "400",
        ),
        (
            &[(FIRST, &*format!("{web}, {web}")), (AUTHORIZATION, &*ops)],
            "400",
        ),
        (&[(AUTHORIZATION, &*ops), (AUTHORIZATION, &*ops)], "400"),
        (
            &[(FIRST, &*"a".repeat(9000)), (AUTHORIZATION, &*ops)],
            "401",
        ),
    ] {
        assert_eq!(seen(layer(&world), lines).await.0, status, "{lines:?}");
    }
}

#[tokio::test]
async fn other_scheme_in_the_first_header_is_ignored() {
    let world = World::new();
    let bare = world.issuer.token(WEB);
    let lines: Lines<'_> = &[(AUTHORIZATION, "Basic eDp5"), (FIRST, &bare)];
    let first = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
        .or_header(FIRST);
    assert_eq!(seen(first, lines).await.0, "401");
}

/// An inner layer finds the token that the outer layer removed, from either header.
#[tokio::test]
async fn nested_layers_find_the_token_of_each_header() {
    let world = World::new();
    let [web, ops] = [WEB, OPS].map(|id| format!("Bearer {}", world.issuer.token(id)));
    let inner = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
        .header(FIRST)
        .or_header(AUTHORIZATION);
    let both = || tower::layer::util::Stack::new(inner.clone(), layer(&world));
    let (caller, left) = seen(both(), &[(AUTHORIZATION, &*ops)]).await;
    assert_eq!((&*caller, left), (OPS, vec![]));
    let lines: Lines<'_> = &[(FIRST, &*web), (AUTHORIZATION, &*ops)];
    let (caller, left) = seen(both(), lines).await;
    assert_eq!((&*caller, left), (WEB, vec![pair(&AUTHORIZATION, &ops)]));
    // The header matters: an inner layer of another header reads that header.
    let other = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain());
    let stack = || tower::layer::util::Stack::new(other.clone(), layer(&world));
    assert_eq!(seen(stack(), lines).await.0, OPS);
    assert_eq!(seen(stack(), &[(FIRST, &*web)]).await.0, "401");
}
