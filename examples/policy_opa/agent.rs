//! A fake Open Policy Agent: `POST /v1/data/reports/authz` with one fixed rule.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::watch;

/// The behavior of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behavior {
    Normal,
    /// Responds after this time.
    Slow(Duration),
    /// Responds with status 500.
    Broken,
    /// Responds with an invalid decision.
    Invalid(&'static str),
    /// Responds with a body above the client's limit.
    TooLong,
}

pub struct Agent {
    pub base: String,
    behavior: watch::Sender<Behavior>,
    asked: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl Agent {
    pub async fn start() -> Result<Self, std::io::Error> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let behavior = watch::channel(Behavior::Normal).0;
        let asked = Arc::new(AtomicUsize::new(0));
        let app = Router::new()
            .route("/v1/data/reports/authz", post(decide))
            .with_state((behavior.clone(), asked.clone()));
        let server = tokio::spawn(async move { drop(axum::serve(listener, app).await) });
        Ok(Self {
            base,
            behavior,
            asked,
            server,
        })
    }

    pub fn set(&self, behavior: Behavior) {
        self.behavior.send_replace(behavior);
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn decide(
    State((behavior, asked)): State<(watch::Sender<Behavior>, Arc<AtomicUsize>)>,
    body: String,
) -> (StatusCode, String) {
    asked.fetch_add(1, Ordering::SeqCst);
    let behavior = *behavior.borrow();
    match behavior {
        Behavior::Normal => {}
        Behavior::Slow(delay) => tokio::time::sleep(delay).await,
        Behavior::Broken => return (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
        Behavior::Invalid(text) => return (StatusCode::OK, text.to_owned()),
        Behavior::TooLong => return (StatusCode::OK, " ".repeat(1 << 20)),
    }
    let Ok(asked) = serde_json::from_str::<Value>(&body) else {
        return (StatusCode::BAD_REQUEST, String::new());
    };
    (StatusCode::OK, rule(&asked["input"]).to_string())
}

/// All workloads may read; only `ops` may do anything else.
fn rule(input: &Value) -> Value {
    let Some(caller) = input["caller"].as_str() else {
        return json!({ "result": { "allow": false } });
    };
    if input["method"] == "GET" || caller.ends_with("/ops") {
        return json!({ "result": { "allow": true } });
    }
    json!({ "result": { "allow": false, "reason": "only ops may write" } })
}
