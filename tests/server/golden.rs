//! Rejections on the wire, byte for byte: every reason in every protocol.

use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use hyper::body::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::{Layer, service_fn};
use tower_spiffe::server::{Allow, AllowCallersLayer, Protocol, ValidateJwtSvidLayer};

use crate::hyper::{serve, who};
use crate::loopback::{At, stream};
use crate::rejections::{Case, UNAVAILABLE, cases};
use crate::support::{OPS, WEB, World};

async fn start(world: &World) -> At {
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap())
        .protocol(Protocol::Auto);
    serve(layer.layer(service_fn(who))).await
}

/// A form of a request, and the form of its response.
#[derive(Debug, Clone, Copy)]
struct Form {
    http2: bool,
    content_type: Option<&'static str>,
    /// For gRPC and gRPC-Web.
    answered: Option<&'static str>,
}

const FORMS: [Form; 7] = [
    form(false, None, None),
    form(true, None, None),
    form(
        true,
        Some("application/grpc+proto"),
        Some("application/grpc"),
    ),
    in_kind(false, "application/grpc-web+proto"),
    in_kind(true, "application/grpc-web+proto"),
    in_kind(false, "application/grpc-web-text"),
    in_kind(true, "application/grpc-web-text"),
];

const fn form(
    http2: bool,
    content_type: Option<&'static str>,
    answered: Option<&'static str>,
) -> Form {
    Form {
        http2,
        content_type,
        answered,
    }
}

const fn in_kind(http2: bool, content_type: &'static str) -> Form {
    form(http2, Some(content_type), Some(content_type))
}

impl Form {
    /// Returns the expected response to this case, without the date.
    fn expected(self, case: &Case) -> String {
        let reason = match case.status {
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            503 => "Service Unavailable",
            other => panic!("{other}"),
        };
        let (status, reason, headers) = match self.answered {
            Some(kind) => {
                let headers = format!(
                    "content-type: {kind}\r\ngrpc-status: {}\r\ngrpc-message: {}\r\n",
                    case.grpc_status, case.grpc_message
                );
                (200, "OK", headers)
            }
            None => {
                let headers = match case.challenge {
                    Some(challenge) => format!("www-authenticate: {challenge}\r\n"),
                    None => "retry-after: 5\r\n".to_owned(),
                };
                (case.status, reason, headers)
            }
        };
        if self.http2 {
            format!(":status: {status}\r\n{headers}\r\n")
        } else {
            let end = "connection: close\r\ncontent-length: 0\r\n\r\n";
            format!("HTTP/1.1 {status} {reason}\r\n{headers}{end}")
        }
    }

    /// Sends a request, and returns the response without the date.
    async fn send(self, at: &At, authorization: Option<&HeaderValue>) -> String {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = "/r.R/M".parse().unwrap();
        let headers = request.headers_mut();
        if let Some(kind) = self.content_type {
            headers.insert("content-type", HeaderValue::from_static(kind));
        }
        if let Some(value) = authorization {
            headers.insert("authorization", value.clone());
        }
        if self.content_type.is_some() {
            *request.method_mut() = Method::POST;
        }
        if self.http2 {
            http2(at, request).await
        } else {
            http1(at, &request).await
        }
    }
}

/// Returns what an HTTP/1.1 server writes, without the `date` line.
async fn http1(at: &At, request: &Request<Bytes>) -> String {
    let mut stream = TcpStream::connect(at.tcp).await.unwrap();
    let mut text = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    text.push_str("host: reports.test\r\nconnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let date = answer.find("date: ").unwrap();
    let end = date + answer[date..].find("\r\n").unwrap() + 2;
    answer.replace_range(date..end, "");
    answer
}

/// Returns the header block of an HTTP/2 response, without the date. Asserts that there is neither a
/// body nor trailers.
async fn http2(at: &At, request: Request<Bytes>) -> String {
    let io = TcpStream::connect(at.tcp).await.unwrap();
    let response = stream(io, true, request).await;
    assert!(response.body().is_end_stream(), "{response:?}");
    let mut text = format!(":status: {}\r\n", response.status().as_u16());
    for (name, value) in response.headers() {
        if name != "date" {
            text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
        }
    }
    text + "\r\n"
}

#[tokio::test]
async fn every_rejection_has_its_golden_response() {
    let world = World::new();
    let at = start(&world).await;
    let cases = cases(&world);
    for form in FORMS {
        for case in &cases {
            let answer = form.send(&at, case.authorization.as_ref()).await;
            assert_eq!(answer, form.expected(case), "{} in {form:?}", case.name);
        }
    }
    let good = world.bearer(WEB);
    for why in UNAVAILABLE {
        world.bundles.bundles_unavailable(why);
        let case = Case::bundles_unavailable(why, good.clone());
        for form in FORMS {
            let answer = form.send(&at, case.authorization.as_ref()).await;
            assert_eq!(answer, form.expected(&case), "{why} in {form:?}");
        }
    }
}

/// One response per form in full, so that not all expected texts are computed.
#[tokio::test]
async fn one_rejection_of_each_form_is_exact() {
    let world = World::new();
    let at = start(&world).await;
    let ops = world.bearer(OPS);
    let [http1, http2, grpc, web1, web2, ..] = FORMS;
    assert_eq!(
        http1.send(&at, Some(&ops)).await,
        "HTTP/1.1 403 Forbidden\r\n\
         www-authenticate: Bearer realm=\"spiffe\", error=\"insufficient_scope\"\r\n\
         connection: close\r\n\
         content-length: 0\r\n\r\n"
    );
    assert_eq!(
        http2
            .send(&at, Some(&HeaderValue::from_static("Bearer a.b.c")))
            .await,
        ":status: 401\r\n\
         www-authenticate: Bearer realm=\"spiffe\", error=\"invalid_token\", \
         error_description=\"the token is malformed\"\r\n\r\n"
    );
    assert_eq!(
        grpc.send(&at, Some(&ops)).await,
        ":status: 200\r\n\
         content-type: application/grpc\r\n\
         grpc-status: 7\r\n\
         grpc-message: the caller is not allowed\r\n\r\n"
    );
    assert_eq!(
        web1.send(&at, None).await,
        "HTTP/1.1 200 OK\r\n\
         content-type: application/grpc-web+proto\r\n\
         grpc-status: 16\r\n\
         grpc-message: a bearer token is required\r\n\
         connection: close\r\n\
         content-length: 0\r\n\r\n"
    );
    assert_eq!(
        web2.send(&at, None).await,
        ":status: 200\r\n\
         content-type: application/grpc-web+proto\r\n\
         grpc-status: 16\r\n\
         grpc-message: a bearer token is required\r\n\r\n"
    );
}

#[tokio::test]
async fn grpc_is_not_used_over_http1() {
    // A caller cannot choose status 200 for its rejection.
    let world = World::new();
    let at = start(&world).await;
    let grpc = form(false, Some("application/grpc"), None);
    for case in &cases(&world) {
        let answer = grpc.send(&at, case.authorization.as_ref()).await;
        assert_eq!(answer, grpc.expected(case), "{}", case.name);
    }
}

#[tokio::test]
async fn a_missing_layer_is_reported_in_every_form() {
    let world = World::new();
    let alone = AllowCallersLayer::new(Allow::id(WEB).unwrap()).protocol(Protocol::Auto);
    let at = serve(alone.layer(service_fn(who))).await;
    let [http1, http2, grpc, web1, ..] = FORMS;
    let good = world.bearer(WEB);
    const WHY: &str = "x-tower-spiffe-error: ValidateJwtSvidLayer is missing from the stack\r\n";
    for (form, begin, end) in [
        (
            http1,
            "HTTP/1.1 500 Internal Server Error\r\n",
            "connection: close\r\ncontent-length: 0\r\n\r\n",
        ),
        (http2, ":status: 500\r\n", "\r\n"),
        (
            grpc,
            ":status: 200\r\n\
             content-type: application/grpc\r\n\
             grpc-status: 13\r\n\
             grpc-message: ValidateJwtSvidLayer is missing from the stack\r\n",
            "\r\n",
        ),
        (
            web1,
            "HTTP/1.1 200 OK\r\n\
             content-type: application/grpc-web+proto\r\n\
             grpc-status: 13\r\n\
             grpc-message: ValidateJwtSvidLayer is missing from the stack\r\n",
            "connection: close\r\ncontent-length: 0\r\n\r\n",
        ),
    ] {
        let answer = form.send(&at, Some(&good)).await;
        assert_eq!(answer, format!("{begin}{WHY}{end}"), "{form:?}");
    }
}
