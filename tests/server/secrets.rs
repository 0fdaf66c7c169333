//! A28 with whole servers over real sockets: what servers and inner services log at TRACE, and the
//! `Debug` output of public types.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt::Debug;
use std::time::Duration;

use axum::Router;
use axum::routing::get as on_get;
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tonic::transport::Server;
use tower::util::MapResponseLayer;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_http::trace::{DefaultMakeSpan, TraceLayer};
use tower_http::validate_request::ValidateRequestHeaderLayer;
use tower_spiffe::server::{
    Allow, AllowCallersLayer, CallerState, EndAtExpiryLayer, GrpcPolicy, Protocol, Rejection,
    SwapPolicy, UnknownKeyWait, ValidateJwtSvidLayer,
};
use tracing::Level;

use crate::log::Log;
use crate::loopback::{At, Doors, get};
use crate::support::{WEB, World, bearer, with_authorization};
use crate::talk::{Talk, Talker};
use crate::telemetry::tokens;
use crate::tonic::channels;

fn required(world: &World) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap())
        .keep_credential()
}

/// An inner application that logs all headers, by itself and through a layer.
async fn loud<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, _) = request.into_parts();
    tracing::trace!(?parts, state = ?CallerState::from_extensions(&parts.extensions), "inside");
    Ok(Response::new(Full::from("done")))
}

/// Converts the body, because outer layers need an empty one.
fn boxed<B>(response: Response<B>) -> Response<tonic::body::Body>
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    response.map(tonic::body::Body::new)
}

fn traced() -> impl Service<
    Request<Incoming>,
    Response = Response<tonic::body::Body>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    let trace = with_headers(TraceLayer::new_for_http());
    MapResponseLayer::new(boxed).layer(trace.layer(service_fn(loud)))
}

fn with_headers<C>(trace: TraceLayer<C>) -> TraceLayer<C, DefaultMakeSpan> {
    let span = DefaultMakeSpan::new().include_headers(true);
    trace.make_span_with(span.level(Level::TRACE))
}

/// Sends each token over TCP and a Unix socket, with HTTP/1 and HTTP/2; once alone, once twice.
async fn send_all(at: &At, tokens: &[String]) {
    for token in tokens {
        let mut request = get("/", Some(&bearer(token)));
        at.ask(request.clone()).await;
        request.headers_mut().append("authorization", bearer(token));
        at.ask(request).await;
    }
}

/// Asserts that the log is long enough to show a leak, and contains no token.
#[track_caller]
fn assert_clean(log: &Log, tokens: &[String], inside: &str) {
    let text = log.text();
    assert!(text.lines().count() > 200, "{text}");
    assert!(log.lines_with("TRACE") > 100 && log.lines_with(inside) > 0);
    if let Some(leak) = leak_of(tokens, &text) {
        let line = text.lines().find(|line| line.contains(&leak));
        panic!("{leak}: {line:?}");
    }
}

#[tokio::test]
async fn a28_hyper_server_logs_no_token_at_trace() {
    let log = Log::default();
    let _guard = log.begin(Level::TRACE);
    let world = World::new();
    let tokens = tokens(&world);
    for layer in [
        required(&world),
        ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::id(WEB).unwrap()),
        ValidateJwtSvidLayer::audit(world.validator.clone(), Allow::id(WEB).unwrap()),
    ] {
        let narrow = AllowCallersLayer::new(Allow::id(WEB).unwrap());
        let end = EndAtExpiryLayer::new(&world.validator);
        let inner = end.layer(traced());
        let at = crate::hyper::serve(layer.layer(narrow.layer(inner))).await;
        send_all(&at, &tokens).await;
    }
    assert_clean(&log, &tokens, "\"authorization\": Sensitive");
}

#[tokio::test]
async fn a28_tonic_server_logs_no_token_at_trace() {
    let log = Log::default();
    let _guard = log.begin(Level::TRACE);
    let world = World::with(|builder| builder.leeway(Duration::ZERO));
    let mut tokens = tokens(&world);
    let layer = required(&world);
    let end = EndAtExpiryLayer::new(&world.validator);
    let trace = with_headers(TraceLayer::new_for_grpc());
    let server = || {
        Server::builder()
            .layer(layer.clone())
            .layer(end.clone())
            .layer(MapResponseLayer::new(boxed))
            .layer(trace.clone())
            .add_service(Talk)
    };
    let at = crate::tonic::serve!(server());
    let channels = channels(&at).await;
    for channel in &channels {
        for token in &tokens {
            let mut talker = Talker::new(channel.clone(), Some(format!("Bearer {token}")));
            let _ = talker.say("hello").await;
            let _ = talker.listen(&["a", "b"]).await;
            let _ = talker.chat(tokio_stream::empty()).await;
        }
    }
    // A token that expires during its stream.
    let now = tower_spiffe::clock::Clock::now(&*tower_spiffe::clock::SystemClock::shared()).secs();
    let short = serde_json::json!({ "exp": now + 2 });
    let token = world.issuer.token_with(WEB, short);
    let mut talker = Talker::new(channels[0].clone(), Some(format!("Bearer {token}")));
    tokens.push(token);
    let mut ticks = talker.tell().await.unwrap();
    while let Ok(Some(_)) = ticks.message().await {}
    assert_clean(&log, &tokens, "\"authorization\": Sensitive");
}

#[tokio::test]
async fn a28_waiting_axum_server_logs_no_token_at_trace() {
    let log = Log::default();
    let _guard = log.begin(Level::TRACE);
    let world = World::new();
    let tokens = tokens(&world);
    let wait = UnknownKeyWait::new(Duration::from_millis(20)).cool_down(Duration::ZERO);
    let layer = required(&world).wait_for_unknown_keys(wait);
    let router = Router::new()
        .route(
            "/",
            on_get(|request| async {
                loud::<axum::body::Body>(request)
                    .await
                    .unwrap()
                    .map(axum::body::Body::new)
            }),
        )
        .layer(with_headers(TraceLayer::new_for_http()));
    let at = crate::axum::serve(layer.layer(router)).await;
    send_all(&at, &tokens).await;
    assert_clean(&log, &tokens, "\"authorization\": Sensitive");
}

#[tokio::test]
async fn a28_tower_http_layer_logs_no_token_at_trace() {
    let log = Log::default();
    let _guard = log.begin(Level::TRACE);
    let world = World::new();
    let tokens = tokens(&world);
    let verdict = required(&world).into_validate_request::<tonic::body::Body>();
    let layer = ValidateRequestHeaderLayer::custom(verdict);
    let at = crate::hyper::serve(layer.layer(traced())).await;
    send_all(&at, &tokens).await;
    assert_clean(&log, &tokens, "\"authorization\": Sensitive");
}

/// Checks the check: a server that does not mark headers as sensitive leaks.
#[tokio::test]
async fn server_without_the_layer_fails_this_check() {
    let log = Log::default();
    let _guard = log.begin(Level::TRACE);
    let world = World::new();
    let tokens = tokens(&world);
    let at = crate::hyper::serve(traced()).await;
    send_all(&at, &tokens).await;
    assert!(leak_of(&tokens, &log.text()).is_some());
}

#[tokio::test]
async fn a28_debug_output_shows_no_token() {
    let world = World::new();
    let tokens = tokens(&world);
    let mut shown = Vec::new();
    let mut show = |value: &dyn Debug| shown.push(format!("{value:?} {value:#?}"));
    let inner = service_fn(|request: Request<String>| async move {
        let state = CallerState::from_extensions(request.extensions()).cloned();
        let mut response = Response::new(String::new());
        response
            .extensions_mut()
            .insert(format!("{state:?} {request:?}"));
        Ok::<_, Infallible>(response)
    });
    let allow = || Allow::id(WEB).unwrap();
    let narrow = AllowCallersLayer::new(allow());
    let end = EndAtExpiryLayer::new(&world.validator);
    let wait = UnknownKeyWait::new(Duration::from_millis(1));
    show(&world.validator);
    show(&(&narrow, &end, &wait));
    show(&(allow(), SwapPolicy::new(allow()), Protocol::Auto));
    show(
        &GrpcPolicy::deny_by_default()
            .public("/r.R/M")
            .build()
            .unwrap(),
    );
    show(&GrpcPolicy::deny_by_default().public("/r.R/M"));
    for layer in [
        ValidateJwtSvidLayer::required(world.validator.clone(), allow()),
        ValidateJwtSvidLayer::optional(world.validator.clone(), allow()),
        ValidateJwtSvidLayer::audit(world.validator.clone(), allow()),
    ] {
        show(&layer);
        show(&layer.clone().into_validate_request::<String>());
        let waiting = layer.clone().wait_for_unknown_keys(wait.clone());
        show(&waiting);
        let mut service = layer.layer(inner);
        for token in &tokens {
            for authorization in [bearer(token), two(token)] {
                let request = with_authorization(&authorization);
                let response = service.ready().await.unwrap().call(request.clone()).await;
                let response = response.unwrap();
                show(&response);
                show(&response.extensions().get::<Rejection>());
                show(&response.extensions().get::<String>());
                let late = waiting.layer(inner).oneshot(request).await.unwrap();
                show(&late.extensions().get::<Rejection>());
            }
            match world.validator.validate(token) {
                Ok(svid) => show(&(&svid, CallerState::Verified(svid.clone()))),
                Err(error) => show(&(&error, error.to_string())),
            }
        }
    }
    let shown = shown.join("\n");
    assert!(shown.len() > 10_000 && shown.contains(WEB));
    assert_eq!(leak_of(&tokens, &shown), None);
}

/// Two credentials in one line.
fn two(token: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("Bearer {token}, Bearer {token}")).unwrap()
}

/// The length of a token part that counts as a leak. Shorter parts may be equal in unrelated tokens.
const WINDOW: usize = 16;

/// Returns the part of these tokens that is in this text.
pub fn leak_of(tokens: &[String], text: &str) -> Option<String> {
    let segments = tokens.iter().flat_map(|token| token.split('.'));
    let secret: HashSet<_> = segments
        .flat_map(|segment| segment.as_bytes().windows(WINDOW))
        .collect();
    let leaked = text.as_bytes().windows(WINDOW);
    let mut leaked = leaked.filter(|window| secret.contains(window));
    let found = leaked.next()?;
    Some(String::from_utf8_lossy(found).into_owned())
}

#[test]
fn leak_check_finds_any_part() {
    let token = "abcdefghijklmnopqrstuvwxyz.0123456789ABCDEFGHIJ.short".to_owned();
    let tokens = [token];
    for leak in ["abcdefghijklmnop", "x klmnopqrstuvwxyz", "456789ABCDEFGHIJ"] {
        assert!(leak_of(&tokens, leak).is_some(), "{leak}");
    }
    for none in ["", "short", "abcdefghijklmno", "uvwxyz.012345678"] {
        assert_eq!(leak_of(&tokens, none), None);
    }
}
