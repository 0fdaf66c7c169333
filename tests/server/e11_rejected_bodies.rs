//! Rejections of requests with unread bodies reach the client over HTTP/1.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use allocation_counter::measure;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT};
use http::{HeaderValue, Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tower::limit::ConcurrencyLimit;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_spiffe::server::{Allow, AllowCallersLayer, UnknownKeyWait, ValidateJwtSvidLayer};

use crate::hyper::{serve, who};
use crate::loopback::At;
use crate::support::{OPS, WEB, World};

const LIMIT: usize = 64 * 1024;
const TIME: Duration = Duration::from_millis(500);

/// A scripted body, and how much of it was read.
struct Script {
    /// Sizes of the remaining frames, before the end.
    frames: Vec<usize>,
    /// The delay before each frame.
    pause: Duration,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    endless: bool,
    failing: bool,
    read: Arc<AtomicU64>,
    polls: Arc<AtomicU64>,
}

impl Script {
    fn of(frames: &[usize]) -> Self {
        Self {
            frames: frames.iter().rev().copied().collect(),
            pause: Duration::ZERO,
            sleep: None,
            endless: false,
            failing: false,
            read: Arc::default(),
            polls: Arc::default(),
        }
    }

    fn never() -> Self {
        Self {
            pause: Duration::from_secs(3600),
            ..Self::of(&[1])
        }
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.polls.fetch_add(1, Ordering::SeqCst);
        if !self.pause.is_zero() {
            let pause = self.pause;
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
            std::task::ready!(sleep.as_mut().poll(cx));
            self.sleep = None;
        }
        if self.failing {
            return Poll::Ready(Some(Err(std::io::Error::other("reset"))));
        }
        let size = match self.frames.last() {
            Some(size) if self.endless => *size,
            Some(_) => self.frames.pop().unwrap(),
            None => return Poll::Ready(None),
        };
        self.read.fetch_add(size as u64, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![0; size])))))
    }

    fn is_end_stream(&self) -> bool {
        // Like hyper's chunked bodies, which show the end only when it is read.
        false
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

fn layer(world: &World) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap())
}

fn inner()
-> impl Service<Request<Script>, Response = Response<String>, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ 'static {
    service_fn(|_: Request<Script>| async { Ok::<_, Infallible>(Response::default()) })
}

fn post(body: Script) -> Request<Script> {
    Request::post("/").body(body).unwrap()
}

/// Returns the response's `connection` header and the elapsed time.
async fn send(
    layer: &ValidateJwtSvidLayer,
    request: Request<Script>,
) -> (Option<String>, Duration) {
    let start = Instant::now();
    let response = layer.layer(inner()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 401);
    let header = response.headers().get(CONNECTION);
    let header = header.map(|value| value.to_str().unwrap().to_owned());
    (header, start.elapsed())
}

fn closed() -> Option<String> {
    Some("close".to_owned())
}

#[tokio::test(start_paused = true)]
async fn e11_a_body_within_the_limit_keeps_the_connection() {
    let world = World::new();
    for frames in [
        &[][..],
        &[0],
        &[1],
        &[LIMIT],
        &[LIMIT - 1, 1, 0],
        &[1024; 64],
    ] {
        let body = Script::of(frames);
        assert_eq!(
            send(&layer(&world), post(body)).await,
            (None, Duration::ZERO)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn e11_a_body_over_the_limit_closes() {
    let world = World::new();
    for frames in [&[LIMIT + 1][..], &[LIMIT, 1], &[1024; 100]] {
        let body = Script::of(frames);
        let read = body.read.clone();
        assert_eq!(
            send(&layer(&world), post(body)).await,
            (closed(), Duration::ZERO)
        );
        assert!(read.load(Ordering::SeqCst) <= 66 * 1024, "{frames:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn e11_a_slow_body_closes_after_half_a_second() {
    let world = World::new();
    let (connection, took) = send(&layer(&world), post(Script::never())).await;
    assert_eq!(connection, closed());
    assert!(
        took >= TIME && took < TIME + Duration::from_millis(50),
        "{took:?}"
    );
    // Single bytes do not extend the time.
    let mut body = Script::of(&[1; 1000]);
    body.pause = Duration::from_millis(100);
    let (connection, took) = send(&layer(&world), post(body)).await;
    assert_eq!(connection, closed());
    assert!(
        took >= TIME && took < TIME + Duration::from_millis(50),
        "{took:?}"
    );
    // A body that ends just in time keeps the connection.
    let mut body = Script::of(&[1; 3]);
    body.pause = Duration::from_millis(100);
    assert_eq!(
        send(&layer(&world), post(body)).await,
        (None, Duration::from_millis(400))
    );
}

#[tokio::test]
async fn e11_endless_empty_frames_end_in_time() {
    let world = World::new();
    let layer = layer(&world).drain_rejected(1024, Duration::from_millis(20));
    let mut body = Script::of(&[0]);
    body.endless = true;
    let asked = timeout(Duration::from_secs(10), send(&layer, post(body))).await;
    assert_eq!(asked.unwrap().0, closed());
}

#[tokio::test(start_paused = true)]
async fn e11_a_failed_body_closes_the_connection() {
    let world = World::new();
    let mut body = Script::of(&[]);
    body.failing = true;
    assert_eq!(send(&layer(&world), post(body)).await.0, closed());
}

#[tokio::test(start_paused = true)]
async fn e11_the_limits_are_configurable() {
    let world = World::new();
    let layer = layer(&world).drain_rejected(10, Duration::from_secs(3));
    assert_eq!(send(&layer, post(Script::of(&[10]))).await.0, None);
    assert_eq!(send(&layer, post(Script::of(&[11]))).await.0, closed());
    let took = send(&layer, post(Script::never())).await.1;
    assert!(
        took >= Duration::from_secs(3) && took < Duration::from_secs(4),
        "{took:?}"
    );
    let none = layer.drain_rejected(0, TIME);
    let body = Script::of(&[1]);
    let polls = body.polls.clone();
    assert_eq!(send(&none, post(body)).await, (closed(), Duration::ZERO));
    assert_eq!(polls.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn e11_expect_continue_and_long_bodies_are_not_polled() {
    let world = World::new();
    for (name, value) in [
        (EXPECT, "100-continue"),
        (EXPECT, "100-Continue"),
        (EXPECT, "x, 100-continue"),
        (CONTENT_LENGTH, "65537"),
        (CONTENT_LENGTH, "18446744073709551615"),
    ] {
        let mut request = post(Script::of(&[1]));
        request
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
        let polls = request.body().polls.clone();
        assert_eq!(
            send(&layer(&world), request).await,
            (closed(), Duration::ZERO)
        );
        assert_eq!(polls.load(Ordering::SeqCst), 0, "{value}");
    }
    let mut request = post(Script::of(&[LIMIT]));
    request
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from_static("65536"));
    assert_eq!(send(&layer(&world), request).await.0, None);
}

#[tokio::test(start_paused = true)]
async fn e11_http2_responds_at_once() {
    let world = World::new();
    for version in [Version::HTTP_2, Version::HTTP_3] {
        let mut request = post(Script::never());
        *request.version_mut() = version;
        let polls = request.body().polls.clone();
        assert_eq!(send(&layer(&world), request).await, (None, Duration::ZERO));
        assert_eq!(polls.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn e11_a_drain_holds_no_inner_permit() {
    let world = World::new();
    let limited = ConcurrencyLimit::new(inner(), 1);
    let policy = Allow::id(OPS).unwrap();
    let mut plain = layer(&world).layer(limited.clone());
    let wait = UnknownKeyWait::new(Duration::from_secs(1));
    let mut waiting = layer(&world)
        .wait_for_unknown_keys(wait)
        .layer(limited.clone());
    let mut narrow = AllowCallersLayer::new(policy).layer(limited.clone());
    let first = plain.ready().await.unwrap().call(post(Script::never()));
    let free = async || {
        let ready = limited.clone();
        let mut ready = ready;
        let ready = timeout(Duration::from_millis(1), ready.ready()).await;
        assert!(ready.is_ok());
    };
    free().await;
    let second = waiting.ready().await.unwrap().call(post(Script::never()));
    free().await;
    let third = narrow.ready().await.unwrap().call(post(Script::never()));
    free().await;
    for (response, status) in [(first.await, 401), (third.await, 500)] {
        let response = response.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()[CONNECTION], "close");
    }
    assert_eq!(second.await.unwrap().headers()[CONNECTION], "close");
}

/// Without a runtime or timers, only the available part of the body is read.
#[test]
fn e11_without_timers_nothing_panics() {
    let world = World::new();
    let without_time = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let _inside = without_time.enter();
    for _ in 0..2 {
        let service = layer(&world).layer(service_fn(|_: Request<Pending>| async {
            Ok::<_, Infallible>(Response::<String>::default())
        }));
        let request = Request::post("/").body(Pending).unwrap();
        let response = futures_util::FutureExt::now_or_never(service.oneshot(request));
        let response = response.expect("the call is ready").unwrap();
        assert_eq!(response.headers()[CONNECTION], "close");
    }
}

struct Pending;

impl Body for Pending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

#[test]
fn e11_requests_without_bodies_allocate_no_more() {
    let world = World::new();
    let mut service = layer(&world).layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::<String>::default())
    }));
    let mut count = |version, body: &str| {
        let mut call = || {
            let mut request = Request::new(body.to_owned());
            *request.version_mut() = version;
            let before = measure(|| ()).count_total;
            let counted = measure(|| {
                let response = futures_util::FutureExt::now_or_never(service.call(request));
                assert_eq!(response.unwrap().unwrap().status(), 401);
            });
            counted.count_total - before
        };
        call();
        call()
    };
    let http2 = count(Version::HTTP_2, "");
    assert_eq!(count(Version::HTTP_11, ""), http2);
    assert_eq!(count(Version::HTTP_2, "body"), http2);
    assert!(
        count(Version::HTTP_11, "body") > http2,
        "a drain does not allocate"
    );
}

// === Over sockets ===

/// Sends requests over one connection, each body in pieces, and reads only after everything is written,
/// like clients that expect no early response. Returns how many got a 401.
async fn hammer(at: &At, requests: usize, size: usize, chunked: bool, path: &str) -> usize {
    let mut answered = 0;
    let mut stream = TcpStream::connect(at.tcp).await.unwrap();
    let body = vec![b'x'; size];
    for _ in 0..requests {
        let framing = if chunked {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!("Content-Length: {size}")
        };
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n");
        let mut written = stream.write_all(head.as_bytes()).await.is_ok();
        for piece in body.chunks(10_000) {
            if chunked {
                let size = format!("{:x}\r\n", piece.len());
                written = written && stream.write_all(size.as_bytes()).await.is_ok();
            }
            written = written && stream.write_all(piece).await.is_ok();
            if chunked {
                written = written && stream.write_all(b"\r\n").await.is_ok();
            }
            tokio::task::yield_now().await;
        }
        if chunked {
            written = written && stream.write_all(b"0\r\n\r\n").await.is_ok();
        }
        match written.then_some(read_head(&mut stream).await) {
            Some(Some(head)) => {
                assert!(head.starts_with("HTTP/1.1 401"), "{head}");
                answered += 1;
                if head.contains("connection: close") {
                    stream = TcpStream::connect(at.tcp).await.unwrap();
                }
            }
            _ => stream = TcpStream::connect(at.tcp).await.unwrap(),
        }
    }
    answered
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(Duration::from_secs(10), stream.read_u8()).await;
        head.push(byte.ok()?.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

#[tokio::test]
async fn e11_raw_keep_alive_clients_lose_no_rejection() {
    let world = World::new();
    let at = serve(layer(&world).layer(service_fn(who))).await;
    for size in [1, 8 * 1024, 60_000, LIMIT] {
        for chunked in [false, true] {
            let answered = hammer(&at, 100, size, chunked, "/").await;
            assert_eq!(answered, 100, "{size} bytes, chunked: {chunked}");
        }
    }
}

/// gRPC-Web and the async layer, over HTTP/1.1.
#[tokio::test]
async fn e11_grpc_web_loses_no_rejection() {
    let world = World::new();
    let wait = UnknownKeyWait::new(Duration::from_millis(10));
    let layer = layer(&world)
        .protocol(tower_spiffe::server::Protocol::Grpc)
        .wait_for_unknown_keys(wait);
    let at = serve(layer.layer(service_fn(who))).await;
    let mut stream = TcpStream::connect(at.tcp).await.unwrap();
    let head = "POST /t.Talk/Say HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\
                Content-Type: application/grpc-web+proto\r\n\r\n";
    for _ in 0..100 {
        stream.write_all(head.as_bytes()).await.unwrap();
        for piece in [[b'x'; 10_000]; 6] {
            stream.write_all(&piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.contains("grpc-status: 16"), "{head}");
    }
}

#[tokio::test]
async fn e11_axum_extractors_lose_no_rejection() {
    use axum::Router;
    use axum::routing::post;
    use tower_spiffe::verify::VerifiedSvid;

    let world = World::new();
    let optional =
        ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::trust_domain("x").unwrap());
    let router = Router::new()
        .route("/who", post(async |_: VerifiedSvid, body: String| body))
        .route(
            "/ops",
            post(async |body: String| body).layer(optional.allow_callers(Allow::id(OPS).unwrap())),
        );
    let at = crate::axum::serve(optional.layer(router)).await;
    for path in ["/who", "/ops"] {
        for chunked in [false, true] {
            let answered = hammer(&at, 100, 60_000, chunked, path).await;
            assert_eq!(answered, 100, "{path}, chunked: {chunked}");
        }
    }
}

#[tokio::test]
async fn e11_reqwest_loses_no_rejection() {
    let world = World::new();
    let at = serve(layer(&world).layer(service_fn(who))).await;
    let client = reqwest::Client::builder().http1_only().build().unwrap();
    for size in [1, 60_000, LIMIT] {
        for _ in 0..100 {
            let request = client
                .post(format!("http://{}/", at.tcp))
                .body(vec![0; size]);
            assert_eq!(request.send().await.unwrap().status(), 401, "{size} bytes");
        }
    }
}

#[tokio::test]
async fn e11_expect_continue_gets_no_100() {
    let world = World::new();
    let at = serve(layer(&world).layer(service_fn(who))).await;
    let mut stream = TcpStream::connect(at.tcp).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
    assert!(head.contains("connection: close"), "{head}");
    let mut rest = Vec::new();
    let end = timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
    assert_eq!((end.unwrap().unwrap(), rest.len()), (0, 0));
}
