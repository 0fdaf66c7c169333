//! Clients that send the path of the Unix socket as `:authority`, like grpc-java and grpcio.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tower_spiffe::testing::FakeAgent;

use crate::support::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let mut frame = (content.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(content);
    frame
}

/// A call without header compression (RFC 7541 section 6.2.2), with an empty request message.
fn call(stream: u32, authority: &str) -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/SpiffeWorkloadAPI/FetchJWTBundles"),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("workload.spiffe.io", "true"),
    ];
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "the length must fit one byte");
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    [
        frame(HEADERS, 0x4, stream, &block),
        frame(DATA, 0x1, stream, &[0; 5]),
    ]
    .concat()
}

/// Returns the first frame of this stream that has content or ends it.
async fn answer(io: &mut UnixStream, stream: u32) -> (u8, Vec<u8>) {
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut content = vec![0; length];
        io.read_exact(&mut content).await.unwrap();
        let kind = head[3];
        if kind == GOAWAY || (of == stream && [DATA, RST_STREAM].contains(&kind)) {
            return (kind, content);
        }
    }
}

#[tokio::test]
async fn e31_socket_path_as_authority_is_accepted() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let endpoint = agent.endpoint().to_string();
    let path = endpoint.strip_prefix("unix://").unwrap();
    let encoded = path.replace('/', "%2F");
    let mut io = UnixStream::connect(path).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    io.write_all(&[preface, frame(4, 0, 0, &[])].concat())
        .await
        .unwrap();
    for (stream, authority) in (1..).step_by(2).zip([path, &encoded, "", "localhost"]) {
        io.write_all(&call(stream, authority)).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(10), answer(&mut io, stream));
        let (kind, content) = answer.await.unwrap();
        assert_eq!(kind, DATA, "{authority:?}");
        let text = String::from_utf8_lossy(&content);
        assert!(text.contains("spiffe://example.org"), "{authority:?}");
    }
}
