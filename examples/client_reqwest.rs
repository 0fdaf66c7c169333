//! Signs the requests of `reqwest::Client` as a tower service: `cargo run --example client_reqwest`.
//!
//! Uses the agent at `SPIFFE_ENDPOINT_SOCKET`, or starts its own (`testing::FakeAgent`). Calls a service
//! of its own. In production the source is `JwtSource::new().await?`. To keep reqwest's request
//! builder, see `client_reqwest_middleware.rs`.

#![allow(clippy::print_stdout, reason = "the output is for users")]

use axum::response::Redirect;
use axum::{Router, routing::get};
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Method, Request};
use tokio::net::TcpListener;
use tower::{Layer, Service, ServiceExt};
use tower_spiffe::client::Plaintext;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::token::{TokenError, TokenErrorReason};
use tower_spiffe::{AddJwtSvid, Allow, Audience, JwtSource};
use tower_spiffe::{ValidateJwtSvidLayer, Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (source, _agent) = source().await?;
    let me = source.get_jwt_svid([REPORTS]).await?.spiffe_id().clone();
    let elsewhere = serve(Router::new().route("/", get(whether_signed))).await?;
    let reports = reports(&source, me.trust_domain_name(), &elsewhere)?;
    let reports = serve(reports).await?;

    // reqwest follows redirects itself, inside the layer: the first hop gets the token, and reqwest
    // removes `authorization` if a hop leads to another origin. It does not remove other headers:
    // with `.header(name)`, disable redirects (`redirect::Policy::none()`). reqwest's own retries
    // send the same token again. For a new token after a 401, add a retry layer outside.
    let reqwest = reqwest::Client::builder()
        // reqwest uses HTTP_PROXY even for loopback, and a proxy can read http requests.
        .no_proxy()
        .build()?;

    // The audience is bound to an origin: its tokens are sent only to that origin.
    let audience = Audience::fixed(REPORTS).for_origin(&reports)?;
    let client = AddJwtSvid::new(reqwest, source, audience);

    // Over https this request would succeed. Over http it fails unless `allow_plaintext` permits it.
    let Err(error) = call(client.clone(), &reports).await else {
        return Err("expected an error".into());
    };
    println!("GET {reports} -> {error}");
    if TokenError::find(&*error).map(TokenError::reason) != Some(TokenErrorReason::Plaintext) {
        return Err("expected an error of the layer".into());
    }
    let client = client.allow_plaintext(Plaintext::Loopback);

    for (path, expected) in [
        ("/", format!("reports for {me}")),
        ("/away", "signed: false".to_owned()),
    ] {
        let body = call(client.clone(), &format!("{reports}{path}")).await?;
        println!("GET {reports}{path} -> {body}");
        if body != expected {
            return Err(format!("expected {expected:?}").into());
        }
    }
    Ok(())
}

/// Sends a request with any tower service that uses reqwest's types.
async fn call<S>(mut client: S, url: &str) -> Result<String, Error>
where
    S: Service<Request, Response = reqwest::Response, Error = Error>,
{
    let request = Request::new(Method::GET, url.parse()?);
    let response = client.ready().await?.call(request).await?;
    Ok(response.error_for_status()?.text().await?)
}

async fn source() -> Result<(JwtSource, Option<FakeAgent>), Error> {
    if std::env::var_os("SPIFFE_ENDPOINT_SOCKET").is_some() {
        return Ok((JwtSource::new().await?, None));
    }
    let agent = FakeAgent::start("example.org").await?;
    Ok((agent.source().await?, Some(agent)))
}

/// The called service: returns its caller, or redirects to another host.
fn reports(source: &JwtSource, callers: &str, elsewhere: &str) -> Result<Router, Error> {
    let validator = Validator::builder(source.clone())
        .audience(REPORTS)
        .build()?;
    let to = format!("{elsewhere}/");
    let router = Router::new()
        .route("/", get(who))
        .route("/away", get(|| async move { Redirect::temporary(&to) }));
    let app = ValidateJwtSvidLayer::required(validator, Allow::trust_domain(callers)?);
    Ok(Router::new().fallback_service(app.layer(router)))
}

async fn who(caller: VerifiedSvid) -> String {
    format!("reports for {}", caller.spiffe_id())
}

async fn whether_signed(headers: HeaderMap) -> String {
    format!("signed: {}", headers.contains_key(AUTHORIZATION))
}

async fn serve(app: Router) -> Result<String, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok(origin)
}
