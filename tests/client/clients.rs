//! Real clients with the client layer, real servers with the server layer, and one agent.

use axum::body::Body;
use axum::extract::Request;
use axum::response::IntoResponse;
use http::{StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use std::convert::Infallible;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_spiffe::client::{AddJwtSvid, AddJwtSvidLayer, Audience, JwtSvidMiddleware, Plaintext};
use tower_spiffe::server::{Allow, CallerState, ValidateJwtSvidLayer};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::token::{TokenError, TokenErrorReason};
use tower_spiffe::{JwtSource, Validator};

use crate::agent;
use crate::net::{Ca, Host};

const AUDIENCE: &str = "spiffe://x/reports";

/// An agent, a source, and a service that allows the callers of its trust domain.
pub async fn deployment(ca: Option<&Ca>) -> (FakeAgent, JwtSource, Host) {
    let agent = agent::start("x").await;
    let source = agent.source().await.unwrap();
    let validator = Validator::builder(source.clone())
        .audience(AUDIENCE)
        .build()
        .unwrap();
    let app = service_fn(|request: Request| async move {
        Ok::<_, Infallible>(caller(&request).into_response())
    });
    let app =
        ValidateJwtSvidLayer::required(validator, Allow::trust_domain("x").unwrap()).layer(app);
    let host = Host::serve(ca, BoxCloneSyncService::new(app)).await;
    (agent, source, host)
}

fn caller(request: &Request) -> String {
    match request.extensions().get::<CallerState>() {
        Some(CallerState::Verified(caller)) => caller.spiffe_id().to_string(),
        _ => "no caller".to_owned(),
    }
}

fn get<B: Default>(uri: String) -> http::Request<B> {
    http::Request::get(uri).body(B::default()).unwrap()
}

#[tokio::test]
async fn hyper_client_signs_over_plaintext() {
    let (_agent, source, host) = deployment(None).await;
    let audience = Audience::fixed(AUDIENCE)
        .for_origin(&host.origin())
        .unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<&[u8]>>();
    let client = ServiceBuilder::new()
        .layer(AddJwtSvidLayer::new(source, audience).allow_plaintext(Plaintext::Loopback))
        .service(client);
    let response = client
        .clone()
        .oneshot(get(host.origin() + "/today"))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "spiffe://x/workload");
    // Another name of the host is another origin.
    let other = get(host.origin_at("127.0.0.1") + "/today");
    assert_eq!(
        client.oneshot(other).await.unwrap().status(),
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn hyper_client_signs_over_tls_and_both_versions() {
    let ca = Ca::new();
    let (_agent, source, host) = deployment(Some(&ca)).await;
    let audience = Audience::fixed(AUDIENCE)
        .for_origin(&host.origin())
        .unwrap();
    let layer = AddJwtSvidLayer::new(source, audience);
    let connector = || {
        HttpsConnectorBuilder::new()
            .with_tls_config(ca.client())
            .https_only()
    };
    let one = connector().enable_http1().build();
    let two = connector().enable_http2().build();
    for (connector, version) in [(one, Version::HTTP_11), (two, Version::HTTP_2)] {
        let client = Client::builder(TokioExecutor::new()).build::<_, Empty<&[u8]>>(connector);
        let client = layer.layer(client);
        for _ in 0..2 {
            let response = client
                .clone()
                .oneshot(get(host.origin() + "/today"))
                .await
                .unwrap();
            assert_eq!(
                (response.status(), response.version()),
                (StatusCode::OK, version)
            );
        }
        assert_eq!(host.seen().last().unwrap().version, version);
    }
}

fn reqwest_client(ca: Option<&Ca>) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder().no_proxy();
    match ca {
        None => builder,
        Some(ca) => builder.tls_certs_only([reqwest::Certificate::from_der(ca.der()).unwrap()]),
    }
}

fn reqwest_get(url: &str) -> reqwest::Request {
    reqwest::Request::new(http::Method::GET, url.parse().unwrap())
}

#[tokio::test]
async fn reqwest_service_signs_over_plaintext_and_tls() {
    let ca = Ca::new();
    for ca in [None, Some(&ca)] {
        let (_agent, source, host) = deployment(ca).await;
        let audience = Audience::fixed(AUDIENCE)
            .for_origin(&host.origin())
            .unwrap();
        let layer = AddJwtSvidLayer::new(source, audience).allow_plaintext(Plaintext::Loopback);
        let newest = if ca.is_some() {
            Version::HTTP_2
        } else {
            Version::HTTP_11
        };
        let old = reqwest_client(ca).http1_only();
        for (client, version) in [(old, Version::HTTP_11), (reqwest_client(ca), newest)] {
            let client = layer.layer(client.build().unwrap());
            let get = reqwest_get(&(host.origin() + "/today"));
            let response = client.oneshot(get).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.text().await.unwrap(), "spiffe://x/workload");
            assert_eq!(host.seen().last().unwrap().version, version);
        }
        let client = layer.layer(reqwest_client(ca).build().unwrap());
        // A similar URL: the host is the user name, and another host follows.
        let alike = format!("{}@127.0.0.1:{}/", host.origin(), host.address.port());
        if ca.is_none() {
            let response = client.oneshot(reqwest_get(&alike)).await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        }
    }
}

#[tokio::test]
async fn reqwest_middleware_signs_for_two_services() {
    let agent = agent::start("x").await;
    let source = agent.source().await.unwrap();
    let (reports, ledger) = (Host::start(None).await, Host::start(None).await);

    let tokens = JwtSvidMiddleware::new(source, [(reports.origin(), "r"), (ledger.origin(), "l")])
        .unwrap()
        .allow_plaintext(Plaintext::Loopback);
    let client = reqwest_middleware::ClientBuilder::new(reqwest_client(None).build().unwrap())
        .with(tokens)
        .build();

    for (host, audience) in [(&reports, "r"), (&ledger, "l")] {
        let response = client.get(host.origin() + "/x").send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let seen = host.seen().pop().unwrap().authorization.unwrap();
        let token = seen.strip_prefix("Bearer ").unwrap();
        let svid = tower_spiffe::JwtSvid::parse_unverified(token, "").unwrap();
        assert!(svid.audiences().eq([audience]));
    }
    // An audience for one request; and a typed error inside the client's error.
    let other = Host::start(None).await;
    let own = Audience::fixed("o").for_origin(&other.origin()).unwrap();
    client
        .get(other.origin())
        .with_extension(own)
        .send()
        .await
        .unwrap();
    assert!(other.saw_a_token());
    let clear = Audience::fixed("o").any_origin().unwrap();
    let error = client
        .get("http://192.0.2.1/")
        .with_extension(clear)
        .send()
        .await
        .unwrap_err();
    assert_eq!(
        TokenError::find(&error).unwrap().reason(),
        TokenErrorReason::Plaintext
    );
}

#[tokio::test]
async fn reqwest_middleware_has_the_options_of_the_layer() {
    let agent = agent::start("x").await;
    let life = std::time::Duration::from_secs(300);
    for (id, hint) in [("spiffe://x/a", "first"), ("spiffe://x/b", "second")] {
        agent.register(id, hint, life).unwrap();
    }
    let source = agent.source().await.unwrap();
    let host = Host::start(None).await;
    let audience = Audience::fixed("r").for_origin(&host.origin()).unwrap();
    let by_id = audience.clone().spiffe_id("spiffe://x/b".parse().unwrap());
    let by_hint = audience.hint("second").unwrap();
    for audience in [by_id, by_hint] {
        let tokens = JwtSvidMiddleware::with_audience(source.clone(), audience)
            .header(http::HeaderName::from_static("x-workload"))
            .allow_plaintext(Plaintext::Loopback);
        let client = reqwest_middleware::ClientBuilder::new(reqwest_client(None).build().unwrap())
            .with(tokens)
            .build();
        // The end user's token is sent unchanged, with the workload's token in another header.
        let request = client.get(host.origin()).bearer_auth("end-user");
        request.send().await.unwrap();
        let seen = host.seen().pop().unwrap();
        assert_eq!(seen.authorization.unwrap(), "Bearer end-user");
        let token = seen.workload.unwrap();
        let token = token.strip_prefix("Bearer ").unwrap();
        let svid = tower_spiffe::JwtSvid::parse_unverified(token, "").unwrap();
        assert_eq!(svid.spiffe_id().as_str(), "spiffe://x/b");
    }
}

#[tokio::test]
async fn one_source_verifies_callers_and_signs_calls() {
    // A service that verifies callers, and calls the next service with tokens of the same source.
    let (agent, source, reports) = deployment(None).await;
    let audience = Audience::fixed(AUDIENCE)
        .for_origin(&reports.origin())
        .unwrap();
    let next = AddJwtSvid::new(
        reqwest_client(None).build().unwrap(),
        source.clone(),
        audience,
    )
    .allow_plaintext(Plaintext::Loopback);
    let validator = Validator::builder(source)
        .audience("spiffe://x/edge")
        .build()
        .unwrap();
    let url = reports.origin() + "/";
    let app = service_fn(move |request: Request| {
        let (next, url) = (next.clone(), url.clone());
        async move {
            let caller = caller(&request);
            let answer = next
                .oneshot(reqwest_get(&url))
                .await
                .unwrap()
                .text()
                .await
                .unwrap();
            Ok::<_, Infallible>(format!("{caller} then {answer}").into_response())
        }
    });
    let allow = Allow::id("spiffe://x/browser").unwrap();
    let app = ValidateJwtSvidLayer::required(validator, allow).layer(app);
    let mut app = BoxCloneSyncService::new(app);
    let mut request: Request = get::<Body>("/".to_owned());
    request.headers_mut().insert(
        http::header::AUTHORIZATION,
        agent.bearer("spiffe://x/browser", "spiffe://x/edge"),
    );
    let response = app.ready().await.unwrap().call(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "spiffe://x/browser then spiffe://x/workload");
}
