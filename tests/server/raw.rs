//! Raw bytes on the wire, which no HTTP client would send.

use std::time::Duration;

use http::HeaderValue;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tower::limit::ConcurrencyLimit;
use tower::{Layer, service_fn};
use tower_spiffe::server::{Allow, UnknownKeyWait, ValidateJwtSvidLayer};

use crate::hyper::{serve, who};
use crate::loopback::{At, get, send};
use crate::support::{WEB, World};

async fn server(world: &World) -> At {
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain());
    serve(layer.layer(service_fn(who))).await
}

/// Sends these bytes, and returns everything until the server closes. The last request asks the
/// server to close the connection.
async fn talk(at: &At, bytes: &str) -> String {
    let mut stream = TcpStream::connect(at.tcp).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(10), reading).await;
    read.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

/// Returns the statuses of all responses.
fn statuses(answers: &str) -> Vec<&str> {
    let answers = answers
        .match_indices("HTTP/1.")
        .map(|(at, _)| &answers[at..]);
    answers
        .map(|answer| &answer["HTTP/1.1 ".len()..][..3])
        .collect()
}

#[tokio::test]
async fn a18_http1_credential_is_one_header_line() {
    let world = World::new();
    let at = server(&world).await;
    let token = world.issuer.token(WEB);
    for (lines, status) in [
        (format!("Authorization: Bearer {token}\r\n"), "200"),
        // Whitespace around a value is not part of it (RFC 9110 section 5.5).
        (format!("aUTHORIZATION:\t Bearer  {token} \t\r\n"), "200"),
        (String::new(), "401"),
        (
            format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n"),
            "400",
        ),
        (
            format!("Authorization: Bearer {token}\r\nX: y\r\nauthorization: Basic eA==\r\n"),
            "400",
        ),
        (
            format!("Authorization: Bearer {token}, Bearer {token}\r\n"),
            "400",
        ),
        (format!("Authorization: Bearer\t{token}\r\n"), "400"),
        (format!("Authorization: Bearer {token}\u{e9}\r\n"), "400"),
        // A folded line, or a name with a space, is invalid HTTP.
        (format!("Authorization: Bearer\r\n {token}\r\n"), "400"),
        (format!("Authorization : Bearer {token}\r\n"), "400"),
        (format!("Authorization: Bearer {token}\0\r\n"), "400"),
        (format!("Proxy-Authorization: Bearer {token}\r\n"), "401"),
    ] {
        let answer = talk(
            &at,
            &format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n"),
        )
        .await;
        assert_eq!(statuses(&answer), [status], "{lines}: {answer}");
        assert!(!answer.contains(&token[..40]), "{answer}");
    }
}

/// A request without a credential that closes the connection.
const LAST: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a20_no_method_or_target_bypasses_the_layer() {
    let world = World::new();
    let at = server(&world).await;
    let websocket = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    let h2c = "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n";
    for line in [
        "GET /",
        "get /",
        "HEAD /",
        "OPTIONS *",
        "TRACE /",
        "PROPFIND /",
        "PRI /",
        "CONNECT other:443",
        "GET http://other/x",
        "GET //",
        "GET /?access_token=x",
        "POST /%2e%2e/",
    ] {
        for (more, last) in [
            ("Connection: close\r\n", ""),
            (websocket, LAST),
            (h2c, LAST),
        ] {
            let head = format!("{line} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
            let answer = talk(&at, &format!("{head}{last}")).await;
            let statuses = statuses(&answer);
            assert!(!statuses.is_empty(), "{head}");
            assert!(statuses.iter().all(|it| *it == "401"), "{head} {answer}");
        }
    }
}

#[tokio::test]
async fn bytes_after_rejected_head_are_not_a_request() {
    let world = World::new();
    let at = server(&world).await;
    let token = world.issuer.token(WEB);
    let good = format!("GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    assert_eq!(
        statuses(&talk(&at, &format!("{good}{LAST}")).await),
        ["200", "401"]
    );
    let post = "POST / HTTP/1.1\r\nHost: x\r\n";
    for rejected in [
        // A body that looks like a valid request.
        format!("{post}Content-Length: {}\r\n\r\n{good}", good.len()),
        format!(
            "{post}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{good}\r\n0\r\n\r\n",
            good.len()
        ),
        // Trailers are not part of the head.
        format!(
            "{post}Transfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n\
             3\r\nabc\r\n0\r\nAuthorization: Bearer {token}\r\n\r\n"
        ),
        // `100 Continue` is not sent for a rejected request.
        format!("{post}Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"),
    ] {
        let answer = talk(&at, &format!("{rejected}{LAST}")).await;
        let statuses = statuses(&answer);
        assert!(!statuses.is_empty(), "{rejected}");
        assert!(
            statuses.iter().all(|it| *it == "401"),
            "{rejected} {answer}"
        );
    }
}

#[tokio::test]
async fn a18_http2_whitespace_is_part_of_a_value() {
    let world = World::new();
    let at = server(&world).await;
    let token = world.issuer.token(WEB);
    for (value, status) in [
        (format!("Bearer {token}"), 200),
        (format!(" Bearer {token}"), 400),
        (format!("Bearer {token} "), 400),
        (format!("Bearer {token}\t"), 400),
    ] {
        let request = get("/", Some(&HeaderValue::from_str(&value).unwrap()));
        let tcp = TcpStream::connect(at.tcp).await.unwrap();
        let answer = send(tcp, true, request).await;
        assert_eq!(answer.status(), status);
    }
}

/// If not, a rejection would hold the permit of the inner service until its connection closes.
#[tokio::test]
async fn rejections_release_the_permit_on_open_connections() {
    let world = World::new();
    let limited = ConcurrencyLimit::new(service_fn(who), 1);
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain());
    let waiting = layer
        .clone()
        .wait_for_unknown_keys(UnknownKeyWait::new(Duration::from_millis(1)));
    for at in [
        serve(layer.layer(limited.clone())).await,
        serve(waiting.layer(limited)).await,
    ] {
        let mut stream = TcpStream::connect(at.tcp).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 401");

        let other = at.status(get("/", Some(&world.bearer(WEB))));
        let other = tokio::time::timeout(Duration::from_secs(10), other).await;
        assert_eq!(other, Ok(200));
        drop(stream);
    }
}
