//! An axum server whose policy is a file: `cargo run --example policy_file`.
//!
//! It starts an embedded Workload API, sends requests for each rule of `policy.toml`, changes a copy of
//! the file at run time, and ends. In production the source is `JwtSource::new().await?`.

#![allow(clippy::print_stdout, reason = "the output is for users")]

use std::time::Duration;

use axum::extract::Request;
use axum::routing::get;
use axum::{Router, ServiceExt};
use tower::Layer;
use tower_spiffe::server::FilePolicy;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{ValidateJwtSvidLayer, Validator};

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";

#[tokio::main]
async fn main() -> Result<(), Error> {
    // A copy, because this program changes it.
    let dir = std::env::temp_dir().join(format!("policy-file-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let outcome = serve(&dir).await;
    std::fs::remove_dir_all(&dir)?;
    outcome
}

async fn serve(dir: &std::path::Path) -> Result<(), Error> {
    let text = include_str!("policy.toml");
    let path = dir.join("policy.toml");
    std::fs::write(&path, text)?;
    let policy = FilePolicy::builder(&path)
        .poll_interval(Duration::from_millis(100))
        .open()?;
    println!("{} rules", policy.state().rules);

    let agent = FakeAgent::start("example.org").await?;
    let source = agent.source().await?;
    let validator = Validator::builder(source).audience(REPORTS).build()?;
    let layer = ValidateJwtSvidLayer::required(validator, policy.clone());
    let router = Router::new().route("/livez", get(async || "alive")).route(
        "/reports/{id}",
        get(async || "report").delete(async || "deleted"),
    );
    let app = ServiceExt::<Request>::into_make_service(layer.layer(router));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, app).into_future());

    let client = reqwest::Client::new();
    let call = async |method: reqwest::Method, path: &str, name: Option<&str>| {
        let mut request = client.request(method.clone(), format!("{url}{path}"));
        if let Some(name) = name {
            let token = agent
                .issuer()
                .token(&format!("spiffe://example.org/{name}"), REPORTS)
                .claim(
                    "groups",
                    [if name == "ops" { "operators" } else { "users" }],
                );
            request = request.header("authorization", token.bearer());
        }
        let status = request.send().await?.status().as_u16();
        println!(
            "{method} {path} as {}: {status}",
            name.unwrap_or("anonymous")
        );
        Ok::<u16, Error>(status)
    };
    use reqwest::Method;
    assert_eq!(call(Method::GET, "/livez", None).await?, 200);
    assert_eq!(call(Method::GET, "/reports/7", None).await?, 401);
    assert_eq!(call(Method::GET, "/reports/7", Some("web")).await?, 200);
    assert_eq!(
        call(Method::GET, "/reports/7", Some("batch/nightly")).await?,
        200
    );
    assert_eq!(call(Method::DELETE, "/reports/7", Some("web")).await?, 403);
    assert_eq!(call(Method::DELETE, "/reports/7", Some("ops")).await?, 200);

    println!("an invalid file: the last valid policy stays in use");
    replace(&path, &format!("{text}[[rule]]\npath = \"/reports\"\n"))?;
    until(|| !policy.is_healthy()).await;
    if let Some(error) = policy.state().last_error {
        println!("{error}");
    }
    assert_eq!(call(Method::GET, "/reports/7", Some("web")).await?, 200);

    println!("a new file: web is no longer a reader");
    replace(
        &path,
        &text.replace("example.org/web", "example.org/portal"),
    )?;
    until(|| policy.is_healthy()).await;
    assert_eq!(call(Method::GET, "/reports/7", Some("web")).await?, 403);
    assert_eq!(call(Method::GET, "/reports/7", Some("portal")).await?, 200);
    Ok(())
}

/// Replaces the file atomically with a rename, so that no partial file is read.
fn replace(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    let next = path.with_extension("next");
    std::fs::write(&next, text)?;
    std::fs::rename(next, path)
}

async fn until(so: impl Fn() -> bool) {
    while !so() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
