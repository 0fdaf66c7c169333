//! Redirects: no other host gets the token.

use http::StatusCode;
use http::header::HeaderName;
use http::uri::PathAndQuery;
use http_body_util::Empty;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic_prost::ProstCodec;
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_http::follow_redirect::FollowRedirectLayer;
use tower_http::follow_redirect::policy::Limited;
use tower_spiffe::client::{AddJwtSvid, AddJwtSvidLayer, Audience, JwtSvidMiddleware};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{JwtSource, JwtSvid};

use crate::agent;
use crate::net::{Ca, Host, Seen};

pub async fn source() -> (FakeAgent, JwtSource) {
    let agent = agent::start("x").await;
    let source = agent.source().await.unwrap();
    (agent, source)
}

fn audience_of(seen: &Seen) -> Option<String> {
    let token = seen.authorization.as_ref()?.strip_prefix("Bearer ")?;
    let svid = JwtSvid::parse_unverified(token, "").unwrap();
    svid.audiences().next().map(str::to_owned)
}

pub fn trusting(ca: &Ca) -> reqwest::ClientBuilder {
    let cert = reqwest::Certificate::from_der(ca.der()).unwrap();
    reqwest::Client::builder().no_proxy().tls_certs_only([cert])
}

pub fn reqwest_get(url: String) -> reqwest::Request {
    reqwest::Request::new(http::Method::GET, url.parse().unwrap())
}

/// Returns A over TLS, and the targets of its redirects: another port, another name, another scheme
/// and port, and another scheme only.
async fn redirect_targets(ca: &Ca) -> (Host, Vec<(Host, String)>) {
    let a = Host::start(Some(ca)).await;
    let port = Host::start(Some(ca)).await;
    let clear = Host::start(None).await;
    let others = vec![
        (port.clone(), port.origin()),
        (a.clone(), a.origin_at("127.0.0.1")),
        (clear.clone(), clear.origin()),
        (a.clone(), a.origin_in_the_clear()),
    ];
    (a, others)
}

/// Asserts that A got its token, and that the next request went to B without a token.
fn assert_only_a_got_its_token(a: &Host, b: &Host, from: &str) {
    let at_b = b.seen().pop().unwrap();
    assert_eq!(
        (at_b.path.as_str(), at_b.tls),
        ("/b", from.starts_with("https"))
    );
    assert_eq!((at_b.authorization, at_b.workload), (None, None), "{from}");
    let at_a = a.seen().into_iter().rfind(|seen| seen.path == "/to");
    assert_eq!(audience_of(&at_a.unwrap()).as_deref(), Some("a"));
}

#[tokio::test]
async fn reqwest_service_removes_the_token_on_redirects() {
    let ca = Ca::new();
    let (_agent, source) = source().await;
    let (a, others) = redirect_targets(&ca).await;
    let audience = Audience::fixed("a").for_origin(&a.origin()).unwrap();
    let client = AddJwtSvid::new(trusting(&ca).build().unwrap(), source, audience);
    for (b, origin) in &others {
        let url = format!("{}/to?{origin}/b", a.origin());
        let response = client.clone().oneshot(reqwest_get(url)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_only_a_got_its_token(&a, b, origin);
    }
    // Back at A, the removed token is not added again.
    let b = &others[0].0;
    let url = format!("{}/to?{}/to?{}/back", a.origin(), b.origin(), a.origin());
    client.oneshot(reqwest_get(url)).await.unwrap();
    let back = a.seen().pop().unwrap();
    assert_eq!((back.path.as_str(), back.authorization), ("/back", None));
}

#[tokio::test]
async fn reqwest_middleware_removes_the_token_on_redirects() {
    let ca = Ca::new();
    let (_agent, source) = source().await;
    let (a, others) = redirect_targets(&ca).await;
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
        assert_only_a_got_its_token(&a, b, origin);
    }
    // Back at A.
    let b = &others[0].0;
    let url = format!("{}/to?{}/to?{}/back", a.origin(), b.origin(), a.origin());
    client.get(url).send().await.unwrap();
    let back = a.seen().pop().unwrap();
    assert_eq!((back.path.as_str(), back.authorization), ("/back", None));
    assert!(!b.saw_a_token());
}

/// Only the first request passes the layer, so the audience of B is not used.
#[tokio::test]
async fn redirected_request_gets_no_token_for_the_target() {
    let ca = Ca::new();
    let (_agent, source) = source().await;
    let (a, b) = (Host::start(Some(&ca)).await, Host::start(Some(&ca)).await);
    let both = [(a.origin(), "a"), (b.origin(), "b")];
    let url = format!("{}/to?{}/b", a.origin(), b.origin());

    let map = Audience::map(both.clone()).unwrap();
    let client = AddJwtSvid::new(trusting(&ca).build().unwrap(), source.clone(), map);
    client.oneshot(reqwest_get(url.clone())).await.unwrap();
    assert_only_a_got_its_token(&a, &b, &b.origin());

    let tokens = JwtSvidMiddleware::new(source, both).unwrap();
    let client = reqwest_middleware::ClientBuilder::new(trusting(&ca).build().unwrap());
    client.with(tokens).build().get(url).send().await.unwrap();
    assert_only_a_got_its_token(&a, &b, &b.origin());
}

/// Returns a hyper client for TLS and plaintext.
fn hyper(ca: &Ca) -> Client<HttpsConnector<HttpConnector>, Empty<&'static [u8]>> {
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(ca.client())
        .https_or_http()
        .enable_all_versions();
    Client::builder(TokioExecutor::new()).build(connector.build())
}

fn get(url: String) -> http::Request<Empty<&'static [u8]>> {
    http::Request::get(url).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn inner_redirects_remove_the_token_with_standard_policy() {
    let ca = Ca::new();
    let (_agent, source) = source().await;
    let (a, others) = redirect_targets(&ca).await;
    let audience = Audience::fixed("a").for_origin(&a.origin()).unwrap();
    let layer = AddJwtSvidLayer::new(source, audience);
    let standard = layer.layer(FollowRedirectLayer::new().layer(hyper(&ca)));
    for (b, origin) in &others {
        let url = format!("{}/to?{origin}/b", a.origin());
        let response = standard.clone().oneshot(get(url)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_only_a_got_its_token(&a, b, origin);
    }
    // The documentation warns of policies that only count.
    let counting = FollowRedirectLayer::with_policy(Limited::new(5));
    let counting = layer.layer(counting.layer(hyper(&ca)));
    let (b, origin) = &others[0];
    let url = format!("{}/to?{origin}/b", a.origin());
    counting.oneshot(get(url)).await.unwrap();
    assert_eq!(
        audience_of(&b.seen().pop().unwrap()).as_deref(),
        Some("a"),
        "the policy has changed: update the docs"
    );
}

#[tokio::test]
async fn hyper_and_tonic_follow_no_redirects() {
    let ca = Ca::new();
    let (_agent, source) = source().await;
    let (a, others) = redirect_targets(&ca).await;
    let b = &others[0].0;
    let audience = || Audience::fixed("a").assume_origin(&a.origin()).unwrap();
    let client = AddJwtSvidLayer::new(source.clone(), audience()).layer(hyper(&ca));
    let url = format!("{}/to?{}/b", a.origin(), b.origin());
    let response = client.oneshot(get(url)).await.unwrap();
    assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);

    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca.pem()));
    let endpoint = Endpoint::new(a.origin()).unwrap().tls_config(tls).unwrap();
    let channel = AddJwtSvid::new(endpoint.connect().await.unwrap(), source, audience());
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = PathAndQuery::try_from(format!("/to?{}/b", b.origin())).unwrap();
    let codec = ProstCodec::<String, String>::default();
    let call = grpc.unary(tonic::Request::new(String::new()), path, codec);
    assert!(call.await.is_err());
    // Both requests reached A only.
    let at_a = a.seen();
    assert_eq!(at_a.len(), 2);
    assert!(
        at_a.iter()
            .all(|seen| audience_of(seen).as_deref() == Some("a"))
    );
    assert!(b.seen().is_empty());
}

#[tokio::test]
async fn outer_redirects_give_each_hop_its_token() {
    let ca = Ca::new();
    let (_agent, source) = source().await;
    let (a, others) = redirect_targets(&ca).await;
    let b = &others[0].0;
    let map = Audience::map([(a.origin(), "a"), (b.origin(), "b")]).unwrap();
    let client = ServiceBuilder::new()
        .layer(FollowRedirectLayer::with_policy(Limited::new(5)))
        .layer(AddJwtSvidLayer::new(source, map))
        .service(hyper(&ca));

    let url = format!("{}/to?{}/b", a.origin(), b.origin());
    assert_eq!(
        client.clone().oneshot(get(url)).await.unwrap().status(),
        StatusCode::OK
    );
    assert_eq!(audience_of(&b.seen().pop().unwrap()).as_deref(), Some("b"));

    // Another name or scheme is not in the map.
    for (c, origin) in &others[1..] {
        let url = format!("{}/to?{origin}/b", a.origin());
        let response = client.clone().oneshot(get(url)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_only_a_got_its_token(&a, c, origin);
    }

    // Back at A, its own token is added again.
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
async fn custom_header_needs_redirects_off() {
    let ca = Ca::new();
    let (_agent, source) = source().await;
    let (a, others) = redirect_targets(&ca).await;
    let b = &others[0].0;
    let audience = || Audience::fixed("a").for_origin(&a.origin()).unwrap();
    let name = HeaderName::from_static("x-workload");
    let url = || format!("{}/to?{}/b", a.origin(), b.origin());

    // The documentation warns of inner clients that follow redirects.
    let following = AddJwtSvid::new(trusting(&ca).build().unwrap(), source.clone(), audience());
    following
        .header(name.clone())
        .oneshot(reqwest_get(url()))
        .await
        .unwrap();
    assert!(
        b.seen().pop().unwrap().workload.is_some(),
        "reqwest has changed: update the docs"
    );

    // The two documented solutions.
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

    let layer = AddJwtSvidLayer::new(source, audience()).header(name);
    let outside = FollowRedirectLayer::with_policy(Limited::new(5)).layer(layer.layer(hyper(&ca)));
    let response = outside.oneshot(get(url())).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let hop = b.seen().pop().unwrap();
    // An outer redirect layer keeps the request without the token.
    assert_eq!(hop.path, "/b");
    assert!(hop.workload.is_none(), "a token for A at B");
}
