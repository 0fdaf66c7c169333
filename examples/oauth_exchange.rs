//! Access tokens of an OAuth server, with JWT-SVIDs instead of client secrets:
//! `cargo run --example oauth_exchange`.
//!
//! A gateway calls an API that accepts access tokens only: as itself, and on behalf of its caller.
//! The authorization server is `testing::FakeAuthorizationServer`; in production it is Keycloak or
//! any other server that accepts JWT client assertions.
//!
//! Uses the agent at `SPIFFE_ENDPOINT_SOCKET`, or starts its own (`testing::FakeAgent`).

#![allow(clippy::print_stdout, reason = "the output is for users")]

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use tokio::net::TcpListener;
use tower::{Layer, ServiceExt};
use tower_spiffe::client::Plaintext;
use tower_spiffe::oauth::{AccessTokens, SubjectToken};
use tower_spiffe::testing::{FakeAgent, FakeAuthorizationServer};
use tower_spiffe::token::SvidRequest;
use tower_spiffe::{AddJwtSvid, Allow, Audience, JwtSource};
use tower_spiffe::{SvidCache, ValidateJwtSvidLayer, Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;

const GATEWAY: &str = "spiffe://example.org/gateway";
const API: &str = "https://api.example.org";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (source, _agent) = source().await?;
    let me = source.get_jwt_svid([GATEWAY]).await?.spiffe_id().clone();
    let server = FakeAuthorizationServer::builder(source.clone())
        .subject_audience(GATEWAY)
        .start()
        .await?;
    let api = serve(
        Router::new()
            .route("/", get(who))
            .with_state(server.clone()),
    )
    .await?;

    // The source of access tokens. In production the endpoint is https, and `allow_plaintext` is
    // not needed.
    let reqwest = reqwest::Client::builder().no_proxy().build()?;
    let tokens = AccessTokens::builder(source.clone())
        .issuer(server.issuer())
        .token_endpoint(server.token_endpoint())
        .allow_plaintext(Plaintext::Loopback)
        .token_exchange()
        .scope("reports.read")
        .reqwest(reqwest.clone())
        .build()?;

    // As the gateway itself. As with JWT-SVIDs, the audience is bound to an origin.
    let audience = Audience::fixed(API).for_origin(&api)?;
    let client = AddJwtSvid::new(reqwest.clone(), &tokens, audience);
    let client = client.allow_plaintext(Plaintext::Loopback);
    for _ in 0..10 {
        let request = reqwest::Request::new(reqwest::Method::GET, api.parse()?);
        let response = client.clone().oneshot(request).await?;
        let text = response.error_for_status()?.text().await?;
        if text != format!("{me} may reports.read") {
            return Err(format!("unexpected response: {text}").into());
        }
    }
    println!("10 requests by {me}: {} exchange", server.counts().requests);

    // On behalf of a caller: the gateway's layer keeps the caller's token in the request.
    let gateway = gateway(
        &source,
        &tokens,
        reqwest.clone(),
        &api,
        me.trust_domain_name(),
    )?;
    let gateway = serve(gateway).await?;
    let token = source.get_jwt_svid([GATEWAY]).await?;
    let response = reqwest
        .get(&gateway)
        .bearer_auth(token.token())
        .send()
        .await?;
    let text = response.error_for_status()?.text().await?;
    println!("the API, called by the gateway for its caller: {text}");
    let state = tokens.state();
    println!("{} exchanges, {} failures", state.exchanges, state.failures);
    if (state.exchanges, state.failures) != (2, 0) {
        return Err("expected two exchanges".into());
    }
    Ok(())
}

/// A gateway that calls the API with a token for its caller.
fn gateway(
    source: &JwtSource,
    tokens: &AccessTokens,
    client: reqwest::Client,
    api: &str,
    callers: &str,
) -> Result<Router, Error> {
    let cache = SvidCache::from(tokens);
    let api = api.to_owned();
    let handler = async move |caller: VerifiedSvid, headers: HeaderMap| {
        // `reqwest::Request` has no extensions, so the token is requested here. With a client of
        // `http::Request`, put the subject into its extensions.
        let onward = async {
            let subject = SubjectToken::of_caller(&caller, &headers).ok_or("no token was kept")?;
            let request = SvidRequest::new([API])?.on_behalf_of(subject);
            let header = cache.header(&request).await?;
            let sent = client
                .get(&api)
                .header(AUTHORIZATION, header)
                .send()
                .await?;
            Ok::<_, Error>(sent.error_for_status()?.text().await?)
        };
        onward.await.map_err(|error| {
            println!("the call to the API failed: {error}");
            StatusCode::BAD_GATEWAY
        })
    };
    let validator = Validator::builder(source.clone())
        .audience(GATEWAY)
        .build()?;
    let layer = ValidateJwtSvidLayer::required(validator, Allow::trust_domain(callers)?);
    let router = Router::new().route("/", get(handler));
    Ok(Router::new().fallback_service(layer.keep_credential().layer(router)))
}

/// The API. It accepts only tokens of the authorization server.
async fn who(
    State(server): State<FakeAuthorizationServer>,
    headers: HeaderMap,
) -> Result<String, StatusCode> {
    let header = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let token = header.and_then(|header| header.strip_prefix("Bearer "));
    let issued = token.and_then(|token| server.find(token));
    let issued = issued.ok_or(StatusCode::UNAUTHORIZED)?;
    let scope = issued.scope.unwrap_or_default();
    Ok(format!("{} may {scope}", issued.subject))
}

async fn source() -> Result<(JwtSource, Option<FakeAgent>), Error> {
    if std::env::var_os("SPIFFE_ENDPOINT_SOCKET").is_some() {
        return Ok((JwtSource::new().await?, None));
    }
    let agent = FakeAgent::start("example.org").await?;
    Ok((agent.source().await?, Some(agent)))
}

async fn serve(app: Router) -> Result<String, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok(origin)
}
