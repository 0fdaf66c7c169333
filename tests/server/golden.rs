//! Refusals as they stand on the wire, byte for byte.

use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::{Layer, service_fn};
use tower_spiffe::bundle::CannotJudge;
use tower_spiffe::server::{Allow, ValidateJwtSvidLayer};

use crate::hyper::{serve, who};
use crate::loopback::{At, send};
use crate::support::{OPS, WEB, World};

async fn start(world: &World) -> At {
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap());
    serve(layer.layer(service_fn(who))).await
}

/// What an HTTP/1.1 server writes, but for the line that tells the time.
async fn http1(at: &At, lines: &str) -> String {
    let mut stream = TcpStream::connect(at.tcp).await.unwrap();
    let request = format!("{lines}host: reports.test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let date = answer.find("date: ").unwrap();
    let end = date + answer[date..].find("\r\n").unwrap() + 2;
    answer.replace_range(date..end, "");
    answer
}

fn get(authorization: &str) -> String {
    format!("GET / HTTP/1.1\r\nauthorization: {authorization}\r\n")
}

#[tokio::test]
async fn http1_refusals_byte_for_byte() {
    let world = World::new();
    let at = start(&world).await;
    assert_eq!(
        http1(&at, "GET / HTTP/1.1\r\n").await,
        "HTTP/1.1 401 Unauthorized\r\n\
         www-authenticate: Bearer realm=\"spiffe\"\r\n\
         connection: close\r\n\
         content-length: 0\r\n\r\n"
    );
    assert_eq!(
        http1(&at, &get("Bearer a b")).await,
        "HTTP/1.1 400 Bad Request\r\n\
         www-authenticate: Bearer realm=\"spiffe\", error=\"invalid_request\"\r\n\
         connection: close\r\n\
         content-length: 0\r\n\r\n"
    );
    assert_eq!(
        http1(&at, &get("Bearer a.b.c")).await,
        "HTTP/1.1 401 Unauthorized\r\n\
         www-authenticate: Bearer realm=\"spiffe\", error=\"invalid_token\", \
         error_description=\"the token is malformed\"\r\n\
         connection: close\r\n\
         content-length: 0\r\n\r\n"
    );
    let ops = world.bearer(OPS);
    assert_eq!(
        http1(&at, &get(ops.to_str().unwrap())).await,
        "HTTP/1.1 403 Forbidden\r\n\
         www-authenticate: Bearer realm=\"spiffe\", error=\"insufficient_scope\"\r\n\
         connection: close\r\n\
         content-length: 0\r\n\r\n"
    );
    world.bundles.cannot_judge(CannotJudge::NotReady);
    assert_eq!(
        http1(&at, &get(ops.to_str().unwrap())).await,
        "HTTP/1.1 503 Service Unavailable\r\n\
         retry-after: 5\r\n\
         connection: close\r\n\
         content-length: 0\r\n\r\n"
    );
}

#[tokio::test]
async fn grpc_web_refusals_byte_for_byte_in_http1() {
    let world = World::new();
    let at = start(&world).await;
    for kind in ["grpc-web+proto", "grpc-web-text"] {
        let request = format!("POST /r.R/M HTTP/1.1\r\ncontent-type: application/{kind}\r\n");
        assert_eq!(
            http1(&at, &request).await,
            format!(
                "HTTP/1.1 200 OK\r\n\
                 content-type: application/{kind}\r\n\
                 grpc-status: 16\r\n\
                 grpc-message: a bearer token is required\r\n\
                 connection: close\r\n\
                 content-length: 0\r\n\r\n"
            )
        );
    }
    // Over HTTP/1.1 there is no gRPC: a caller does not choose status 200 for his refusal.
    let request = "POST /r.R/M HTTP/1.1\r\ncontent-type: application/grpc\r\n";
    assert!(
        http1(&at, request)
            .await
            .starts_with("HTTP/1.1 401 Unauthorized\r\n")
    );
}

/// The header block of an HTTP/2 answer, but for the time, and its body.
async fn http2(at: &At, request: Request<Bytes>) -> String {
    let stream = TcpStream::connect(at.tcp).await.unwrap();
    let mut response = send(stream, true, request).await;
    response.headers_mut().remove("date");
    let mut text = format!(":status: {}\n", response.status().as_u16());
    for (name, value) in response.headers() {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    text + std::str::from_utf8(response.body()).unwrap()
}

fn request(method: Method, headers: &[(&'static str, HeaderValue)]) -> Request<Bytes> {
    let mut request = Request::builder()
        .uri("/r.R/M")
        .method(method)
        .body(Bytes::new())
        .unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.clone());
    }
    request
}

#[tokio::test]
async fn http2_refusals_byte_for_byte() {
    let world = World::new();
    let at = start(&world).await;
    let authorization = |value| [("authorization", value)];
    assert_eq!(
        http2(&at, request(Method::GET, &[])).await,
        ":status: 401\nwww-authenticate: Bearer realm=\"spiffe\"\n"
    );
    assert_eq!(
        http2(&at, request(Method::GET, &authorization(world.bearer(OPS)))).await,
        ":status: 403\n\
         www-authenticate: Bearer realm=\"spiffe\", error=\"insufficient_scope\"\n"
    );
    world.bundles.cannot_judge(CannotJudge::Closed);
    assert_eq!(
        http2(&at, request(Method::GET, &authorization(world.bearer(OPS)))).await,
        ":status: 503\nretry-after: 5\n"
    );
}

#[tokio::test]
async fn grpc_refusals_byte_for_byte() {
    let world = World::new();
    let at = start(&world).await;
    let grpc = (
        "content-type",
        HeaderValue::from_static("application/grpc+proto"),
    );
    let ask = |authorization| {
        let headers = [grpc.clone(), ("authorization", authorization)];
        http2(&at, request(Method::POST, &headers))
    };
    let expected = |code, message| {
        format!(
            ":status: 200\ncontent-type: application/grpc\ngrpc-status: {code}\n\
             grpc-message: {message}\n"
        )
    };
    assert_eq!(
        ask(HeaderValue::from_static("Bearer a b")).await,
        expected(16, "the header does not carry exactly one bearer token")
    );
    assert_eq!(
        ask(world.bearer(OPS)).await,
        expected(7, "the caller is not allowed")
    );
    world.bundles.cannot_judge(CannotJudge::Stale);
    assert_eq!(
        ask(world.bearer(WEB)).await,
        expected(14, "callers cannot be authenticated now")
    );
}
