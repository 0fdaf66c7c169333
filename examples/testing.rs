//! Tests of an axum service that verifies its callers, without a SPIFFE deployment.
//!
//! ```text
//! cargo run --example testing     # runs the tests one by one
//! ```

use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::routing::{get, post};
use tower::{Layer, ServiceExt as _};
use tower_spiffe::server::AllowCallersLayer;
use tower_spiffe::testing::{self, FakeAgent, Fault, TokenBuilder};
use tower_spiffe::{Allow, JwtSource, ValidateJwtSvidLayer, Validator, VerifiedSvid};

type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

// ---- The service ----------------------------------------------------------------------------------

const AUDIENCE: &str = "spiffe://shop.test/orders";

/// All callers of the trust domain may read orders; only the till may write them.
fn service(source: JwtSource) -> Result<App> {
    let validator = Validator::builder(source).audience(AUDIENCE).build()?;
    let till_only = AllowCallersLayer::new(Allow::id("spiffe://shop.test/till")?);
    let orders = Router::new()
        .route("/orders", get(read))
        .route("/orders", post(write).layer(till_only));
    Ok(ValidateJwtSvidLayer::required(validator, Allow::trust_domain("shop.test")?).layer(orders))
}

async fn read(caller: VerifiedSvid) -> String {
    greeting(&caller)
}

async fn write() -> StatusCode {
    StatusCode::CREATED
}

fn greeting(caller: &VerifiedSvid) -> String {
    format!("orders for {}", caller.spiffe_id())
}

type App = <ValidateJwtSvidLayer as Layer<Router>>::Service;

// ---- Its tests ----------------------------------------------------------------------------------

const WEB: &str = "spiffe://shop.test/web";
const TILL: &str = "spiffe://shop.test/till";

/// Starts an agent, and the service on it.
async fn setup() -> Result<(FakeAgent, App)> {
    let agent = FakeAgent::start("shop.test").await?;
    let app = service(agent.source().await?)?;
    Ok((agent, app))
}

async fn status(app: &App, request: Request) -> Result<StatusCode> {
    Ok(app.clone().oneshot(request).await?.status())
}

fn read_as(token: TokenBuilder) -> Result<Request> {
    let request = Request::get("/orders").header(AUTHORIZATION, token.bearer());
    Ok(request.body(Body::empty())?)
}

fn write_as(token: TokenBuilder) -> Result<Request> {
    let request = Request::post("/orders").header(AUTHORIZATION, token.bearer());
    Ok(request.body(Body::empty())?)
}

/// Tests a handler without a token.
async fn a_handler_greets_its_caller() -> Result {
    let caller = testing::verified_svid(WEB);
    expect(
        "the greeting",
        greeting(&caller),
        format!("orders for {WEB}"),
    )
}

async fn only_the_till_writes() -> Result {
    let (agent, app) = setup().await?;
    let as_who = |id| agent.issuer().token(id, AUDIENCE);
    let read = status(&app, read_as(as_who(WEB))?).await?;
    expect("a reader", read, StatusCode::OK)?;
    let write = status(&app, write_as(as_who(WEB))?).await?;
    expect("a reader that writes", write, StatusCode::FORBIDDEN)?;
    let write = status(&app, write_as(as_who(TILL))?).await?;
    expect("the till", write, StatusCode::CREATED)
}

async fn invalid_tokens_are_rejected() -> Result {
    let (agent, app) = setup().await?;
    let good = || agent.issuer().token(WEB, AUDIENCE);
    let other_issuer = testing::Issuer::new("shop.test")?;
    for (which, token) in [
        ("an expired token", good().expired(Duration::from_secs(120))),
        (
            "a token for another service",
            good().audiences(["spiffe://shop.test/stock"]),
        ),
        (
            "a token signed by another key",
            good().signed_by(&other_issuer),
        ),
        ("a token without an audience", good().without_claim("aud")),
        (
            "a token of another trust domain",
            good().claim("sub", "spiffe://evil.test/web"),
        ),
    ] {
        expect(
            which,
            status(&app, read_as(token)?).await?,
            StatusCode::UNAUTHORIZED,
        )?;
    }
    let anonymous = Request::get("/orders").body(Body::empty())?;
    expect(
        "no token",
        status(&app, anonymous).await?,
        StatusCode::UNAUTHORIZED,
    )
}

async fn rotation_rejects_no_caller() -> Result {
    let (agent, app) = setup().await?;
    for _ in 0..3 {
        let old = agent.issuer().token(WEB, AUDIENCE);
        agent.rotate().await;
        let new = agent.issuer().token(WEB, AUDIENCE);
        expect(
            "with the old key",
            status(&app, read_as(old)?).await?,
            StatusCode::OK,
        )?;
        expect(
            "with the new key",
            status(&app, read_as(new)?).await?,
            StatusCode::OK,
        )?;
    }
    Ok(())
}

async fn agent_failure_rejects_no_caller() -> Result {
    let (agent, app) = setup().await?;
    let caller = || agent.issuer().token(WEB, AUDIENCE);
    for fault in [Fault::Hang, Fault::Garbage, Fault::HalfOpen] {
        let which = format!("while the agent has {fault:?}");
        agent.fail(fault);
        expect(
            &which,
            status(&app, read_as(caller())?).await?,
            StatusCode::OK,
        )?;
        agent.recover();
    }
    agent.stop().await;
    let status = status(&app, read_as(caller())?).await?;
    expect("while the agent is unavailable", status, StatusCode::OK)
}

// ---- In a user's project these are `#[tokio::test]`s --------------------------------------------

#[tokio::main]
async fn main() -> Result {
    run("a handler greets its caller", a_handler_greets_its_caller()).await?;
    run("only the till writes", only_the_till_writes()).await?;
    run("invalid tokens are rejected", invalid_tokens_are_rejected()).await?;
    run("rotation rejects no caller", rotation_rejects_no_caller()).await?;
    run(
        "agent failure rejects no caller",
        agent_failure_rejects_no_caller(),
    )
    .await
}

#[allow(clippy::print_stdout, reason = "the output is for users")]
async fn run(name: &str, test: impl Future<Output = Result>) -> Result {
    test.await.map_err(|error| format!("{name}: {error}"))?;
    println!("ok: {name}");
    Ok(())
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, is: T, should: T) -> Result {
    if is == should {
        return Ok(());
    }
    Err(format!("{what}: got {is:?}, expected {should:?}").into())
}
