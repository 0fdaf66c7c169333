//! H10: the first bundle, and invalid settings.

use std::error::Error as _;

use tower_spiffe::SpiffeId;
use tower_spiffe::bundle::{BundleSource as _, BundlesUnavailable};
use tower_spiffe::metrics::{MetricsRecorder, Verification};
use tower_spiffe::source::https::{HttpsBundlesErrorReason as Reason, PollError, SpiffeBootstrap};
use tower_spiffe::verify::ValidateReason;

use super::*;

#[tokio::test(start_paused = true)]
async fn h10_build_waits_and_says_why_it_failed() {
    let world = World::new().await;
    world.server.answer(Reply::status("403 Forbidden"));
    let build = tokio::spawn(world.jwks_builder().build());
    until("a request", || !world.server.seen().is_empty()).await;
    rest().await;
    assert!(!build.is_finished());
    advance(secs(30)).await;
    let error = build.await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Reason::Timeout);
    let text = format!("{error:#}");
    assert!(
        text.contains("within 30s: the server returned HTTP status 403"),
        "{text}"
    );
    assert!(
        text.contains(TD) && text.contains(&world.server.url("/keys")),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn h10_build_retries_until_the_server_responds() {
    let world = World::new().await;
    world
        .server
        .answer(Reply::status("503 Service Unavailable"));
    let build = tokio::spawn(world.jwks_builder().build());
    until("a request", || !world.server.seen().is_empty()).await;
    rest().await;
    world.server.answer(Reply::json(world.issuer.jwks()));
    advance(secs(2)).await;
    assert!(build.await.unwrap().unwrap().is_healthy());
}

#[tokio::test(start_paused = true)]
async fn h10_build_lazy_starts_without_a_bundle() {
    let world = World::new().await;
    world
        .server
        .answer(Reply::status("500 Internal Server Error"));
    let bundles = world.jwks_builder().build_lazy().unwrap();
    assert_eq!(bundles.revision(), Err(BundlesUnavailable::NotReady));
    assert!(!bundles.is_healthy());
    let error = world
        .validator(&bundles)
        .validate(&world.token())
        .unwrap_err();
    assert_eq!(
        error.reason(),
        ValidateReason::BundlesUnavailable(BundlesUnavailable::NotReady)
    );
    polls(&bundles, 1).await;
    world.server.answer(Reply::json(world.issuer.jwks()));
    advance(secs(1)).await;
    bundles.ready().await.unwrap();
    assert!(world.validator(&bundles).validate(&world.token()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn h10_the_task_ends_with_the_last_handle() {
    let world = World::new().await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    until("the listener", || tasks() == 2).await;
    let bundles = world.jwks().await;
    let clone = bundles.clone();
    drop(bundles);
    rest().await;
    assert!(clone.state().following);
    drop(clone);
    until("the task ends", || tasks() == 2).await;
}

#[tokio::test]
async fn h10_wrong_settings_fail_immediately() {
    let jwks = |url: &str| HttpsBundles::jwks_url(td(TD), url);
    let id = SpiffeId::parse("spiffe://example.org/endpoint").unwrap();
    let spiffe = || {
        let bootstrap = SpiffeBootstrap::text(r#"{"keys": []}"#);
        HttpsBundles::https_spiffe(td(TD), "https://x.test/", id.clone(), bootstrap)
    };
    let client = |_: http::Request<()>| async {
        Ok::<_, std::io::Error>(http::Response::new(String::new()))
    };
    for (name, builder, text) in [
        (
            "http",
            jwks("http://x.test/keys?sig=secret"),
            "the URL \"http://x.test/keys\" is invalid: its scheme is not https",
        ),
        ("no url", jwks("keys"), "is invalid"),
        (
            "user",
            jwks("https://a:secret?secret@x.test/keys"),
            "the URL \"x.test/keys\" is invalid",
        ),
        (
            "query",
            HttpsBundles::oidc_issuer(td(TD), "https://x.test?y"),
            "a query",
        ),
        (
            "issuer",
            HttpsBundles::oidc_issuer(td(TD), "http://x.test"),
            "not https",
        ),
        (
            "web",
            HttpsBundles::https_web(td(TD), "http://x.test"),
            "not https",
        ),
        (
            "pem",
            jwks("https://x.test").add_roots_pem("junk"),
            "no certificate",
        ),
        (
            "der",
            jwks("https://x.test").add_root_der(b"junk".to_vec()),
            "not a certificate",
        ),
        (
            "roots",
            jwks("https://x.test").without_system_roots(),
            "no root certificate",
        ),
        (
            "save",
            jwks("https://x.test").save_to("/x"),
            "`.save_to(...)`",
        ),
        (
            "roots",
            spiffe().add_root_der(b"junk".to_vec()),
            "by the roots of bundles only",
        ),
        (
            "no system roots",
            spiffe().without_system_roots(),
            "by the roots of bundles only",
        ),
        (
            "allowed url",
            jwks("https://x.test").allowed_hosts(["https://y.test"]),
            "the allowed host \"https://y.test\" is invalid",
        ),
        (
            "allowed path",
            jwks("https://x.test").allowed_hosts(["y.test", "y.test/keys"]),
            "the allowed host \"y.test/keys\" is invalid",
        ),
        (
            "allowed port",
            jwks("https://x.test").allowed_hosts(["y.test:0"]),
            "is invalid",
        ),
        (
            "user and password",
            jwks("https://a:secret@x.test/keys"),
            "\"x.test/keys\" is invalid: it has user information",
        ),
        (
            "allowed user",
            jwks("https://x.test").allowed_hosts(["a:secret@y.test"]),
            "the allowed host \"y.test\" is invalid",
        ),
        (
            "client",
            spiffe().client(client),
            "only the source verifies",
        ),
    ] {
        let error = builder.clone().build_lazy().unwrap_err();
        assert_eq!(error.reason(), Reason::Settings, "{name}");
        let shown = format!("{error:#}");
        assert!(shown.contains(text), "{name}: {shown}");
        let shown = format!("{shown} {error:?} {builder:?}");
        assert!(!shown.contains("secret"), "{name}: {shown}");
        let error = builder.build().await.unwrap_err();
        assert_eq!(error.reason(), Reason::Settings, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn h10_errors_have_their_causes() {
    let pem = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    let builder = HttpsBundles::jwks_url(td(TD), "https://x.test").add_roots_pem(pem);
    let error = builder.build_lazy().unwrap_err();
    let cause = error.source().expect("the error of the PEM").to_string();
    assert!(!error.to_string().contains(&cause), "{error}");
    assert!(format!("{error:#}").ends_with(&cause), "{error:#}");

    let failing = |_: http::Request<()>| async {
        Err::<http::Response<String>, _>(std::io::Error::other("no route"))
    };
    let builder = HttpsBundles::jwks_url(td(TD), "https://x.test/?sig=secret").client(failing);
    let error = builder.initial_sync_timeout(secs(1)).build().await;
    let error = error.unwrap_err().clone();
    assert_eq!(error.reason(), Reason::Timeout);
    let poll = error.source().expect("the error of the poll");
    let poll = poll.downcast_ref::<PollError>().expect("a `PollError`");
    assert_eq!(poll.kind(), "bundle-fetch");
    assert_eq!(poll.text(), format!("{poll}: no route"));
    let io = poll.source().expect("the error of the client");
    assert!(io.is::<std::io::Error>(), "{io}");
    assert!(format!("{error:#}").ends_with(poll.text()), "{error:#}");
    assert!(
        !format!("{error:#} {error:?}").contains("secret"),
        "{error:#}"
    );
}

#[test]
fn h10_missing_runtime_is_an_error() {
    let error = HttpsBundles::jwks_url(td(TD), "https://x.test")
        .build_lazy()
        .unwrap_err();
    assert_eq!(error.reason(), Reason::NoRuntime);
}

#[test]
fn h10_runtime_without_timers_or_io_is_an_error() {
    let own = || HttpsBundles::jwks_url(td(TD), "https://x.test");
    let given =
        || own().client(|_| async { Ok::<_, std::io::Error>(http::Response::new(String::new())) });
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let bare = builder.build().unwrap();
    for builder in [own(), given()] {
        let error = bare.block_on(builder.build()).unwrap_err();
        assert_eq!(error.reason(), Reason::NoRuntime);
        assert!(error.to_string().contains("no timers"), "{error}");
    }
    let timers = builder.enable_time().build().unwrap();
    let _inside = timers.enter();
    let error = own().build_lazy().unwrap_err();
    assert_eq!(error.reason(), Reason::NoRuntime);
    assert!(error.to_string().contains("no I/O"), "{error}");
    assert!(given().build_lazy().is_ok());
}

#[derive(Default)]
struct Verifications(std::sync::atomic::AtomicU64);

impl MetricsRecorder for Verifications {
    fn record_verification(&self, _: &Verification<'_>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn h10_validators_use_the_recorder_of_the_source() {
    let world = World::new().await;
    let recorder = std::sync::Arc::new(Verifications::default());
    let builder = world.jwks_builder().metrics(recorder.clone());
    let bundles = builder.build().await.unwrap();
    assert!(world.validator(&bundles).validate(&world.token()).is_ok());
    assert_eq!(recorder.0.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn h05_urls_without_a_host_are_errors() {
    for url in [
        "https://",
        "https:///keys",
        "https://:443/keys",
        "https://[]/keys",
        "https://[]:443/keys",
    ] {
        let builder = HttpsBundles::jwks_url(td(TD), url).without_system_roots();
        let builder = builder.add_root_der(Ca::new().der().to_vec());
        let error = builder.build_lazy().expect_err(url);
        assert_eq!(error.reason(), Reason::Settings, "{url}");
    }
}
