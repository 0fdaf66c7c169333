//! A policy file in a dry run.

use std::convert::Infallible;
use std::sync::Arc;

use http::{HeaderValue, Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::server::{Allow, FilePolicy, ValidateJwtSvidLayer};
use tower_spiffe_test_support::temp::TempDir;
use tracing::Level;

use super::metrics::Counts;
use super::web_rule;
use crate::log::Log;
use crate::support::{OPS, WEB, World, bearer};

fn open(dir: &TempDir) -> FilePolicy {
    let path = dir.join("policy.toml");
    std::fs::write(&path, web_rule("/a", "['GET']")).unwrap();
    FilePolicy::builder(path).dry_run(true).open().unwrap()
}

async fn status(layer: &ValidateJwtSvidLayer, path: &str, token: Option<HeaderValue>) -> u16 {
    let service = layer.layer(service_fn(async |_: Request<String>| {
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let mut request = Request::get(path).body(String::new()).unwrap();
    if let Some(token) = token {
        request.headers_mut().insert("authorization", token);
    }
    service.oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn p05_a_dry_run_opens_everything_and_counts() {
    let counts = Arc::new(Counts::default());
    let world = World::with(|builder| builder.metrics(counts.clone()));
    let dir = TempDir::new();
    let policy = open(&dir);
    assert!(policy.state().dry_run);
    let (web, ops) = (world.bearer(WEB), world.bearer(OPS));
    for layer in [
        ValidateJwtSvidLayer::required(world.validator.clone(), policy.clone()),
        ValidateJwtSvidLayer::optional(world.validator.clone(), policy.clone()),
    ] {
        for (path, token, counted) in [
            ("/a", Some(&web), None),
            ("/a", Some(&ops), Some("not-allowed")),
            ("/b", Some(&web), Some("not-allowed")),
            ("/a", None, Some("missing")),
            ("/b", None, Some("missing")),
        ] {
            assert_eq!(status(&layer, path, token.cloned()).await, 200, "{path}");
            assert_eq!(counts.take(), Vec::from_iter(counted), "{path}");
        }
        // Invalid tokens are still rejected.
        assert_eq!(status(&layer, "/a", Some(bearer("a.b.c"))).await, 401);
        assert!(counts.take().is_empty());
    }
}

#[tokio::test]
async fn p05_current_policy_decides_during_a_dry_run() {
    let counts = Arc::new(Counts::default());
    let world = World::with(|builder| builder.metrics(counts.clone()));
    let dir = TempDir::new();
    let policy = Allow::id(OPS).unwrap().and(Allow::policy(open(&dir)));
    for layer in [
        ValidateJwtSvidLayer::required(world.validator.clone(), policy.clone()),
        ValidateJwtSvidLayer::optional(world.validator.clone(), policy.clone()),
    ] {
        for (token, expected, counted) in [
            (Some(world.bearer(WEB)), 403, None),
            (Some(world.bearer(OPS)), 200, Some("not-allowed")),
            (None, 401, Some("missing")),
        ] {
            assert_eq!(status(&layer, "/a", token).await, expected);
            assert_eq!(counts.take(), Vec::from_iter(counted));
        }
    }
}

#[tokio::test]
async fn p05_a_dry_run_logs_one_line_per_caller() {
    let world = World::new();
    let dir = TempDir::new();
    let log = Log::default();
    {
        let _listening = log.begin(Level::INFO);
        let layer = ValidateJwtSvidLayer::required(world.validator.clone(), open(&dir));
        assert_eq!(log.levels("a policy file is in a dry run"), ["WARN"]);
        for _ in 0..3 {
            status(&layer, "/a", Some(world.bearer(OPS))).await;
            status(&layer, "/secret/eyJhbGciOiJFUzI1NiJ9.e30.c2ln", None).await;
        }
        let line = "dry run: requests would be rejected: ";
        assert_eq!(log.lines_with(line), 2, "{}", log.text());
        let text = log.text();
        assert!(
            text.contains(r#"request="GET /a""#) && text.contains(OPS),
            "{text}"
        );
        assert!(
            text.contains("no rule of the policy file allows this caller"),
            "{text}"
        );
        // Text from unknown callers.
        assert!(!text.contains("secret"), "{text}");
    }
    let _listening = log.begin(Level::DEBUG);
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), open(&dir));
    status(&layer, "/secret/eyJhbGciOiJFUzI1NiJ9.e30.c2ln", None).await;
    let text = log.text();
    assert!(
        text.contains("[redacted]") && !text.contains("eyJ"),
        "{text}"
    );
}

#[tokio::test]
async fn p05_documents_have_no_dry_run() {
    let dir = TempDir::new();
    let policy = open(&dir);
    let decision = super::decide(&policy.document(), None, "/b");
    assert_eq!(
        decision,
        tower_spiffe::server::Decision::AuthenticationRequired
    );
}
