//! A client with retries, timeouts, buffers and limits outside and inside the layer that signs:
//! `cargo run --example client_stack`.
//!
//! Starts its own agent (`testing::FakeAgent`), revokes one of its keys, and calls a service of its own. In
//! production the source is `JwtSource::new().await?`.

#![allow(clippy::print_stdout, reason = "the output is for users")]

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::{Router, routing::get};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::retry::{Policy, RetryLayer};
use tower::util::MapResponseLayer;
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_spiffe::client::Plaintext;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{AddJwtSvidLayer, Allow, Audience, JwtSource};
use tower_spiffe::{ValidateJwtSvidLayer, Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";

/// Retries once after a 401, or after a 503 of a service that cannot verify callers now.
#[derive(Clone)]
struct RetryOnce(bool);

impl Policy<Request<Empty<Bytes>>, Response<Incoming>, Error> for RetryOnce {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<Empty<Bytes>>,
        result: &mut Result<Response<Incoming>, Error>,
    ) -> Option<Ready<()>> {
        let status = result.as_ref().map_or(StatusCode::OK, Response::status);
        let rejected =
            [StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE].contains(&status);
        (rejected && std::mem::take(&mut self.0)).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<Empty<Bytes>>) -> Option<Request<Empty<Bytes>>> {
        Some(request.clone())
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let agent = FakeAgent::start("example.org").await?;
    let reports = serve(agent.source().await?).await?;
    let source = agent.source().await?;

    let rejections = Arc::new(AtomicU32::new(0));
    let counted = rejections.clone();
    let audience = Audience::fixed(REPORTS).for_origin(&reports)?;
    let client = ServiceBuilder::new()
        // Outside the layer: layers that include the wait for a token, or repeat it.
        // A queue, for callers that do not want to wait for readiness.
        .buffer(64)
        // A timeout for the whole call, including retries and the wait for a token.
        .timeout(Duration::from_secs(10))
        // A limit for calls in flight, including those that wait for a token.
        .concurrency_limit(32)
        // Retries: each try gets the current token, and a retry after a 401 a new one. Inside the
        // layer they would send the rejected token again.
        .layer(RetryLayer::new(RetryOnce(true)))
        .layer(AddJwtSvidLayer::new(source, audience).allow_plaintext(Plaintext::Loopback))
        // Inside the layer: layers that reserve a resource, such as a place in a queue or a permit. While
        // a request waits for its token, the layer releases them.
        .layer(MapResponseLayer::new(
            move |response: Response<Incoming>| {
                let rejected = response.status() == StatusCode::UNAUTHORIZED;
                counted.fetch_add(u32::from(rejected), Ordering::Relaxed);
                response
            },
        ))
        .buffer(1)
        .concurrency_limit(2)
        .timeout(Duration::from_secs(2))
        .service(Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>());

    let call = || async {
        let request = Request::get(format!("{reports}/")).body(Empty::new())?;
        let response = client.clone().oneshot(request).await?;
        Ok::<_, Error>(response.status())
    };

    // A cold start: fifty concurrent calls share one fetch.
    let before = agent.counts().fetch_jwt_svid;
    let all = join_all((0..50).map(|_| call())).await;
    let served = all.iter().filter(|one| matches!(one, Ok(StatusCode::OK)));
    let (served, fetches) = (served.count(), agent.counts().fetch_jwt_svid - before);
    println!("50 cold callers: {served} served, {fetches} call to the agent");
    if (served, fetches) != (50, 1) {
        return Err("expected all to be served by one fetch".into());
    }

    // A key is revoked, so the service rejects the cached token. The retry gets a new token.
    let revoked = agent.issuer().signing_key_id();
    agent.rotate().await;
    agent.taint(&revoked);
    agent.issuer().revoke(&revoked);
    let mut rejected = 0;
    for _ in 0..200 {
        let status = call().await?;
        if status != StatusCode::OK {
            return Err(format!("{status} after a key was revoked").into());
        }
        rejected = rejections.load(Ordering::Relaxed);
        if rejected > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("a key was revoked: {rejected} rejected and retried, 0 failed");
    Ok(())
}

/// Starts the called service, which has its own source. Returns its origin.
async fn serve(source: JwtSource) -> Result<String, Error> {
    let validator = Validator::builder(source).audience(REPORTS).build()?;
    let who = async |caller: VerifiedSvid| format!("reports for {}", caller.spiffe_id());
    let app = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org")?);
    let app = app.layer(Router::new().route("/", get(who)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, Router::new().fallback_service(app)).into_future());
    Ok(origin)
}
