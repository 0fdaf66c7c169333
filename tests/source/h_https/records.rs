//! What a polled source records and logs.

use tower_spiffe::bundle::BundleSource;
use tracing::Level;

use super::*;
use crate::log::Log;

#[tokio::test(start_paused = true)]
async fn h03_new_content_under_one_sequence_is_logged() {
    let log = Log::default();
    let _guard = log.begin(Level::WARN);
    let world = World::new().await;
    let bundles = world.web_builder().build_lazy().unwrap();
    let mut warnings = 0;
    for (sequence, hint, is_logged) in [
        (Some(1), None, false),
        (Some(2), Some(400), false),
        (Some(2), Some(500), true),
        (Some(2), Some(500), false),
        (None, Some(600), false),
        (Some(2), Some(700), true),
        (Some(3), Some(800), false),
    ] {
        world.serve_bundle(sequence, hint);
        let state = match bundles.state().polls {
            0 => polls(&bundles, 1).await,
            _ => next_poll(&bundles).await,
        };
        assert!(state.is_healthy(), "{state:?}");
        warnings += usize::from(is_logged);
        let logged = log.lines_with("new content under the same spiffe_sequence");
        assert_eq!(logged, warnings, "{sequence:?}, {hint:?}");
    }
    // Bundles without sequences may change.
    log.clear();
    world.serve_bundle(None, None);
    let bundles = world.web_builder().build_lazy().unwrap();
    polls(&bundles, 1).await;
    world.serve_bundle(None, Some(400));
    next_poll(&bundles).await;
    assert_eq!(log.lines_with("spiffe_sequence"), 0);
}

#[tokio::test(start_paused = true)]
async fn h02_each_new_failure_is_one_warning() {
    let log = Log::default();
    let _guard = log.begin(Level::DEBUG);
    let world = World::new().await;
    let bundles = world.jwks().await;
    polls(&bundles, 1).await;
    let good = Reply::json(world.issuer.jwks());
    let down = || Reply::status("503 Service Unavailable");
    for (reply, level) in [
        (down(), Some("WARN")),
        (down(), Some("DEBUG")),
        // The same class with another text, then another class.
        (Reply::status("404 Not Found"), Some("WARN")),
        (Reply::json("{}"), Some("WARN")),
        (Reply::json("{}"), Some("DEBUG")),
        (good, None),
        (down(), Some("WARN")),
    ] {
        log.clear();
        world.server.answer(reply);
        next_poll(&bundles).await;
        let levels = log.levels("polling a bundle failed");
        assert_eq!(levels, Vec::from_iter(level), "{}", log.text());
    }
}

#[tokio::test(start_paused = true)]
async fn h04_last_change_is_that_of_the_keys() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    let first = polls(&bundles, 1).await;
    assert_eq!(first.last_change, Some(Duration::ZERO));
    for _ in 0..2 {
        let before = bundles.state().last_change.unwrap();
        let state = next_poll(&bundles).await;
        assert_eq!(state.last_success, Some(Duration::ZERO));
        assert!(state.last_change.unwrap() >= before + secs(60));
    }
    world.server.answer(Reply::json(r#"{"keys": []}"#));
    let state = next_poll(&bundles).await;
    assert_eq!(state.last_change, Some(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn h13_task_is_overdue_after_15_s() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    polls(&bundles, 1).await;
    // As in suspend: the task does not run.
    world.clock.step_wall(15);
    assert!(!bundles.state().overdue);
    world.clock.step_wall(1);
    let state = bundles.state();
    assert!(state.overdue && !state.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn h02_health_is_the_same_for_each_user() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    polls(&bundles, 1).await;
    for (reply, is_healthy) in [
        (Reply::json(world.issuer.jwks()), true),
        (Reply::status("503 Service Unavailable"), false),
        (Reply::json(world.issuer.jwks()), true),
    ] {
        world.server.answer(reply);
        assert_eq!(next_poll(&bundles).await.is_healthy(), is_healthy);
        assert_eq!(bundles.is_healthy(), is_healthy);
        assert_eq!(BundleSource::is_healthy(&bundles), is_healthy);
    }
}

#[tokio::test(start_paused = true)]
async fn h05_colons_in_paths_are_no_schemes() {
    let world = World::new().await;
    let jwks = world.issuer.jwks();
    for (location, target) in [
        ("keys/a:b", "/keys/a:b"),
        ("1:b", "/1:b"),
        ("?a:b", "/keys?a:b"),
    ] {
        let jwks = jwks.clone();
        world.server.script(move |path| match path {
            path if path == target => Reply::json(&jwks),
            _ => Reply::redirect(location),
        });
        let bundles = world.jwks_builder().build_lazy().unwrap();
        let state = polls(&bundles, 1).await;
        assert!(state.is_healthy(), "{location}: {state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn h01_next_poll_is_unknown_during_a_poll() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    let before = polls(&bundles, 1).await;
    world
        .server
        .answer(Reply::status("200 OK").without_end().then_hangs());
    advance(before.next_poll.unwrap()).await;
    until("a request", || world.server.seen().len() == 2).await;
    let during = bundles.state();
    assert_eq!((during.polls, during.next_poll), (1, None));
    assert!(during.is_healthy());
}
