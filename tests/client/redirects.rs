//! Redirects and proxies: nobody sees a token that is not meant for it.

use std::convert::Infallible;

use axum::extract::Request;
use axum::response::IntoResponse;
use http::StatusCode;
use http::header::HeaderName;
use http_body_util::Empty;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_http::follow_redirect::FollowRedirectLayer;
use tower_http::follow_redirect::policy::Limited;
use tower_spiffe::client::{AddJwtSvid, AddJwtSvidLayer, Audience, JwtSvidMiddleware, Plaintext};
use tower_spiffe::testing::WorkloadApi;
use tower_spiffe::{JwtSource, JwtSvid, TokenError, TokenErrorReason};

use crate::net::{Ca, Host, Seen};

async fn source() -> (WorkloadApi, JwtSource) {
    let agent = WorkloadApi::start("x").await.unwrap();
    let source = agent.source().await.unwrap();
    (agent, source)
}

fn audience_of(seen: &Seen) -> Option<String> {
    let token = seen.authorization.as_ref()?.strip_prefix("Bearer ")?;
    let svid = JwtSvid::parse_unverified(token, "").unwrap();
    Some(svid.audiences()[0].to_string())
}

fn trusting(ca: &Ca) -> reqwest::ClientBuilder {
    let cert = reqwest::Certificate::from_der(ca.der()).unwrap();
    reqwest::Client::builder().no_proxy().tls_certs_only([cert])
}

fn reqwest_get(url: String) -> reqwest::Request {
    reqwest::Request::new(http::Method::GET, url.parse().unwrap())
}

/// A, by TLS, and where it redirects to: another port, another name, another scheme.
async fn places(ca: &Ca) -> (Host, Vec<(Host, String)>) {
    let a = Host::start(Some(ca)).await;
    let port = Host::start(Some(ca)).await;
    let scheme = Host::start(None).await;
    let others = vec![
        (port.clone(), port.origin()),
        (port.clone(), port.origin_at("127.0.0.1")),
        (scheme.clone(), scheme.origin()),
    ];
    (a, others)
}

#[tokio::test]
async fn reqwest_as_a_service_takes_the_token_off_when_it_goes_elsewhere() {
    let ca = Ca::new();
    let (_agent, source) = source().await;
    let (a, others) = places(&ca).await;
    let audience = Audience::fixed("a").for_origin(&a.origin()).unwrap();
    let client = AddJwtSvid::new(trusting(&ca).build().unwrap(), source, audience);
    for (b, origin) in &others {
        let url = format!("{}/to?{origin}/b", a.origin());
        let response = client.clone().oneshot(reqwest_get(url)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(audience_of(&a.seen().pop().unwrap()).as_deref(), Some("a"));
        assert_eq!(b.seen().pop().unwrap().path, "/b");
        assert!(!b.saw_a_token());
    }
    // There and back again: what was taken off stays off.
    let b = &others[0].0;
    let url = format!("{}/to?{}/to?{}/back", a.origin(), b.origin(), a.origin());
    client.oneshot(reqwest_get(url)).await.unwrap();
    let back = a.seen().pop().unwrap();
    assert_eq!((back.path.as_str(), back.authorization), ("/back", None));
}

#[tokio::test]
async fn reqwest_middleware_takes_the_token_off_when_it_goes_elsewhere() {
    let ca = Ca::new();
    let (_agent, source) = source().await;
    let (a, others) = places(&ca).await;
    let tokens = JwtSvidMiddleware::new(source, [(a.origin(), "a")]).unwrap();
    let client = trusting(&ca).build().unwrap();
    let client = reqwest_middleware::ClientBuilder::new(client)
        .with(tokens)
        .build();
    for (b, origin) in &others {
        client
            .get(format!("{}/to?{origin}/b", a.origin()))
            .send()
            .await
            .unwrap();
        assert_eq!(audience_of(&a.seen().pop().unwrap()).as_deref(), Some("a"));
        assert_eq!(b.seen().pop().unwrap().path, "/b");
        assert!(!b.saw_a_token());
    }
}

#[tokio::test]
async fn what_follows_redirects_outside_gives_each_hop_its_own_token() {
    let ca = Ca::new();
    let (_agent, source) = source().await;
    let (a, others) = places(&ca).await;
    let (b, c) = (&others[0].0, &others[2].0);
    let map = Audience::map([(a.origin(), "a"), (b.origin(), "b")]).unwrap();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(ca.client())
        .https_or_http()
        .enable_all_versions();
    let client = Client::builder(TokioExecutor::new()).build::<_, Empty<&[u8]>>(connector.build());
    let client = ServiceBuilder::new()
        .layer(FollowRedirectLayer::with_policy(Limited::new(5)))
        .layer(AddJwtSvidLayer::new(source, map))
        .service(client);
    let get = |url: String| http::Request::get(url).body(Empty::new()).unwrap();

    let url = format!("{}/to?{}/b", a.origin(), b.origin());
    assert_eq!(
        client.clone().oneshot(get(url)).await.unwrap().status(),
        StatusCode::OK
    );
    assert_eq!(audience_of(&b.seen().pop().unwrap()).as_deref(), Some("b"));

    // Another scheme: not in the map.
    let url = format!("{}/to?{}/c", a.origin(), c.origin());
    assert_eq!(
        client.clone().oneshot(get(url)).await.unwrap().status(),
        StatusCode::OK
    );
    assert_eq!(c.seen().pop().unwrap().path, "/c");
    assert!(!c.saw_a_token());

    // There and back again: A gets its own once more.
    let url = format!("{}/to?{}/to?{}/back", a.origin(), b.origin(), a.origin());
    client.oneshot(get(url)).await.unwrap();
    let back = a.seen().pop().unwrap();
    assert_eq!(
        (back.path.as_str(), audience_of(&back).as_deref()),
        ("/back", Some("a"))
    );
    assert!(
        b.seen()
            .iter()
            .all(|seen| audience_of(seen).as_deref() == Some("b"))
    );
}

#[tokio::test]
async fn a_header_of_its_own_is_not_taken_off_by_a_client_so_redirects_must_be_off() {
    let ca = Ca::new();
    let (_agent, source) = source().await;
    let (a, others) = places(&ca).await;
    let b = &others[0].0;
    let audience = || Audience::fixed("a").for_origin(&a.origin()).unwrap();
    let name = HeaderName::from_static("x-workload");
    let url = || format!("{}/to?{}/b", a.origin(), b.origin());

    // This is what the documentation warns of: a client that follows redirects beneath.
    let following = AddJwtSvid::new(trusting(&ca).build().unwrap(), source.clone(), audience());
    following
        .header(name.clone())
        .oneshot(reqwest_get(url()))
        .await
        .unwrap();
    assert!(
        b.seen().pop().unwrap().workload.is_some(),
        "reqwest has learnt it: mend the docs"
    );

    // And these are the two ways that it names.
    let staying = trusting(&ca)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let staying = AddJwtSvid::new(staying, source.clone(), audience()).header(name.clone());
    let before = b.seen().len();
    let response = staying.oneshot(reqwest_get(url())).await.unwrap();
    assert_eq!(
        (response.status(), b.seen().len()),
        (StatusCode::TEMPORARY_REDIRECT, before)
    );

    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(ca.client())
        .https_only();
    let hyper = Client::builder(TokioExecutor::new())
        .build::<_, Empty<&[u8]>>(connector.enable_all_versions().build());
    let layer = AddJwtSvidLayer::new(source, audience()).header(name);
    let beneath = FollowRedirectLayer::with_policy(Limited::new(5)).layer(layer.layer(hyper));
    let request = http::Request::get(url()).body(Empty::new()).unwrap();
    assert_eq!(
        beneath.oneshot(request).await.unwrap().status(),
        StatusCode::OK
    );
    let hop = b.seen().pop().unwrap();
    // tower-http copies the header from hop to hop; the layer beneath keeps what is there.
    assert_eq!(hop.path, "/b");
    assert!(hop.workload.is_none(), "a token for A at B");
}

/// A proxy that keeps what it saw, and passes nothing on.
async fn proxy() -> Host {
    let app = service_fn(|_: Request| async {
        Ok::<_, Infallible>((StatusCode::BAD_GATEWAY, "no further").into_response())
    });
    Host::serve(None, BoxCloneSyncService::new(app)).await
}

#[tokio::test]
async fn a_proxy_never_gets_a_token_in_the_clear_unless_the_user_said_so() {
    let (_agent, source) = source().await;
    let proxy = proxy().await;
    let through = || {
        let proxy = reqwest::Proxy::all(proxy.origin_at("127.0.0.1")).unwrap();
        reqwest::Client::builder().proxy(proxy).build().unwrap()
    };
    let audience = || {
        Audience::fixed("a")
            .for_origins(["http://reports.test", "https://reports.test"])
            .unwrap()
    };
    let client = AddJwtSvid::new(through(), source.clone(), audience());

    // http goes to the proxy in the clear: refused.
    let clear = client
        .clone()
        .oneshot(reqwest_get("http://reports.test/x".into()))
        .await;
    let error = clear.unwrap_err();
    assert_eq!(
        TokenError::find(&*error).unwrap().reason(),
        TokenErrorReason::Plaintext
    );
    // https goes through a tunnel: the proxy sees CONNECT, and no token.
    let tunnel = client
        .clone()
        .oneshot(reqwest_get("https://reports.test/x".into()))
        .await;
    assert!(tunnel.is_err(), "this proxy opens no tunnel");
    assert_eq!(proxy.seen().len(), 1);
    assert!(!proxy.saw_a_token());
    // Leave for loopback is no leave for others that happen to go to a proxy.
    let loopback = client.clone().allow_plaintext(Plaintext::Loopback);
    assert!(
        loopback
            .oneshot(reqwest_get("http://reports.test/x".into()))
            .await
            .is_err()
    );
    assert!(!proxy.saw_a_token());
    // The user said so.
    let any = client.allow_plaintext(Plaintext::Any);
    any.oneshot(reqwest_get("http://reports.test/x".into()))
        .await
        .unwrap();
    assert!(proxy.saw_a_token());
}
