//! An axum server with the layer.

use axum::extract::{FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use axum::routing::{get as on_get, post};
use axum::{Router, ServiceExt};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use tower::Layer;
use tower_spiffe::server::{
    Allow, AllowCallersLayer, CallerState, Protocol, Rejection, ValidateJwtSvidLayer,
};
use tower_spiffe::verify::VerifiedSvid;

use crate::loopback::{At, Doors, get};
use crate::support::{OPS, WEB, World, bearer};

/// Serves over TCP and a Unix socket.
pub async fn serve<S>(service: S) -> At
where
    S: tower::Service<Request, Response = Response, Error = std::convert::Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let doors = Doors::open().await;
    let make = ServiceExt::<Request>::into_make_service(service);
    #[cfg(unix)]
    tokio::spawn(axum::serve(doors.unix, make.clone()).into_future());
    tokio::spawn(axum::serve(doors.tcp, make).into_future());
    doors.at
}

fn required(world: &World) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::required(world.validator.clone(), Allow::trust_domain("x").unwrap())
}

async fn who(caller: VerifiedSvid) -> String {
    caller.spiffe_id().to_string()
}

#[tokio::test]
async fn finished_router_is_protected() {
    let world = World::new();
    let router = Router::new()
        .route("/who", on_get(who))
        .nest(
            "/nested",
            Router::new().route("/who", on_get(who)).fallback(who),
        )
        .fallback(who)
        .route("/late", on_get(who));
    let at = serve(required(&world).layer(router)).await;
    let web = world.bearer(WEB);
    for path in [
        "/who",
        "/nested/who",
        "/nested/nothing",
        "/nothing",
        "/late",
        "/who?x=y",
    ] {
        assert_eq!(at.status(get(path, None)).await, 401, "{path}");
        assert_eq!(
            at.status(get(path, Some(&bearer("a.b.c")))).await,
            401,
            "{path}"
        );
        assert_eq!(
            at.text(get(path, Some(&web))).await,
            (200, WEB.to_owned()),
            "{path}"
        );
    }
}

/// Routes of the outer router are open, all others are protected. Probes of a kubelet send no token.
#[tokio::test]
async fn probes_are_on_an_outer_router() {
    let world = World::new();
    let inner = || {
        Router::new().route("/who", on_get(who)).nest(
            "/nested",
            Router::new().route("/who", on_get(who)).fallback(who),
        )
    };
    let probes = || Router::new().route("/livez", on_get(async || "alive"));
    let web = world.bearer(WEB);
    for (how, app) in [
        (
            "outside the layer",
            probes().fallback_service(required(&world).layer(inner())),
        ),
        (
            "Router::layer",
            probes().fallback_service(inner().layer(required(&world))),
        ),
        ("merged", probes().merge(inner().layer(required(&world)))),
    ] {
        let at = serve(app).await;
        let probe = at.text(get("/livez", None)).await;
        assert_eq!(probe, (200, "alive".to_owned()), "{how}");
        for path in ["/who", "/nested/who", "/nested/nothing", "/nothing"] {
            assert_eq!(at.status(get(path, None)).await, 401, "{how}: {path}");
        }
        let known = at.text(get("/nested/nothing", Some(&web))).await;
        assert_eq!(known, (200, WEB.to_owned()), "{how}");
    }
}

#[tokio::test]
async fn route_layer_does_not_protect_fallbacks() {
    let world = World::new();
    let open = || async { "open" };
    let router = Router::new()
        .route("/guarded", on_get(open))
        .nest(
            "/nested",
            Router::new().route("/guarded", on_get(open)).fallback(open),
        )
        .route_layer(required(&world))
        .route("/late", on_get(open))
        .fallback(open);
    let at = serve(router.clone()).await;
    assert_eq!(at.status(get("/guarded", None)).await, 401);
    assert_eq!(at.status(get("/nested/guarded", None)).await, 401);
    for path in ["/late", "/nothing", "/nested/nothing"] {
        assert_eq!(
            at.status(get(path, None)).await,
            200,
            "{path}: `route_layer` does not protect it"
        );
    }
    let at = serve(required(&world).layer(router)).await;
    for path in [
        "/guarded",
        "/nested/guarded",
        "/late",
        "/nothing",
        "/nested/nothing",
    ] {
        assert_eq!(at.status(get(path, None)).await, 401, "{path}");
    }
}

#[test]
#[should_panic(expected = "route_layer")]
fn route_layer_without_routes_panics() {
    let world = World::new();
    drop(Router::<()>::new().route_layer(required(&world)));
}

#[tokio::test]
async fn single_route_can_be_protected_and_restricted() {
    let world = World::new();
    let only_ops = AllowCallersLayer::new(Allow::id(OPS).unwrap());
    let router = Router::new()
        .route("/open", on_get(|| async { "open" }))
        .route("/who", on_get(who).layer(required(&world)))
        .route(
            "/admin",
            post(who).get(who).layer((required(&world), only_ops)),
        );
    let at = serve(router).await;
    let (web, ops) = (world.bearer(WEB), world.bearer(OPS));
    assert_eq!(at.status(get("/open", None)).await, 200);
    assert_eq!(at.status(get("/who", None)).await, 401);
    assert_eq!(
        at.text(get("/who", Some(&web))).await,
        (200, WEB.to_owned())
    );
    assert_eq!(at.status(get("/admin", Some(&web))).await, 403);
    assert_eq!(
        at.text(get("/admin", Some(&ops))).await,
        (200, OPS.to_owned())
    );
}

/// A custom extractor with its own rejection, made from the layer's.
struct Caller(VerifiedSvid);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = (StatusCode, String);

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        match <VerifiedSvid as FromRequestParts<S>>::from_request_parts(parts, state).await {
            Ok(caller) => Ok(Self(caller)),
            Err(rejection) => Err((rejection.reason().status(), format!("sorry: {rejection}"))),
        }
    }
}

async fn mine(Caller(caller): Caller) -> String {
    caller.spiffe_id().to_string()
}

async fn maybe(caller: Option<VerifiedSvid>) -> String {
    caller.map_or("anonymous".to_owned(), |caller| {
        caller.spiffe_id().to_string()
    })
}

/// Returns a rejection from a handler.
async fn state(state: CallerState) -> Result<String, Rejection> {
    match state {
        CallerState::Verified(caller) => Ok(caller.spiffe_id().to_string()),
        CallerState::AuditFailed(rejection) => Err(rejection),
        _ => Ok("anonymous".to_owned()),
    }
}

fn handlers() -> Router {
    Router::new()
        .route("/who", on_get(who))
        .route("/maybe", on_get(maybe))
        .route("/mine", on_get(mine))
        .route("/state", on_get(state))
}

#[tokio::test]
async fn extractors_return_the_caller() {
    let world = World::new();
    let web = world.bearer(WEB);
    let optional = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    let at = serve(optional.layer(handlers())).await;
    for path in ["/who", "/maybe", "/mine", "/state"] {
        assert_eq!(
            at.text(get(path, Some(&web))).await,
            (200, WEB.to_owned()),
            "{path}"
        );
    }
    let basic = HeaderValue::from_static("Basic eDp5");
    for anonymous in [None, Some(&basic)] {
        assert_eq!(at.text(get("/who", anonymous)).await, (401, String::new()));
        assert_eq!(
            at.text(get("/maybe", anonymous)).await,
            (200, "anonymous".to_owned())
        );
        assert_eq!(
            at.text(get("/state", anonymous)).await,
            (200, "anonymous".to_owned())
        );
        let sorry = "sorry: a bearer token is required".to_owned();
        assert_eq!(at.text(get("/mine", anonymous)).await, (401, sorry));
    }
    let answers = at.ask(get("/who", None)).await;
    assert!(
        answers
            .iter()
            .all(|a| a.headers()["www-authenticate"] == "Bearer realm=\"spiffe\"")
    );
}

#[tokio::test]
async fn extractor_rejects_like_the_outer_layer() {
    let world = World::new();
    let layer = |audit: bool| {
        let (validator, web) = (world.validator.clone(), Allow::id(WEB).unwrap());
        if audit {
            ValidateJwtSvidLayer::audit(validator, web)
        } else {
            ValidateJwtSvidLayer::optional(validator, Allow::anyone())
        }
    };
    let challenge = |answer: &http::Response<bytes::Bytes>| {
        let value = answer.headers().get("www-authenticate");
        value.map(|value| value.to_str().unwrap().to_owned())
    };
    let reports = Some("Bearer realm=\"reports\"".to_owned());
    for mode in [false, true] {
        let at = serve(layer(mode).realm("reports").unwrap().layer(handlers())).await;
        let answers = at.ask(get("/who", None)).await;
        assert!(answers.iter().all(|answer| challenge(answer) == reports));

        let at = serve(layer(mode).protocol(Protocol::Grpc).layer(handlers())).await;
        for answer in at.ask(get("/who", None)).await {
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["grpc-status"], "16");
        }
        // The innermost layer counts, even if it leaves the request unchanged.
        let outer = layer(mode).realm("reports").unwrap();
        let both = outer.layer(layer(mode).layer(handlers()));
        let answers = serve(both).await.ask(get("/who", None)).await;
        let spiffe = Some("Bearer realm=\"spiffe\"".to_owned());
        assert!(answers.iter().all(|answer| challenge(answer) == spiffe));
    }
}

#[tokio::test]
async fn audit_forwards_to_the_handler() {
    let world = World::new();
    let audit = ValidateJwtSvidLayer::audit(world.validator.clone(), Allow::id(WEB).unwrap());
    let at = serve(audit.layer(handlers())).await;
    let ops = world.bearer(OPS);
    let invalid = bearer("a.b.c");
    let malformed = HeaderValue::from_static("Bearer");
    for (credential, as_a_rejection) in [
        (None, 401),
        (Some(&invalid), 401),
        (Some(&malformed), 400),
        (Some(&ops), 403),
    ] {
        assert_eq!(at.status(get("/who", credential)).await, 401);
        assert_eq!(
            at.text(get("/maybe", credential)).await,
            (200, "anonymous".to_owned())
        );
        assert_eq!(at.status(get("/state", credential)).await, as_a_rejection);
    }
}

#[tokio::test]
async fn a_handler_without_the_layer_reports_it() {
    let world = World::new();
    let web = world.bearer(WEB);
    let at = serve(handlers()).await;
    for path in ["/who", "/maybe", "/state"] {
        let (status, text) = at.text(get(path, Some(&web))).await;
        assert_eq!(
            (status, text.as_str()),
            (500, "ValidateJwtSvidLayer is missing from the stack")
        );
    }
}

#[tokio::test]
async fn outer_cors_layer_handles_preflights() {
    use tower_http::cors::{Any, CorsLayer};

    let world = World::new();
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_headers([http::header::AUTHORIZATION]);
    let at = serve(cors.layer(required(&world).layer(handlers()))).await;
    let mut preflight = get("/who", None);
    *preflight.method_mut() = http::Method::OPTIONS;
    preflight
        .headers_mut()
        .insert("origin", HeaderValue::from_static("http://app.test"));
    let name = "access-control-request-method";
    preflight
        .headers_mut()
        .insert(name, HeaderValue::from_static("GET"));
    assert_eq!(at.status(preflight.clone()).await, 200);
    // The layer itself has no exemption for preflights.
    let at = serve(required(&world).layer(handlers())).await;
    assert_eq!(at.status(preflight).await, 401);
}

#[tokio::test]
async fn a_rejection_is_a_response() {
    let world = World::new();
    let rejection = match CallerState::from_extensions(&audit_failed(&world).await) {
        Some(CallerState::AuditFailed(rejection)) => rejection.clone(),
        other => panic!("{other:?}"),
    };
    let response = rejection.into_response();
    assert_eq!(response.status(), 403);
}

async fn audit_failed(world: &World) -> http::Extensions {
    use tower::{ServiceExt, service_fn};

    let inner = service_fn(|request: http::Request<String>| async move {
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.extensions = request.into_parts().0.extensions;
        Ok::<_, std::convert::Infallible>(http::Response::from_parts(parts, ()))
    });
    let audit = ValidateJwtSvidLayer::audit(world.validator.clone(), Allow::id(OPS).unwrap());
    let response = audit
        .layer(inner)
        .oneshot(world.request(WEB))
        .await
        .unwrap();
    response.into_parts().0.extensions
}
