//! Messages that name the cause and the fix.

use std::convert::Infallible;

use http::{Request, Response};
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::server::{Allow, AllowCallersLayer, ValidateJwtSvidLayer};
use tower_spiffe::verify::ValidateReason;
use tracing::Level;

use crate::log::Log;
use crate::support::{AUDIENCE, OPS, WEB, World, bearer, with_authorization};

/// Returns the log of one request with this token, at this level.
async fn log_of(world: &World, level: Level, token: &str, in_span: bool) -> String {
    let log = Log::default();
    let guard = log.begin(level);
    let inner = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let narrow = AllowCallersLayer::new(Allow::id(OPS).unwrap());
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain());
    let service = layer.layer(narrow.layer(inner));
    let span =
        in_span.then(|| tracing::info_span!("request", peer.spiffe_id = tracing::field::Empty));
    let request = with_authorization(&bearer(token));
    let answer = service.oneshot(request);
    match span {
        Some(span) => tracing::Instrument::instrument(answer, span).await.unwrap(),
        None => answer.await.unwrap(),
    };
    drop(guard);
    log.text()
}

fn rejection_line(log: &str) -> &str {
    let mut lines = log
        .lines()
        .filter(|line| line.contains("requests are not allowed"));
    let line = lines.next().expect("no rejection is logged");
    assert_eq!(lines.next(), None);
    line
}

#[tokio::test]
async fn e28_audience_rejection_logs_both_audiences() {
    let world = World::new();
    let token = world
        .issuer
        .token_with(WEB, json!({ "aud": ["one\n", "two"] }));
    let log = log_of(&world, Level::DEBUG, &token, false).await;
    let line = rejection_line(&log);
    assert!(
        line.contains(r"audiences=") && line.contains("one") && line.contains("two"),
        "{line}"
    );
    assert!(
        line.contains(&format!("accepted_audiences=[{AUDIENCE:?}]")),
        "{line}"
    );

    let log = log_of(&world, Level::INFO, &token, false).await;
    let line = rejection_line(&log);
    assert!(
        !line.contains("audiences"),
        "audiences are logged above debug: {line}"
    );
}

#[tokio::test]
async fn e28_claimed_audiences_are_bounded_in_logs() {
    let world = World::new();
    let many: Vec<String> = (0..20).map(|n| format!("{n}{}", "x".repeat(200))).collect();
    let token = world.issuer.token_with(WEB, json!({ "aud": many }));
    let error = world.validator.validate(&token).unwrap_err();
    assert_eq!(error.reason(), ValidateReason::Audience);
    let shown = error.audiences().unwrap();
    assert!(shown.len() <= 3 * 66 + 5, "{shown}");
    assert!(shown.ends_with(", …"), "{shown}");
}

#[tokio::test]
async fn e28_rejection_line_names_the_caller_once() {
    let world = World::new();
    let token = world.issuer.token(WEB);
    let log = log_of(&world, Level::INFO, &token, false).await;
    let line = rejection_line(&log);
    assert_eq!(line.matches("peer.spiffe_id").count(), 1, "{line}");
    // Each span that has the field names the caller once; the line itself does not.
    let log = log_of(&world, Level::INFO, &token, true).await;
    let line = rejection_line(&log);
    assert_eq!(line.matches("peer.spiffe_id").count(), 2, "{line}");
}

#[test]
fn e28_bearer_prefix_is_named() {
    let world = World::new();
    let token = world.issuer.token(WEB);
    for text in [
        format!("Bearer {token}"),
        format!("bearer {token}"),
        "Bearer".to_owned() + " x",
    ] {
        let error = world.validator.validate(&text).unwrap_err();
        assert_eq!(error.reason(), ValidateReason::Malformed);
        assert!(error.detail().contains("`Bearer`"), "{error}");
    }
    for text in ["h.p.", "h.p", ".p.s", "h..s", "", "a b"] {
        let error = world.validator.validate(text).unwrap_err();
        assert!(error.detail().contains("three non-empty parts"), "{error}");
    }
}
