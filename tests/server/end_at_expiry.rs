//! Streams end when their token expires.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::IntervalStream;
use tonic::Code;
use tonic::service::{LayerExt, Routes};
use tonic::transport::{Channel, Server};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_spiffe::clock::{Clock, SystemClock, UnixTime};
use tower_spiffe::metrics::MetricsRecorder;
use tower_spiffe::server::{Allow, EndAtExpiryLayer, TokenExpired, ValidateJwtSvidLayer};
use tower_spiffe::testing::PausedClock;
use tracing::Level;

use crate::log::Log;
use crate::loopback::{Doors, get, stream};
use crate::support::{WEB, World, bearer, with_authorization};
use crate::talk::{Other, Talk, Talker};
use crate::tonic::channels;

const START: i64 = 1_790_000_000;

/// A world on tokio's paused time.
fn paused() -> (World, Arc<PausedClock>) {
    let clock = Arc::new(PausedClock::new(UnixTime::from_secs(START)));
    let world = World::with(|builder| builder.clock(clock.clone()));
    (world, clock)
}

/// A body with one frame per second, without end.
fn ticks() -> impl Body<Data = Bytes, Error = Infallible> {
    ticks_as("")
}

/// Returns a chunk for this content type: a gRPC message, in base64 for text.
fn tick(content_type: &str) -> &'static [u8] {
    match content_type {
        "application/grpc-web-text" => b"AAAAAAR0aWNr",
        "" => b"tick",
        _ => b"\0\0\0\0\x04tick",
    }
}

fn ticks_as(content_type: &'static str) -> impl Body<Data = Bytes, Error = Infallible> {
    let ticks = IntervalStream::new(tokio::time::interval(Duration::from_secs(1)));
    StreamBody::new(ticks.map(|_| Ok(Frame::data(Bytes::from_static(tick(content_type))))))
}

/// Sets the content type of a request.
pub fn calling(mut request: Request<String>, content_type: &'static str) -> Request<String> {
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    let value = HeaderValue::from_static(content_type);
    request.headers_mut().insert("content-type", value);
    request
}

/// Returns the number of frames, the elapsed time, and how the stream ends.
async fn end_of(
    world: &World,
    content_type: &'static str,
    exp: i64,
) -> (
    usize,
    Duration,
    Option<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>,
) {
    let layer = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone())
        .on_reject(|_: &_, _: &http::request::Parts| unreachable!());
    let inner = service_fn(move |_: Request<String>| async move {
        let mut response = Response::new(Box::pin(ticks_as(content_type)));
        if !content_type.is_empty() {
            let value = HeaderValue::from_static(content_type);
            response.headers_mut().insert("content-type", value);
        }
        Ok::<_, Infallible>(response)
    });
    let service = layer.layer(EndAtExpiryLayer::new(&world.validator).layer(inner));
    let claims = json!({ "exp": exp, "iat": START });
    let request = with_authorization(&bearer(&world.issuer.token_with(WEB, claims)));
    let request = calling(request, content_type);
    let mut body = service.oneshot(request).await.unwrap().into_body();
    let start = Instant::now();
    let mut frames = 0;
    loop {
        match body.frame().await {
            Some(Ok(frame)) if frame.data_ref().is_some_and(|it| it == tick(content_type)) => {
                frames += 1;
            }
            end => {
                let after = start.elapsed();
                if end.is_some() {
                    assert!(body.frame().await.is_none() && body.is_end_stream());
                }
                return (frames, after, end);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn http_stream_ends_with_an_error_at_expiry() {
    let (world, _) = paused();
    let (frames, after, end) = end_of(&world, "", START + 90).await;
    assert_eq!((frames, after), (100, Duration::from_secs(100)));
    let error = end.unwrap().unwrap_err();
    assert!(error.is::<TokenExpired>(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn grpc_stream_ends_with_status_16() {
    let (world, _) = paused();
    let (frames, after, end) = end_of(&world, "application/grpc", START + 2).await;
    assert_eq!((frames, after), (12, Duration::from_secs(12)));
    let trailers = end.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "16");
    assert_eq!(trailers["grpc-message"], "the token has expired");
}

#[tokio::test(start_paused = true)]
async fn grpc_web_stream_ends_with_status_16() {
    use base64::Engine as _;

    const LAST: &[u8] = b"\x80\0\0\0\x34grpc-status:16\r\ngrpc-message:the token has expired\r\n";
    let (world, _) = paused();
    let (_, _, end) = end_of(&world, "application/grpc-web+proto", START + 2).await;
    assert_eq!(end.unwrap().unwrap().into_data().unwrap(), LAST);
    let (world, _) = paused();
    let (_, _, end) = end_of(&world, "application/grpc-web-text", START + 2).await;
    let text = end.unwrap().unwrap().into_data().unwrap();
    assert_eq!(
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .unwrap(),
        LAST
    );
}

#[tokio::test(start_paused = true)]
async fn a24_wall_clock_step_is_noticed() {
    let (world, clock) = paused();
    let stepping = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(5500)).await;
        clock.step_wall(3610);
    });
    // Before the next frame, long before the timer.
    let (frames, after, end) = end_of(&world, "", START + 3600).await;
    assert_eq!((frames, after), (6, Duration::from_secs(6)));
    assert!(end.unwrap().is_err());
    stepping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn responses_that_end_earlier_are_unchanged() {
    let (world, _) = paused();
    let inner = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("whole")))
    });
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain());
    let service = layer.layer(EndAtExpiryLayer::new(&world.validator).layer(inner));
    let token = world
        .issuer
        .token_with(WEB, json!({ "exp": START + 1, "iat": START }));
    let request = with_authorization(&bearer(&token));
    let body = service.oneshot(request).await.unwrap().into_body();
    assert_eq!(body.size_hint().exact(), Some(5));
    assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");
}

#[derive(Default)]
struct Ended(AtomicU64);

impl MetricsRecorder for Ended {
    fn record_ended_answer(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn ended_streams_are_counted_and_logged() {
    let log = Log::default();
    let _guard = log.begin(Level::INFO);
    let (world, _) = paused();
    let ended = Arc::new(Ended::default());
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain());
    let end = EndAtExpiryLayer::new(&world.validator)
        .metrics(ended.clone())
        .log_interval(Duration::from_secs(60));
    let whole = layer.layer(end.layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("whole")))
    })));
    let layer = layer.on_reject(|_: &_, _: &http::request::Parts| unreachable!());
    let endless = layer.layer(end.layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(Box::pin(ticks())))
    })));
    let request = |exp| {
        let claims = json!({ "exp": exp, "iat": START });
        with_authorization(&bearer(&world.issuer.token_with(WEB, claims)))
    };
    // One ends at 12 s; three more at 71 s, within the log interval; and one at 72 s.
    let mut answers = Vec::new();
    for exp in [2, 61, 61, 61, 62] {
        let answer = endless.clone().oneshot(request(START + exp)).await.unwrap();
        answers.push(answer.into_body());
        // A response that ends by itself is not counted.
        let answer = whole.clone().oneshot(request(START + exp)).await.unwrap();
        assert!(answer.into_body().collect().await.is_ok());
    }
    for answer in answers {
        assert!(answer.collect().await.is_err());
    }
    assert_eq!(ended.0.load(Ordering::Relaxed), 5);
    assert_eq!(log.lines_with("responses ended early"), 2, "{}", log.text());
    let lines = |suppressed| {
        let fields = format!("reason=\"expired\" suppressed={suppressed} peer.spiffe_id=\"{WEB}\"");
        log.lines_with(&fields)
    };
    assert_eq!((lines(0), lines(3)), (1, 1), "{}", log.text());
}

/// A body with one chunk and, in gRPC, trailers. In gRPC-Web they are a frame of data.
fn word(content_type: &str) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
    let data = |bytes| Ok(Frame::data(Bytes::from_static(bytes)));
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    StreamBody::new(tokio_stream::iter(match content_type {
        "application/grpc" => vec![data(b"\0\0\0\0\x04word"), Ok(Frame::trailers(trailers))],
        "application/grpc-web" => vec![
            data(b"\0\0\0\0\x04word"),
            data(b"\x80\0\0\0\x0fgrpc-status:0\r\n"),
        ],
        _ => vec![data(b"word")],
    }))
}

#[tokio::test(start_paused = true)]
async fn a_complete_response_gets_no_second_end() {
    for (content_type, frames) in [
        // The body is polled after its end, or not.
        ("text/plain", 2),
        ("application/grpc", 2),
        ("application/grpc", 3),
        ("application/grpc-web", 2),
        ("application/grpc-web", 3),
    ] {
        let (world, _) = paused();
        let layer =
            ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
                .on_reject(|_: &_, _: &http::request::Parts| unreachable!());
        let inner = service_fn(move |_: Request<String>| async move {
            let mut response = Response::new(word(content_type));
            let value = HeaderValue::from_static(content_type);
            response.headers_mut().insert("content-type", value);
            Ok::<_, Infallible>(response)
        });
        let service = layer.layer(EndAtExpiryLayer::new(&world.validator).layer(inner));
        let claims = json!({ "exp": START + 1, "iat": START });
        let request = with_authorization(&bearer(&world.issuer.token_with(WEB, claims)));
        let request = calling(request, content_type);
        let mut body = service.oneshot(request).await.unwrap().into_body();
        let mut found = Vec::new();
        for _ in 0..frames {
            found.extend(body.frame().await);
        }
        assert!(found.iter().all(Result::is_ok));
        let own = if content_type == "text/plain" { 1 } else { 2 };
        assert_eq!(found.len(), own, "{content_type}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(body.frame().await.is_none(), "{content_type}");
        assert!(body.is_end_stream());
    }
}

/// Within a message, the trailers would be taken for a part of it.
#[tokio::test(start_paused = true)]
async fn partial_grpc_web_message_ends_with_an_error() {
    for (content_type, part) in [
        ("application/grpc-web+proto", &b"\0\0\0\0\x08part"[..]),
        ("application/grpc-web+proto", b"\0\0\0\0\x04tick\0\0\0"),
        ("application/grpc-web-text", b"AAAAAAhwYXJ0"),
        ("application/grpc-web-text", b"AAAAAAR0aWNrAA"),
    ] {
        let (world, _) = paused();
        let layer =
            ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
                .on_reject(|_: &_, _: &http::request::Parts| unreachable!());
        let inner = service_fn(move |_: Request<String>| async move {
            let part =
                tokio_stream::once(Ok::<_, Infallible>(Frame::data(Bytes::from_static(part))));
            let body = StreamBody::new(part.chain(tokio_stream::pending()));
            let mut response = Response::new(Box::pin(body));
            let value = HeaderValue::from_static(content_type);
            response.headers_mut().insert("content-type", value);
            Ok::<_, Infallible>(response)
        });
        let service = layer.layer(EndAtExpiryLayer::new(&world.validator).layer(inner));
        let claims = json!({ "exp": START + 1, "iat": START });
        let request = with_authorization(&bearer(&world.issuer.token_with(WEB, claims)));
        let request = calling(request, content_type);
        let mut body = service.oneshot(request).await.unwrap().into_body();
        let sent = body.frame().await.unwrap().unwrap();
        assert_eq!(sent.into_data().unwrap(), part);
        let error = body.frame().await.unwrap().unwrap_err();
        assert!(error.is::<TokenExpired>(), "{content_type}: {error}");
        assert!(body.frame().await.is_none());
    }
}

/// A response that may end with a gRPC status has no fixed length.
#[tokio::test(start_paused = true)]
async fn a_grpc_response_has_no_content_length() {
    let (world, _) = paused();
    let layer = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    let inner = service_fn(|request: Request<String>| async move {
        let mut response = Response::new(Full::<Bytes>::from("whole"));
        let content_type = request.headers()["accept"].clone();
        response.headers_mut().insert("content-type", content_type);
        let length = HeaderValue::from_static("5");
        response.headers_mut().insert("content-length", length);
        Ok::<_, Infallible>(response)
    });
    let service = layer.layer(EndAtExpiryLayer::new(&world.validator).layer(inner));
    let claims = json!({ "exp": START + 1, "iat": START });
    let known = bearer(&world.issuer.token_with(WEB, claims));
    for (accept, caller, kept) in [
        ("text/plain", Some(&known), true),
        ("application/grpc", Some(&known), false),
        ("application/grpc-web-text", Some(&known), false),
        // None of these responses is ended.
        ("application/grpc", None, true),
    ] {
        let mut request = calling(Request::new(String::new()), accept);
        let value = HeaderValue::from_static(accept);
        request.headers_mut().insert("accept", value);
        if let Some(caller) = caller {
            request
                .headers_mut()
                .insert("authorization", caller.clone());
        }
        let response = service.clone().oneshot(request).await.unwrap();
        let length = response.headers().get("content-length");
        assert_eq!(length.is_some(), kept, "{accept}");
        let exact = response.body().size_hint().exact();
        assert_eq!(exact, kept.then_some(5), "{accept}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_complete_body_ends_cleanly() {
    let (world, _) = paused();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain());
    let inner = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("whole")))
    });
    let service = layer.layer(EndAtExpiryLayer::new(&world.validator).layer(inner));
    let claims = json!({ "exp": START + 1, "iat": START });
    let request = with_authorization(&bearer(&world.issuer.token_with(WEB, claims)));
    let mut body = service.oneshot(request).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
}

/// Asserts that streams on this channel end when their token expires, and that other calls do not.
async fn assert_ends(world: &World, channel: Channel) {
    let exp = SystemClock::shared().now().secs() + 2;
    let token = world.issuer.token_with(WEB, json!({ "exp": exp }));
    let mut talker = Talker::new(channel.clone(), Some(format!("Bearer {token}")));
    let mut stream = talker.tell().await.unwrap();
    // A bidirectional call without messages.
    let mut silent = talker.chat(tokio_stream::pending()).await.unwrap();
    let mut words = 0;
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => words += 1,
            Ok(None) => panic!("a clean end"),
            Err(status) => break status,
        }
    };
    // Not before the token expires. The exact time is tested with paused clocks.
    assert!(words > 0);
    assert!(SystemClock::shared().now() >= UnixTime::from_secs(exp));
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unauthenticated, "the token has expired")
    );
    let status = silent.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    // The connection stays open for others.
    let fresh = Some(world.bearer(WEB).to_str().unwrap().to_owned());
    assert!(Talker::new(channel, fresh).say("hello").await.is_ok());
}

/// For a whole server and for one service, over TCP and over a Unix socket.
#[tokio::test]
async fn a_real_tonic_stream_ends_with_unauthenticated() {
    let world = World::with(|builder| builder.leeway(Duration::ZERO));
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain());
    let end = EndAtExpiryLayer::new(&world.validator);
    let whole = || {
        let mut server = Server::builder().layer(layer.clone()).layer(end.clone());
        server.add_service(Talk)
    };
    let both = ServiceBuilder::new()
        .layer(layer.clone())
        .layer(end.clone());
    let one = Routes::new(both.named_layer(Talk)).add_service(Other);
    let one = || Server::builder().add_routes(one.clone());
    let mut streams = Vec::new();
    for at in [crate::tonic::serve!(whole()), crate::tonic::serve!(one())] {
        for channel in channels(&at).await {
            streams.push(assert_ends(&world, channel));
        }
    }
    futures_util::future::join_all(streams).await;
}

#[tokio::test]
async fn a_real_http_stream_does_not_end_cleanly() {
    let world = World::with(|builder| builder.leeway(Duration::ZERO));
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
        .on_reject(|_: &_, _: &http::request::Parts| unreachable!());
    let inner = service_fn(|_: Request<hyper::body::Incoming>| async {
        Ok::<_, Infallible>(Response::new(Box::pin(ticks())))
    });
    let service = layer.layer(EndAtExpiryLayer::new(&world.validator).layer(inner));
    let at = crate::hyper::serve(service).await;
    for http2 in [false, true] {
        let exp = SystemClock::shared().now().secs() + 2;
        let token = bearer(&world.issuer.token_with(WEB, json!({ "exp": exp })));
        let io = TcpStream::connect(at.tcp).await.unwrap();
        let mut body = stream(io, http2, get("/", Some(&token))).await.into_body();
        let mut frames = 0;
        loop {
            match body.frame().await {
                Some(Ok(_)) => frames += 1,
                Some(Err(_)) => break,
                None => panic!("a clean end"),
            }
        }
        assert!(frames >= 1, "{frames}");
    }
}
