//! Proxies get no plaintext token, unless the user allows it.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt, service_fn};
use tower_spiffe::client::{AddJwtSvid, Audience, JwtSvidMiddleware, Plaintext};
use tower_spiffe::token::{TokenError, TokenErrorReason};

use crate::net::{Ca, Host};
use crate::redirects::{reqwest_get, source, trusting};

/// A proxy that records requests. It connects each tunnel to this port of the machine. It does not
/// forward plaintext requests.
async fn proxy(tunnels_to: Option<u16>) -> Host {
    let app = service_fn(move |request: Request| async move {
        let (&Method::CONNECT, Some(port)) = (request.method(), tunnels_to) else {
            return Ok::<_, Infallible>((StatusCode::BAD_GATEWAY, "not forwarded").into_response());
        };
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(request).await.unwrap();
            let mut there = tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .unwrap();
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(upgraded), &mut there).await;
        });
        Ok(Response::new(Body::empty()))
    });
    Host::serve(None, BoxCloneSyncService::new(app)).await
}

fn through(proxy: &Host, client: reqwest::ClientBuilder) -> reqwest::Client {
    let proxy = reqwest::Proxy::all(proxy.origin_at("127.0.0.1")).unwrap();
    client.proxy(proxy).build().unwrap()
}

fn reason(error: &(dyn std::error::Error + 'static)) -> TokenErrorReason {
    TokenError::find(error).unwrap().reason()
}

#[tokio::test]
async fn proxy_gets_no_plaintext_token_unless_allowed() {
    let (_agent, source) = source().await;
    let proxy = proxy(None).await;
    let audience = Audience::fixed("a")
        .for_origins(["http://reports.test", "https://reports.test"])
        .unwrap();
    let client = through(&proxy, reqwest::Client::builder());
    let client = AddJwtSvid::new(client, source, audience);
    let get = || reqwest_get("http://reports.test/x".into());

    // http is sent to the proxy in plaintext: an error.
    let error = client.clone().oneshot(get()).await.unwrap_err();
    assert_eq!(reason(&*error), TokenErrorReason::Plaintext);
    // https needs a tunnel, which this proxy does not open.
    let https = reqwest_get("https://reports.test/x".into());
    assert!(client.clone().oneshot(https).await.is_err());
    assert_eq!(proxy.seen().pop().unwrap().method, Method::CONNECT);
    assert_eq!(proxy.seen().len(), 1);
    // `Plaintext::Loopback` does not allow requests to other hosts through a proxy.
    let loopback = client.clone().allow_plaintext(Plaintext::Loopback);
    assert!(loopback.oneshot(get()).await.is_err());
    assert!(!proxy.saw_a_token());
    // The user allows it.
    let any = client.allow_plaintext(Plaintext::Any);
    any.oneshot(get()).await.unwrap();
    assert!(proxy.saw_a_token());
}

#[tokio::test]
async fn tunnel_hides_the_token_from_the_proxy() {
    let ca = Ca::new();
    let (_agent, source) = source().await;
    let reports = Host::start(Some(&ca)).await;
    let proxy = proxy(Some(reports.address.port())).await;
    let client = || through(&proxy, trusting(&ca));
    let entry = (reports.origin(), "a");

    let audience = Audience::map([entry.clone()]).unwrap();
    let service = AddJwtSvid::new(client(), source.clone(), audience);
    let get = reqwest_get(reports.origin() + "/x");
    service.oneshot(get).await.unwrap();

    let tokens = JwtSvidMiddleware::new(source, [entry]).unwrap();
    let middleware = reqwest_middleware::ClientBuilder::new(client()).with(tokens);
    let url = reports.origin() + "/y";
    middleware.build().get(url).send().await.unwrap();

    let seen = reports.seen();
    assert_eq!(seen.len(), 2);
    assert!(
        seen.iter()
            .all(|seen| seen.tls && seen.authorization.is_some())
    );
    let tunnels = proxy.seen();
    assert!(!tunnels.is_empty());
    assert!(tunnels.iter().all(|seen| seen.method == Method::CONNECT));
    assert!(!proxy.saw_a_token());
}

#[tokio::test]
async fn middleware_sends_no_plaintext_token_to_a_proxy() {
    let (_agent, source) = source().await;
    let proxy = proxy(None).await;
    let tokens = JwtSvidMiddleware::new(source, [("http://reports.test", "a")]).unwrap();
    let client = through(&proxy, reqwest::Client::builder());
    let client = reqwest_middleware::ClientBuilder::new(client)
        .with(tokens)
        .build();
    let error = client
        .get("http://reports.test/x")
        .send()
        .await
        .unwrap_err();
    assert_eq!(reason(&error), TokenErrorReason::Plaintext);
    assert!(proxy.seen().is_empty());
}

/// The documentation warns of this.
#[tokio::test]
async fn plaintext_loopback_shows_tokens_to_a_proxy() {
    let (_agent, source) = source().await;
    let (reports, proxy) = (Host::start(None).await, proxy(None).await);
    let audience = Audience::fixed("a").for_origin(&reports.origin()).unwrap();
    let layer =
        AddJwtSvid::<reqwest::Client>::layer(source, audience).allow_plaintext(Plaintext::Loopback);
    let get = || reqwest_get(reports.origin() + "/x");
    let client = through(&proxy, reqwest::Client::builder());
    tower::Layer::layer(&layer, client)
        .oneshot(get())
        .await
        .unwrap();
    assert!(
        proxy.saw_a_token() && reports.seen().is_empty(),
        "the client has changed: update the docs"
    );
    // The documented solution.
    let seen = proxy.seen().len();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    tower::Layer::layer(&layer, client)
        .oneshot(get())
        .await
        .unwrap();
    assert!(reports.saw_a_token());
    assert_eq!(proxy.seen().len(), seen);
}

/// In a child process, because environment variables are shared.
#[tokio::test]
async fn proxy_from_the_environment_follows_the_same_rules() {
    const CHILD: &str = "TOWER_SPIFFE_PROXIED_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let (_agent, source) = source().await;
        let origins = ["http://reports.test", "http://localhost:9"];
        let audience = Audience::fixed("a").for_origins(origins).unwrap();
        let client = AddJwtSvid::new(reqwest::Client::new(), source, audience)
            .allow_plaintext(Plaintext::Loopback);
        let failed = client
            .clone()
            .oneshot(reqwest_get("http://reports.test/x".into()));
        assert_eq!(
            reason(&*failed.await.unwrap_err()),
            TokenErrorReason::Plaintext
        );
        // As documented, requests to this machine go to the proxy.
        let response = client
            .oneshot(reqwest_get("http://localhost:9/x".into()))
            .await;
        assert_eq!(response.unwrap().status(), StatusCode::BAD_GATEWAY);
        return;
    }
    let proxy = proxy(None).await;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args([
        "--exact",
        "proxies::proxy_from_the_environment_follows_the_same_rules",
    ]);
    for name in ["no_proxy", "NO_PROXY", "http_proxy", "REQUEST_METHOD"] {
        child.env_remove(name);
    }
    child
        .env("HTTP_PROXY", proxy.origin_at("127.0.0.1"))
        .env(CHILD, "1");
    let output = child.output().await.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let seen = proxy.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(proxy.saw_a_token());
}
