//! A gateway: it verifies its callers, forwards their requests, and signs them as itself:
//! `cargo run --example gateway`.
//!
//! The caller's token is not forwarded, and only the gateway sets headers that name a caller. It
//! starts its own agent (`testing::FakeAgent`), sends requests to itself, and ends. In
//! production the source is `JwtSource::new().await?`, and the upstream is reached over https.

#![allow(clippy::print_stdout, reason = "the output is for users")]

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{any, get};
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderName, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tower::{Layer, ServiceExt};
use tower_spiffe::client::Plaintext;
use tower_spiffe::client::{AddJwtSvid, AddJwtSvidLayer};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{Allow, Audience, JwtSource, ValidateJwtSvidLayer, Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Signed = AddJwtSvid<Client<HttpConnector, Body>>;

const GATEWAY: &str = "spiffe://example.org/gateway";
const LEDGER: &str = "spiffe://example.org/ledger";
const CALLER: HeaderName = HeaderName::from_static("x-caller");

/// Headers that an upstream could use as the identity of the caller. The gateway removes them from
/// requests.
const IDENTITY: [HeaderName; 3] = [
    CALLER,
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("x-spiffe-id"),
];

#[derive(Clone)]
struct Upstream {
    origin: String,
    client: Signed,
}

fn gateway(source: JwtSource, origin: String) -> Result<Router, Error> {
    // Callers have tokens for the gateway, and the gateway has one for the ledger.
    let validator = Validator::builder(source.clone())
        .audience(GATEWAY)
        .build()?;
    let audience = Audience::fixed(LEDGER).for_origin(&origin)?;
    let client = AddJwtSvidLayer::new(source, audience)
        // The ledger of this example is on this machine.
        .allow_plaintext(Plaintext::Loopback)
        .strict()
        .layer(Client::builder(TokioExecutor::new()).build_http());
    let router = Router::new()
        .fallback(forward)
        .with_state(Upstream { origin, client });
    let layer = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org")?);
    Ok(Router::new()
        .route("/livez", get(StatusCode::OK))
        .fallback_service(layer.layer(router)))
}

/// The layer removed the caller's token from the request. The request keeps its extensions, so that
/// the client layer knows that it is forwarded.
async fn forward(
    State(upstream): State<Upstream>,
    caller: VerifiedSvid,
    mut request: Request,
) -> Result<Response, StatusCode> {
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let uri = format!("{}{path}", upstream.origin);
    *request.uri_mut() = uri.parse::<Uri>().map_err(|_| StatusCode::BAD_REQUEST)?;
    let headers = request.headers_mut();
    headers.remove(HOST);
    for name in IDENTITY {
        headers.remove(name);
    }
    let caller = caller.spiffe_id().as_str().parse();
    headers.insert(CALLER, caller.map_err(|_| StatusCode::BAD_REQUEST)?);
    let response = upstream.client.oneshot(request).await;
    Ok(response
        .map_err(|_| StatusCode::BAD_GATEWAY)?
        .map(Body::new))
}

/// The upstream. It allows only the gateway, which names the original caller in a header.
fn ledger(source: JwtSource) -> Result<Router, Error> {
    let validator = Validator::builder(source).audience(LEDGER).build()?;
    let router = Router::new().route(
        "/balance",
        any(async |by: VerifiedSvid, request: Request| {
            let callers = request.headers().get_all(CALLER).iter();
            let callers: Vec<_> = callers.filter_map(|value| value.to_str().ok()).collect();
            let token = request.headers().contains_key(AUTHORIZATION);
            format!(
                "by {}, for {callers:?}, with a token: {token}",
                by.spiffe_id()
            )
        }),
    );
    let layer = ValidateJwtSvidLayer::required(validator, Allow::id(GATEWAY)?);
    Ok(Router::new().fallback_service(layer.layer(router)))
}

async fn serve(app: impl FnOnce(&str) -> Result<Router, Error>) -> Result<String, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, app(&origin)?).into_future());
    Ok(origin)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let agent = FakeAgent::start("example.org").await?;
    agent.register(GATEWAY, "", Duration::from_secs(300))?;
    let source = agent.source().await?;
    let upstream = serve(|_| ledger(source.clone())).await?;
    let base = serve(|_| gateway(source.clone(), upstream)).await?;

    let web = Some(agent.bearer("spiffe://example.org/web", GATEWAY));
    let for_ledger = Some(agent.bearer("spiffe://example.org/web", LEDGER));
    let allowed = format!("by {GATEWAY}, for [\"spiffe://example.org/web\"], with a token: false");
    for (token, status, text) in [
        (web, 200, allowed.as_str()),
        (for_ledger, 401, ""),
        (None, 401, ""),
    ] {
        let mut request = reqwest::Client::new()
            .get(format!("{base}/balance"))
            // The caller claims another identity.
            .header(CALLER, "spiffe://example.org/ops");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let response = request.send().await?;
        let found = (response.status().as_u16(), response.text().await?);
        println!("{} {}", found.0, found.1);
        if found != (status, text.to_owned()) {
            return Err(format!("expected {status} {text}").into());
        }
    }
    Ok(())
}
