//! An agent at a named pipe, as SPIRE has on Windows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::net::windows::named_pipe::{ClientOptions, NamedPipeServer, ServerOptions};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{JwtSource, Validator};

use crate::support::*;

const ERROR_PIPE_BUSY: i32 = 231;

fn pipe_name(test: &str) -> String {
    format!(r"\\.\pipe\tower-spiffe-{}-{test}", std::process::id())
}

/// Forwards connections to the agent, which listens on TCP.
async fn forward(mut pipe: NamedPipeServer, name: String, agent: SocketAddr) {
    loop {
        pipe.connect().await.unwrap();
        let next = ServerOptions::new().create(&name).unwrap();
        let mut connected = std::mem::replace(&mut pipe, next);
        tokio::spawn(async move {
            let mut agent = TcpStream::connect(agent).await.unwrap();
            let _ = copy_bidirectional(&mut connected, &mut agent).await;
        });
    }
}

#[tokio::test]
async fn named_pipe_carries_keys_and_tokens() {
    let agent = FakeAgent::start_tcp(TD).await.unwrap();
    let name = pipe_name("carries");
    let pipe = ServerOptions::new().create(&name).unwrap();
    let address = agent.endpoint().tcp_address().unwrap();
    let server = tokio::spawn(forward(pipe, name.clone(), address));
    let dial = move || {
        let name = name.clone();
        async move { ClientOptions::new().open(name) }
    };
    let source = JwtSource::builder().connector(dial).build().await.unwrap();
    let validator = Validator::builder(source.clone()).audience(AUD);
    let validator = validator.build().unwrap();
    for _ in 0..2 {
        let svid = source.fetch_jwt_svid([AUD]).await.unwrap();
        validator.validate(svid.token()).unwrap();
        // The new key arrives through the pipe too.
        let new = agent.rotate_now();
        let has_new = || {
            let bundle = source.bundle_for_trust_domain(&td(TD));
            bundle.is_ok_and(|bundle| bundle.authority(&new).is_some())
        };
        eventually("the new key", has_new).await;
    }
    source.shutdown().await;
    server.abort();
}

#[tokio::test]
async fn busy_named_pipe_is_retried() {
    let agent = FakeAgent::start_tcp(TD).await.unwrap();
    let name = pipe_name("busy");
    // The only instance of the pipe belongs to another client.
    let pipe = ServerOptions::new().create(&name).unwrap();
    let other = ClientOptions::new().open(&name).unwrap();
    let busy = Arc::new(AtomicUsize::new(0));
    let dial = {
        let (name, busy) = (name.clone(), busy.clone());
        move || {
            let opened = ClientOptions::new().open(&name);
            if let Err(error) = &opened {
                assert_eq!(error.raw_os_error(), Some(ERROR_PIPE_BUSY), "{error}");
                busy.fetch_add(1, Ordering::SeqCst);
            }
            async move { opened }
        }
    };
    let source = JwtSource::builder()
        .connector(dial)
        .reconnect_backoff(millis(1), millis(5))
        .build_lazy()
        .unwrap();
    eventually("a busy pipe", || busy.load(Ordering::SeqCst) >= 2).await;
    assert!(!source.is_ready());
    let address = agent.endpoint().tcp_address().unwrap();
    let server = tokio::spawn(forward(pipe, name, address));
    eventually("the bundles", || source.is_ready()).await;
    source.shutdown().await;
    server.abort();
    drop(other);
}
