//! Responses that end when the token expires. They end with an error, unless the client reads a gRPC
//! status.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::clock::{Clock, SystemClock, UnixTime};
use tower_spiffe::server::{Allow, EndAtExpiryLayer, TokenExpired, ValidateJwtSvidLayer};
use tower_spiffe::testing::PausedClock;

use crate::loopback::stream;
use crate::support::{WEB, World, bearer, with_authorization};

const START: i64 = 1_790_000_000;
const MESSAGE: &[u8] = b"\0\0\0\0\x04tick";
const WAIT: Duration = Duration::from_secs(20);

/// An uploaded file with a user-defined type; it never ends.
fn file(kind: HeaderValue, length: Option<u64>) -> Response<File> {
    let first = tokio_stream::once(Ok(Frame::data(Bytes::from_static(MESSAGE))));
    let body: File = StreamBody::new(Box::pin(first.chain(tokio_stream::pending())));
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", kind);
    if let Some(length) = length {
        response
            .headers_mut()
            .insert("content-length", length.into());
    }
    response
}

type File = StreamBody<
    std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>,
>;

/// Returns how the response ends after its first message: cleanly, with a status, or with an error.
async fn end(version: Version, method: Method, asked: &str, answered: &'static str) -> String {
    let clock = std::sync::Arc::new(PausedClock::new(UnixTime::from_secs(START)));
    let world = World::with(|builder| builder.clock(clock.clone()));
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
        .on_reject(|_: &_, _: &http::request::Parts| unreachable!());
    let inner = service_fn(move |_: Request<String>| async move {
        Ok::<_, Infallible>(file(HeaderValue::from_static(answered), None))
    });
    let service = layer.layer(EndAtExpiryLayer::new(&world.validator).layer(inner));
    let claims = json!({ "exp": START + 1, "iat": START });
    let mut request = with_authorization(&bearer(&world.issuer.token_with(WEB, claims)));
    *request.version_mut() = version;
    *request.method_mut() = method;
    let asked = HeaderValue::from_str(asked).unwrap();
    request.headers_mut().insert("content-type", asked);
    let mut body = service.oneshot(request).await.unwrap().into_body();
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        MESSAGE
    );
    match body.frame().await {
        None => "clean".to_owned(),
        Some(Err(error)) if error.is::<TokenExpired>() => "error".to_owned(),
        Some(Err(error)) => panic!("{error}"),
        Some(Ok(frame)) => match frame.into_trailers() {
            Ok(trailers) => format!("trailers {}", trailers["grpc-status"].to_str().unwrap()),
            Err(frame) => format!("frame {:#x}", frame.into_data().unwrap()[0]),
        },
    }
}

#[tokio::test(start_paused = true)]
async fn e16_a_status_needs_grpc_on_both_sides() {
    const GRPC: &str = "application/grpc";
    const WEB_PROTO: &str = "application/grpc-web+proto";
    const PLAIN: &str = "application/octet-stream";
    let (one, two) = (Version::HTTP_11, Version::HTTP_2);
    for (version, method, asked, answered, expected) in [
        (two, Method::POST, GRPC, GRPC, "trailers 16"),
        (
            Version::HTTP_3,
            Method::POST,
            GRPC,
            "application/grpc+proto",
            "trailers 16",
        ),
        (
            one,
            Method::POST,
            "application/grpc-web",
            WEB_PROTO,
            "frame 0x80",
        ),
        (two, Method::POST, WEB_PROTO, WEB_PROTO, "frame 0x80"),
        // Over HTTP/1.1, a client does not notice missing trailers.
        (one, Method::POST, GRPC, GRPC, "error"),
        (Version::HTTP_10, Method::POST, GRPC, GRPC, "error"),
        // Only the request or only the response is gRPC.
        (one, Method::GET, PLAIN, GRPC, "error"),
        (two, Method::GET, PLAIN, GRPC, "error"),
        (two, Method::POST, PLAIN, GRPC, "error"),
        (one, Method::POST, PLAIN, WEB_PROTO, "error"),
        (two, Method::GET, GRPC, GRPC, "error"),
        (one, Method::GET, WEB_PROTO, WEB_PROTO, "error"),
        (two, Method::POST, GRPC, PLAIN, "error"),
        (one, Method::POST, WEB_PROTO, PLAIN, "error"),
        // The request and the response are different forms of gRPC.
        (two, Method::POST, GRPC, WEB_PROTO, "error"),
        (two, Method::POST, WEB_PROTO, GRPC, "error"),
    ] {
        let what = format!("{version:?} {method} {asked} {answered}");
        assert_eq!(
            end(version, method, asked, answered).await,
            expected,
            "{what}"
        );
    }
}

/// A file server: the path sets the type, the query sets the length.
async fn store() -> (World, SocketAddr) {
    let world = World::with(|builder| builder.leeway(Duration::ZERO));
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
        .on_reject(|_: &_, _: &http::request::Parts| unreachable!());
    let inner = service_fn(|request: Request<Incoming>| async move {
        let kind = HeaderValue::from_str(&request.uri().path()[1..]).unwrap();
        let length = request.uri().query().map(|query| query.parse().unwrap());
        Ok::<_, Infallible>(file(kind, length))
    });
    let service = layer.layer(EndAtExpiryLayer::new(&world.validator).layer(inner));
    let at = crate::hyper::serve(service).await;
    (world, at.tcp)
}

fn soon(world: &World) -> HeaderValue {
    let exp = SystemClock::shared().now().secs() + 2;
    bearer(&world.issuer.token_with(WEB, json!({ "exp": exp })))
}

#[tokio::test]
async fn e16_clients_notice_every_cut_download() {
    let (world, at) = store().await;
    let token = soon(&world);
    let mut downloads = tokio::task::JoinSet::new();
    for http2 in [false, true] {
        for method in [Method::GET, Method::POST] {
            for path in [
                "/application/octet-stream",
                "/application/octet-stream?1000",
                "/application/grpc",
                "/application/grpc?1000",
                "/application/grpc-web",
                "/application/grpc-web-text+proto",
            ] {
                let mut request = Request::new(Bytes::new());
                *request.uri_mut() = path.parse().unwrap();
                *request.method_mut() = method.clone();
                request.headers_mut().insert("authorization", token.clone());
                downloads.spawn(async move {
                    let io = TcpStream::connect(at).await.unwrap();
                    let response = stream(io, http2, request).await;
                    assert_eq!(response.status(), 200);
                    let whole = timeout(WAIT, response.into_body().collect()).await;
                    let whole = whole.expect("the response does not end");
                    assert!(whole.is_err(), "{path} over HTTP/2: {http2}");
                });
            }
        }
    }
    while let Some(download) = downloads.join_next().await {
        download.unwrap();
    }
}

/// The documented exception: nothing on the wire can show the cut.
#[tokio::test]
async fn e16_http10_without_length_ends_with_the_connection() {
    let (world, at) = store().await;
    for (path, complete) in [
        ("/application/octet-stream", true),
        ("/application/octet-stream?1000", false),
    ] {
        let mut io = TcpStream::connect(at).await.unwrap();
        let token = soon(&world);
        let token = token.to_str().unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nauthorization: {token}\r\n\r\n");
        io.write_all(request.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        let _ = timeout(WAIT, io.read_to_end(&mut text)).await.unwrap();
        let text = String::from_utf8_lossy(&text).to_lowercase();
        assert!(text.starts_with("http/1.0 200"), "{text}");
        assert!(!text.contains("transfer-encoding"), "{text}");
        assert_eq!(!text.contains("content-length: 1000"), complete, "{text}");
        assert!(text.ends_with("tick"), "{text}");
    }
}

#[tokio::test]
async fn e16_complete_responses_are_unchanged() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain());
    let inner = service_fn(|_: Request<String>| async {
        let mut response = Response::new(Full::<Bytes>::from("whole"));
        let kind = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert("content-type", kind);
        response.headers_mut().insert("content-length", 5.into());
        Ok::<_, Infallible>(response)
    });
    let service = layer.layer(EndAtExpiryLayer::new(&world.validator).layer(inner));
    let response = service.oneshot(world.request(WEB)).await.unwrap();
    // A download with a gRPC type keeps its length.
    assert_eq!(response.headers()["content-length"], "5");
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "whole");
}
