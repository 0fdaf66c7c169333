//! H01 to H05 and H07: when polls run, and what they change.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tower_spiffe::bundle::{BundleSource as _, BundlesUnavailable};
use tower_spiffe::metrics::MetricsRecorder;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe_test_support::log::Log;

use super::*;

#[tokio::test(start_paused = true)]
async fn h01_without_a_hint_polls_every_five_minutes() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    let wait = polls(&bundles, 1).await.next_poll.unwrap();
    assert!((secs(270)..=secs(300)).contains(&wait), "{wait:?}");
    advance(wait - secs(1)).await;
    rest().await;
    assert_eq!(world.server.seen().len(), 1);
    advance(secs(1)).await;
    polls(&bundles, 2).await;
    assert_eq!(world.server.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn h01_hint_sets_the_interval_within_bounds() {
    let world = World::new().await;
    world.serve_bundle(None, Some(400));
    let bundles = world.web().await;
    let mut wait = polls(&bundles, 1).await.next_poll.unwrap();
    assert!((secs(90)..=secs(100)).contains(&wait), "{wait:?}");
    for (hint, low, high) in [
        (0, 60, 66),
        (1, 60, 66),
        (240, 60, 66),
        (u64::MAX, 270, 300),
    ] {
        world.serve_bundle(None, Some(hint));
        wait = next_poll(&bundles).await.next_poll.unwrap();
        assert!((secs(low)..=secs(high)).contains(&wait), "{hint}: {wait:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn h01_retry_after_is_honored_within_bounds() {
    let world = World::new().await;
    world.serve_bundle(None, Some(1));
    let bundles = world.web().await;
    polls(&bundles, 1).await;
    for (after, low, high) in [
        ("120", 120, 120),
        ("1", 60, 66),
        ("86400", 300, 300),
        ("x", 60, 66),
    ] {
        let busy = Reply::status("503 Service Unavailable").header("retry-after", after);
        world.server.answer(busy);
        let wait = next_poll(&bundles).await.next_poll.unwrap();
        assert!(
            (secs(low)..=secs(high)).contains(&wait),
            "{after}: {wait:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn h02_failed_polls_keep_the_bundle() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    let validator = world.validator(&bundles);
    world
        .server
        .answer(Reply::status("500 Internal Server Error"));
    polls(&bundles, 1).await;
    for _ in 0..20 {
        let state = next_poll(&bundles).await;
        assert!(!state.is_healthy() && state.revision == Ok(1));
        assert_eq!(error_of(&state).0, "bundle-fetch");
        // The retry is not earlier.
        assert!(state.next_poll.unwrap() >= secs(270));
        assert!(validator.validate(&world.token()).is_ok());
    }
    assert!(bundles.state().last_success.unwrap() > secs(20 * 270));
    world.server.answer(Reply::json(world.issuer.jwks()));
    let state = next_poll(&bundles).await;
    assert!(state.is_healthy() && state.last_error.is_none());
    assert_eq!((state.revision, state.last_success), (Ok(1), Some(secs(0))));
}

#[tokio::test(start_paused = true)]
async fn h02_first_polls_are_retried_quickly() {
    let world = World::new().await;
    world
        .server
        .answer(Reply::status("500 Internal Server Error"));
    let bundles = world.jwks_builder().build_lazy().unwrap();
    for (poll, ceiling) in [
        (1, 1),
        (2, 2),
        (3, 4),
        (4, 8),
        (5, 16),
        (6, 32),
        (7, 60),
        (8, 60),
    ] {
        if poll > 1 {
            advance(bundles.state().next_poll.unwrap()).await;
        }
        let state = polls(&bundles, poll).await;
        assert!(
            state.next_poll.unwrap() <= secs(ceiling),
            "{poll}: {state:?}"
        );
        assert_eq!(state.revision, Err(BundlesUnavailable::NotReady));
    }
}

#[tokio::test(start_paused = true)]
async fn h02_max_staleness_counts_both_clocks() {
    let world = World::new().await;
    let builder = world.jwks_builder().max_staleness(secs(1000));
    let bundles = builder.build().await.unwrap();
    let validator = world.validator(&bundles);
    let token = world
        .issuer
        .token(WEB, AUD)
        .expires_in(secs(1_000_000))
        .sign();
    let stale = ValidateReason::BundlesUnavailable(BundlesUnavailable::Stale);
    for wall in [false, true] {
        polls(&bundles, bundles.state().polls).await;
        assert!(validator.validate(&token).is_ok());
        world
            .server
            .answer(Reply::status("500 Internal Server Error"));
        match wall {
            false => advance(secs(1000)).await,
            true => world.clock.step_wall(1000),
        }
        assert_eq!(validator.validate(&token).unwrap_err().reason(), stale);
        let seen = bundles.state();
        assert!(!seen.is_healthy() && seen.revision == Err(BundlesUnavailable::Stale));
        // After a suspend the next poll is not delayed either.
        advance(secs(1)).await;
        until("the poll", || bundles.state().last_error.is_some()).await;
        world.server.answer(Reply::json(world.issuer.jwks()));
        let _ = next_poll(&bundles).await;
        assert!(validator.validate(&token).is_ok());
    }
}

#[derive(Default)]
struct Kinds(std::sync::Mutex<Vec<String>>);

impl MetricsRecorder for Kinds {
    fn record_error(&self, kind: &'static str) {
        self.0.lock().unwrap().push(kind.to_owned());
    }

    fn record_ready(&self, ready: bool) {
        self.0.lock().unwrap().push(format!("ready {ready}"));
    }

    fn record_update(&self) {
        self.0.lock().unwrap().push("update".to_owned());
    }
}

#[tokio::test(start_paused = true)]
async fn h03_lower_sequence_is_rejected() {
    let world = World::new().await;
    let log = Log::default();
    let _log = log.begin(tracing::Level::WARN);
    let kinds = Arc::new(Kinds::default());
    world.serve_bundle(Some(7), None);
    let bundles = world
        .web_builder()
        .metrics(kinds.clone())
        .build()
        .await
        .unwrap();
    polls(&bundles, 1).await;
    let old_key = world.issuer.signing_key_id();
    world.issuer.rotate_now();
    world.issuer.revoke(&old_key);
    world.serve_bundle(Some(8), None);
    let state = next_poll(&bundles).await;
    assert_eq!((state.sequence, state.revision), (Some(8), Ok(2)));
    let now = bundles.jwt_bundle().unwrap();

    world.issuer.rotate_now();
    for polls in 1..=3 {
        world.serve_bundle(Some(7), None);
        let state = next_poll(&bundles).await;
        assert_eq!((state.rollbacks, state.revision), (polls, Ok(2)));
        assert!(
            state.last_success.unwrap() >= secs(270 * polls),
            "not a contact"
        );
        let (kind, text) = error_of(&state);
        assert_eq!(kind, "bundle-rollback");
        assert!(text.contains("spiffe_sequence 7 is lower than 8"), "{text}");
        assert!(!state.is_healthy());
    }
    assert_eq!(*bundles.jwt_bundle().unwrap(), *now);
    assert_eq!(
        log.lines_with("polling a bundle failed"),
        1,
        "{}",
        log.text()
    );
    let events = kinds.0.lock().unwrap().clone();
    let rollbacks = events
        .iter()
        .filter(|kind| *kind == "bundle-rollback")
        .count();
    assert_eq!(rollbacks, 3);
    assert_eq!(events[..3], ["ready false", "update", "ready true"]);

    // After a restart it is accepted.
    let anew = world.web().await;
    assert_eq!(anew.state().sequence, Some(7));
}

#[tokio::test(start_paused = true)]
async fn h03_equal_or_missing_sequence_is_accepted() {
    let world = World::new().await;
    let log = Log::default();
    let _log = log.begin(tracing::Level::WARN);
    world.serve_bundle(Some(7), None);
    let bundles = world.web().await;
    polls(&bundles, 1).await;
    assert_eq!(next_poll(&bundles).await.revision, Ok(1));
    assert_eq!(log.text(), "");
    // A revocation with the same sequence takes effect.
    let first = world.issuer.signing_key_id();
    world.issuer.rotate_now();
    world.issuer.revoke(&first);
    world.serve_bundle(Some(7), None);
    let state = next_poll(&bundles).await;
    assert!(state.is_healthy() && state.revision == Ok(2));
    assert!(bundles.jwt_bundle().unwrap().authority(&first).is_none());
    assert_eq!(
        log.lines_with("under the same spiffe_sequence"),
        1,
        "{}",
        log.text()
    );
    // A document without a sequence is accepted; one with a lower sequence after it is rejected.
    world.issuer.rotate_now();
    world.serve_bundle(None, None);
    assert_eq!(next_poll(&bundles).await.revision, Ok(3));
    world.serve_bundle(Some(6), None);
    assert_eq!(error_of(&next_poll(&bundles).await).0, "bundle-rollback");
}

#[tokio::test(start_paused = true)]
async fn h04_unmodified_documents_count_as_contact() {
    let world = World::new().await;
    let date = "Mon, 30 Nov 2026 08:00:00 GMT";
    let document = Reply::json(world.issuer.jwks());
    world.server.answer(
        document
            .clone()
            .header("etag", "W/\"1\"")
            .header("last-modified", date),
    );
    let bundles = world.jwks().await;
    polls(&bundles, 1).await;
    world.server.answer(Reply::status("304 Not Modified"));
    let state = next_poll(&bundles).await;
    assert!(state.is_healthy() && state.revision == Ok(1));
    assert_eq!(state.last_success, Some(secs(0)));
    let [first, second] = &world.server.seen()[..] else {
        panic!("two requests")
    };
    assert!(!first.contains("if-none-match") && !first.contains("if-modified-since"));
    assert!(second.contains("if-none-match: w/\"1\"\r\n"), "{second}");
    assert!(second.contains(&format!("if-modified-since: {}\r\n", date.to_lowercase())));

    // Without a previous document, a 304 is an error.
    world.server.answer(document);
    next_poll(&bundles).await;
    world.server.answer(Reply::status("304 Not Modified"));
    let state = next_poll(&bundles).await;
    assert_eq!(error_of(&state).0, "bundle-fetch");
    assert!(state.last_success.unwrap() >= secs(270));
}

#[tokio::test(start_paused = true)]
async fn h04_a_rejected_document_is_not_revalidated() {
    let world = World::new().await;
    world.serve_bundle(Some(7), None);
    let bundles = world.web().await;
    polls(&bundles, 1).await;
    let old = Reply::json(world.bundle(Some(6), None).to_string()).header("etag", "\"old\"");
    world.server.answer(old);
    next_poll(&bundles).await;
    world.server.answer(Reply::status("304 Not Modified"));
    assert!(!next_poll(&bundles).await.is_healthy());
    assert!(
        world
            .server
            .seen()
            .iter()
            .all(|head| !head.contains("if-none-match"))
    );
}

#[tokio::test(start_paused = true)]
async fn h05_large_responses_are_rejected() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    polls(&bundles, 1).await;
    let large = format!(r#"{{"keys": [], "x": "{}"}}"#, "x".repeat(1 << 20));
    let chunk = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let chunked = Reply::status("200 OK")
        .header("transfer-encoding", "chunked")
        .body(chunk);
    for reply in [Reply::json(&large), chunked.then_hangs()] {
        world.server.answer(reply);
        let state = next_poll(&bundles).await;
        assert_eq!(error_of(&state).0, "bundle-too-large");
        assert_eq!(state.keys, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn h05_redirects_are_bounded_and_stay_https() {
    let world = World::new().await;
    let jwks = world.issuer.jwks();
    let hops = |most: usize| {
        let jwks = jwks.clone();
        move |path: &str| match path
            .strip_prefix("/hop")
            .map(|hop| hop.parse::<usize>().unwrap())
        {
            Some(hop) if hop < most => Reply::redirect(&format!("hop{}", hop + 1)),
            None => Reply::redirect("/hop1"),
            Some(_) => Reply::json(&jwks),
        }
    };
    world.server.script(hops(5));
    let bundles = world.jwks().await;
    assert_eq!(world.server.seen().len(), 6);
    polls(&bundles, 1).await;
    world.server.script(hops(6));
    let (_, text) = error_of(&next_poll(&bundles).await);
    assert!(text.contains("redirects more than 5 times"), "{text}");
    for to in [
        world.server.url("/x").replace("https", "http"),
        "file:///etc/passwd".to_owned(),
        world
            .server
            .url("/x")
            .replace("localhost", "user@localhost"),
    ] {
        let before = world.server.seen().len();
        world.server.answer(Reply::redirect(&to));
        let (kind, text) = error_of(&next_poll(&bundles).await);
        assert_eq!(kind, "bundle-fetch");
        assert!(text.contains("redirects to an invalid URL"), "{text}");
        assert_eq!(world.server.seen().len(), before + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn h05_slow_servers_time_out_and_block_nothing() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    let validator = world.validator(&bundles);
    polls(&bundles, 1).await;
    let start = Reply::status("200 OK").header("content-length", "100");
    for reply in [
        Reply::status("200 OK").then_hangs(),
        start.body("{\"keys\":").then_hangs(),
    ] {
        world.server.answer(reply);
        let before = bundles.state();
        let requests = world.server.seen().len();
        advance(before.next_poll.unwrap()).await;
        until("a request", || world.server.seen().len() > requests).await;
        rest().await;
        advance(secs(9)).await;
        rest().await;
        let state = bundles.state();
        assert_eq!((state.polls, state.next_poll), (before.polls, None));
        assert!(!state.overdue);
        assert!(validator.validate(&world.token()).is_ok());
        advance(secs(1)).await;
        let (_, text) = error_of(&polls(&bundles, before.polls + 1).await);
        assert!(text.contains("no complete response within 10s"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn h05_connections_time_out_after_five_seconds() {
    let world = World::new().await;
    // The system accepts the connection, but the TLS handshake never begins.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "https://localhost:{}/keys",
        silent.local_addr().unwrap().port()
    );
    let bundles = world
        .set_up(HttpsBundles::jwks_url(td(TD), url))
        .build_lazy()
        .unwrap();
    rest().await;
    advance(secs(4)).await;
    rest().await;
    assert_eq!(bundles.state().polls, 0);
    advance(secs(1)).await;
    let (_, text) = error_of(&polls(&bundles, 1).await);
    assert_eq!(text, "no connection within 5s");
}

#[tokio::test(start_paused = true)]
async fn h07_removed_key_is_rejected_with_a_warm_cache() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    let validator = world.validator(&bundles);
    polls(&bundles, 1).await;
    let token = world.issuer.token(WEB, AUD).expires_in(secs(3600)).sign();
    assert!(validator.validate(&token).is_ok() && validator.validate(&token).is_ok());
    // The same keys in another order and with other whitespace are no change.
    world.issuer.prepare(tower_spiffe::bundle::Algorithm::ES256);
    world.server.answer(Reply::json(world.issuer.jwks()));
    assert_eq!(next_poll(&bundles).await.revision, Ok(2));
    world
        .server
        .answer(Reply::json(world.issuer.jwks_in_another_order()));
    assert_eq!(next_poll(&bundles).await.revision, Ok(2));
    assert!(validator.validate(&token).is_ok());

    let old = world.issuer.signing_key_id();
    world.issuer.rotate_now();
    world.issuer.revoke(&old);
    world.server.answer(Reply::json(world.issuer.jwks()));
    let changed = bundles.changed_since(2).expect("it changes");
    assert_eq!(next_poll(&bundles).await.revision, Ok(3));
    changed.await;
    let error = validator.validate(&token).unwrap_err();
    assert_eq!(error.reason(), ValidateReason::KeyUnknown);
}

#[tokio::test(start_paused = true)]
async fn h02_a_runtime_that_ends_closes_the_source() {
    let world = World::new().await;
    let builder = world.jwks_builder();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        builder.build_lazy().unwrap()
    });
    let bundles = thread.join().unwrap();
    assert_eq!(bundles.revision(), Err(BundlesUnavailable::Closed));
    assert!(!bundles.is_healthy() && !bundles.state().following);
    assert_eq!(bundles.ready().await, Err(BundlesUnavailable::Closed));
    let changed = bundles.changed_since(0).unwrap();
    assert!(changed.now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn h02_an_undriven_task_is_overdue() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    polls(&bundles, 1).await;
    assert!(bundles.is_healthy());
    // No task runs between these two lines.
    world.clock.step_wall(16);
    assert!(bundles.state().overdue && !bundles.is_healthy());
    advance(secs(1)).await;
    until("the task", || bundles.is_healthy()).await;
}
