//! Access tokens over real connections: reqwest, hyper, TLS and redirects.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt, service_fn};
use tower_spiffe::client::{JwtSvidMiddleware, Plaintext};
use tower_spiffe::oauth::{AccessTokens, AccessTokensBuilder, SubjectToken};
use tower_spiffe::testing::{FakeAgent, FakeAuthorizationServer, TokenEndpointFault};
use tower_spiffe::token::{TokenError, TokenErrorReason};
use tower_spiffe::{AddJwtSvid, Audience, JwtSource, SvidCache};
use tracing::Level;

use crate::agent;
use crate::log::Log;
use crate::net::{Ca, Host};
use crate::redirects::{reqwest_get, trusting};
use crate::support::request;

async fn world() -> (FakeAgent, JwtSource, FakeAuthorizationServer) {
    let agent = agent::start("example.org").await;
    let source = agent.source().await.unwrap();
    let server = FakeAuthorizationServer::start(source.clone())
        .await
        .unwrap();
    (agent, source, server)
}

fn reqwest() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn builder(source: &JwtSource, server: &FakeAuthorizationServer) -> AccessTokensBuilder {
    AccessTokens::builder(source.clone())
        .issuer(server.issuer())
        .token_endpoint(server.token_endpoint())
        .allow_plaintext(Plaintext::Loopback)
}

/// A resource server that accepts the tokens of the authorization server.
async fn resource(server: &FakeAuthorizationServer) -> Host {
    async fn who(
        State(server): State<FakeAuthorizationServer>,
        headers: HeaderMap,
    ) -> Result<String, StatusCode> {
        let header = headers.get(AUTHORIZATION).and_then(|it| it.to_str().ok());
        let token = header.and_then(|it| it.strip_prefix("Bearer "));
        let issued = token.and_then(|token| server.find(token));
        let issued = issued.ok_or(StatusCode::UNAUTHORIZED)?;
        Ok(format!(
            "{} for {}",
            issued.client,
            issued.audiences.join(",")
        ))
    }
    let app = Router::new()
        .route("/", get(who))
        .with_state(server.clone());
    let app = app.into_service().map_err(|never| match never {});
    Host::serve(None, BoxCloneSyncService::new(app)).await
}

#[tokio::test]
async fn x01_reqwest_gets_and_sends_access_tokens() {
    let log = Log::default();
    let _listening = log.begin(Level::TRACE);
    let (_agent, source, server) = world().await;
    let api = resource(&server).await;
    let tokens = builder(&source, &server)
        .reqwest(reqwest())
        .build()
        .unwrap();
    let audience = Audience::fixed("api").for_origin(&api.origin()).unwrap();
    let client = AddJwtSvid::new(reqwest(), &tokens, audience).allow_plaintext(Plaintext::Loopback);
    let mut sent = tokio::task::JoinSet::new();
    for _ in 0..50 {
        sent.spawn(client.clone().oneshot(reqwest_get(api.origin())));
    }
    for response in sent.join_all().await {
        let response = response.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let text = response.text().await.unwrap();
        assert_eq!(text, "spiffe://example.org/workload for api");
    }
    assert_eq!(server.counts().requests, 1);
    // After a revocation, the first response is 401, and the next request has another token.
    let cache = SvidCache::from(&tokens);
    let token = cache.get(&request("api")).await.unwrap();
    server.revoke(token.token());
    let send = async || {
        let response = client.clone().oneshot(reqwest_get(api.origin())).await;
        response.unwrap().status()
    };
    assert_eq!(send().await, StatusCode::UNAUTHORIZED);
    assert_eq!(send().await, StatusCode::OK);
    assert_eq!(server.counts().requests, 2);
    let assertion = server.bodies().pop().unwrap();
    let assertion = assertion.split("client_assertion=").nth(1).unwrap();
    let logged = log.text();
    assert!(!logged.is_empty());
    assert!(!logged.contains(token.token()) && !logged.contains(&assertion[..60]));
}

#[tokio::test]
async fn x01_hyper_client_gets_access_tokens() {
    let (_agent, source, server) = world().await;
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let tokens = builder(&source, &server)
        .http_client(client)
        .build()
        .unwrap();
    let cache = SvidCache::from(tokens);
    let token = cache.get(&request("api")).await.unwrap();
    let issued = server.find(token.token()).unwrap();
    assert_eq!(issued.audiences, ["api"]);
}

#[tokio::test]
async fn x01_closed_or_broken_servers_are_unreachable() {
    let (_agent, source, server) = world().await;
    server.fail(TokenEndpointFault::Down);
    let tokens = builder(&source, &server)
        .reqwest(reqwest())
        .build()
        .unwrap();
    let cache = SvidCache::from(tokens);
    let error = cache.get(&request("api")).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Unavailable);
    assert!(error.to_string().contains("is unreachable"), "{error}");
    let tokens = builder(&source, &server)
        .reqwest(reqwest())
        .build()
        .unwrap();
    let cache = SvidCache::from(tokens);
    drop(server);
    let error = cache.get(&request("api")).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Unavailable);
}

#[tokio::test]
async fn x01_token_endpoint_over_tls_needs_a_trusted_certificate() {
    let (_agent, source, _) = world().await;
    let ca = Ca::new();
    let issuer = "https://as.example.org";
    let server = FakeAuthorizationServer::new(issuer, source.clone());
    let endpoint = server.service();
    let app = service_fn(move |request: axum::extract::Request| {
        let endpoint = endpoint.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let response = endpoint.oneshot(Request::from_parts(head, body)).await;
            Ok::<_, std::convert::Infallible>(response.unwrap().map(axum::body::Body::new))
        }
    });
    let host = Host::serve(Some(&ca), BoxCloneSyncService::new(app)).await;
    let of = |client: reqwest::Client| {
        let tokens = AccessTokens::builder(source.clone())
            .issuer(issuer)
            .token_endpoint(format!("{}/token", host.origin()))
            .reqwest(client)
            .build();
        SvidCache::from(tokens.unwrap())
    };
    let trusted = of(trusting(&ca).build().unwrap());
    assert!(trusted.get(&request("api")).await.is_ok());
    let seen = host.seen().pop().unwrap();
    assert_eq!((seen.method, seen.tls), (Method::POST, true));
    let other = of(trusting(&Ca::new()).build().unwrap());
    let error = other.get(&request("api")).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Unavailable);
    assert_eq!(host.seen().len(), 1);
}

#[tokio::test]
async fn x01_redirects_are_not_followed_with_an_assertion() {
    // The client follows redirects, as reqwest does by default.
    for status in [301, 302, 303, 307, 308] {
        let (_agent, source, server) = world().await;
        let bodies = Arc::new(std::sync::Mutex::new(Vec::new()));
        let thief = service_fn({
            let bodies = bodies.clone();
            move |request: axum::extract::Request| {
                let bodies = bodies.clone();
                async move {
                    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await;
                    bodies.lock().unwrap().push(body.unwrap());
                    let token = r#"{"access_token":"thiefs","token_type":"Bearer"}"#;
                    let response = axum::response::Response::new(token.into());
                    Ok::<_, std::convert::Infallible>(response)
                }
            }
        });
        let thief = Host::serve(None, BoxCloneSyncService::new(thief)).await;
        server.fail(TokenEndpointFault::Redirect {
            status,
            location: format!("{}/token", thief.origin()),
        });
        let hyper = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let clients = [
            builder(&source, &server).reqwest(reqwest()),
            builder(&source, &server).http_client(hyper),
        ];
        for client in clients {
            let cache = SvidCache::from(client.build().unwrap());
            let error = cache.get(&request("api")).await.unwrap_err();
            assert_eq!(error.reason(), TokenErrorReason::Other, "{status}");
            assert!(error.to_string().contains("redirects"), "{error}");
        }
        assert!(bodies.lock().unwrap().iter().all(Bytes::is_empty));
        assert!(!thief.saw_a_token());
    }
}

#[tokio::test]
async fn x01_huge_responses_are_not_read_to_the_end() {
    let (_agent, source, server) = world().await;
    for status in [200, 400, 500] {
        server.fail(TokenEndpointFault::json(status, vec![b' '; 8 << 20]));
        let tokens = builder(&source, &server)
            .reqwest(reqwest())
            .build()
            .unwrap();
        let cache = SvidCache::from(tokens);
        let error = cache.get(&request("api")).await.unwrap_err();
        let reason = match status {
            200 => TokenErrorReason::Unacceptable,
            400 => TokenErrorReason::Other,
            _ => TokenErrorReason::Unavailable,
        };
        assert_eq!(error.reason(), reason, "{error}");
    }
}

#[tokio::test]
async fn x01_reqwest_requests_have_no_caller() {
    let (_agent, source, server) = world().await;
    let tokens = builder(&source, &server)
        .token_exchange()
        .reqwest(reqwest());
    let audience = Audience::fixed("api").for_origin("https://api").unwrap();
    let client = AddJwtSvid::new(
        reqwest(),
        tokens.build().unwrap(),
        audience.on_behalf_of_caller(),
    );
    let error = client.oneshot(reqwest_get("https://api/".to_owned())).await;
    let error = error.unwrap_err();
    let reason = TokenError::find(&*error).unwrap().reason();
    assert_eq!(reason, TokenErrorReason::InvalidRequest);
    assert_eq!(server.counts().requests, 0);
}

#[tokio::test]
async fn x01_middleware_acts_for_the_subject_in_the_extensions() {
    let (agent, source, server) = world().await;
    let api = resource(&server).await;
    let tokens = builder(&source, &server)
        .token_exchange()
        .reqwest(reqwest());
    let middleware = JwtSvidMiddleware::new(tokens.build().unwrap(), [(api.origin(), "api")])
        .unwrap()
        .allow_plaintext(Plaintext::Loopback);
    let client = reqwest_middleware::ClientBuilder::new(reqwest())
        .with(middleware)
        .build();
    let token = agent.token("spiffe://example.org/web", server.issuer());
    let exp = tower_spiffe::JwtSvid::parse_unverified(&token, "").unwrap();
    let subject = SubjectToken::new(&token, exp.expires_at()).unwrap();
    let sent = client
        .get(api.origin())
        .with_extension(subject)
        .send()
        .await;
    assert_eq!(sent.unwrap().status(), StatusCode::OK);
    let sent = api.seen().pop().unwrap().authorization.unwrap();
    let issued = server.find(sent.strip_prefix("Bearer ").unwrap()).unwrap();
    assert_eq!(issued.subject.as_str(), "spiffe://example.org/web");
    assert_eq!(issued.client.as_str(), "spiffe://example.org/workload");
}

#[tokio::test]
async fn x01_embedded_server_verifies_its_clients() {
    let (agent, _, server) = world().await;
    let client = reqwest();
    let grant = "grant_type=client_credentials";
    let kind = "client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";
    let web = "spiffe://example.org/web";
    let good = agent.token(web, server.issuer());
    let for_two = agent
        .issuer()
        .token(web, server.issuer())
        .audience("b")
        .sign();
    let for_other = agent.token(web, "https://other");
    let cases = [
        (format!("{grant}&{kind}&client_assertion={good}"), 200, ""),
        (
            format!("{grant}&{kind}&client_assertion={good}&client_id={web}"),
            200,
            "",
        ),
        (
            format!("{grant}&{kind}&client_assertion={for_two}"),
            401,
            "invalid_client",
        ),
        (
            format!("{grant}&{kind}&client_assertion={for_other}"),
            401,
            "invalid_client",
        ),
        (
            format!("{grant}&{kind}&client_assertion=x.y.z"),
            401,
            "invalid_client",
        ),
        (
            format!("{grant}&{kind}&client_assertion={good}&client_id=b"),
            401,
            "invalid_client",
        ),
        (
            format!("{grant}&client_assertion_type=x&client_assertion={good}"),
            401,
            "invalid_client",
        ),
        (
            format!("{grant}&client_assertion={good}"),
            400,
            "invalid_request",
        ),
        (format!("{grant}&{kind}"), 400, "invalid_request"),
        (
            format!("{kind}&client_assertion={good}"),
            400,
            "invalid_request",
        ),
        (
            format!("{grant}&{grant}&{kind}&client_assertion={good}"),
            400,
            "invalid_request",
        ),
        (
            format!("grant_type=password&{kind}&client_assertion={good}"),
            400,
            "unsupported_grant_type",
        ),
    ];
    for (body, status, error) in cases {
        let sent = client
            .post(server.token_endpoint())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.clone());
        let response = sent.send().await.unwrap();
        assert_eq!(response.status(), status, "{body}");
        let text = response.text().await.unwrap();
        assert!(text.contains(error), "{text}");
    }
    let counts = server.counts();
    assert_eq!(
        (counts.requests, counts.granted, counts.rejected),
        (12, 2, 10)
    );
    let got = client.get(server.token_endpoint()).send().await.unwrap();
    assert_eq!(got.status(), 405);
}
