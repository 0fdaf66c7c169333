//! The OIDC issuer: its discovery document, and user-supplied clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

impl World {
    fn serve_discovery(&self, issuer: &str, jwks_uri: &str) {
        let document = json!({ "issuer": issuer, "jwks_uri": jwks_uri }).to_string();
        let jwks = self.issuer.jwks();
        self.server.script(move |path| match path {
            "/.well-known/openid-configuration" => Reply::json(&document).header("etag", "\"d\""),
            "/keys" => Reply::json(&jwks),
            _ => Reply::status("404 Not Found"),
        });
    }
}

#[tokio::test(start_paused = true)]
async fn h02_oidc_keys_come_from_jwks_uri() {
    let world = World::new().await;
    let issuer = world.server.url("");
    world.serve_discovery(&issuer, &world.server.url("/keys"));
    let bundles = world
        .set_up(HttpsBundles::oidc_issuer(td(TD), &issuer))
        .build()
        .await
        .unwrap();
    assert!(world.validator(&bundles).validate(&world.token()).is_ok());
    polls(&bundles, 1).await;
    // Each poll reads discovery again, because the keys may move.
    world.serve_discovery(&issuer, &world.server.url("/moved"));
    let state = next_poll(&bundles).await;
    assert!(error_of(&state).1.contains("404"), "{state:?}");
    assert!(world.server.seen()[2].contains("if-none-match: \"d\""));
}

#[tokio::test(start_paused = true)]
async fn h05_oidc_rejects_other_issuers_and_schemes() {
    let world = World::new().await;
    let issuer = world.server.url("");
    let keys = world.server.url("/keys");
    let builder = world.set_up(HttpsBundles::oidc_issuer(td(TD), &issuer));
    for (claimed, jwks_uri, text) in [
        (
            format!("{issuer}/"),
            keys.clone(),
            "`issuer` is not exactly",
        ),
        (
            "https://evil.test".to_owned(),
            keys.clone(),
            "`issuer` is not exactly",
        ),
        (
            issuer.clone(),
            keys.replace("https", "http"),
            "`jwks_uri` is invalid",
        ),
        (issuer.clone(), "/keys".to_owned(), "`jwks_uri` is invalid"),
    ] {
        world.serve_discovery(&claimed, &jwks_uri);
        let bundles = builder.clone().build_lazy().unwrap();
        let (kind, found) = error_of(&polls(&bundles, 1).await);
        assert_eq!(kind, "bundle-unreadable");
        assert!(found.contains(text), "{found}");
    }
}

/// An error that may panic when it is shown.
#[derive(Debug)]
struct ProxyError {
    panics: bool,
}

impl std::fmt::Display for ProxyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        assert!(!self.panics, "a panic of the error");
        f.write_str("the proxy says no")
    }
}

impl std::error::Error for ProxyError {}

/// A client that returns its own responses and errors.
#[tokio::test(start_paused = true)]
async fn h11_a_given_client_is_bounded_too() {
    let world = World::new().await;
    let jwks = String::from_utf8(world.issuer.jwks()).unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let bundles = HttpsBundles::jwks_url(td(TD), "https://keys.test/a?b=c")
        .client(move |request: http::Request<()>| {
            assert_eq!(request.uri(), "https://keys.test/a?b=c");
            let call = counted.fetch_add(1, Ordering::SeqCst);
            assert!(call != 3, "a panic of the client");
            let body = match call {
                1 => "x".repeat(2 << 20),
                _ => jwks.clone(),
            };
            async move {
                match call {
                    2 | 4 => Err(ProxyError { panics: call == 4 }),
                    _ => Ok(http::Response::new(body)),
                }
            }
        })
        .clock(world.clock.shared())
        .build()
        .await
        .unwrap();
    polls(&bundles, 1).await;
    assert!(world.validator(&bundles).validate(&world.token()).is_ok());
    for (kind, text) in [
        ("bundle-too-large", "1048576 bytes"),
        ("bundle-fetch", "the given client failed: the proxy says no"),
        ("internal", "the poll panicked"),
        ("internal", "the poll panicked"),
    ] {
        let (found, error) = error_of(&next_poll(&bundles).await);
        assert_eq!(found, kind);
        assert!(error.contains(text), "{error}");
    }
    assert!(next_poll(&bundles).await.is_healthy());
    assert_eq!(calls.load(Ordering::SeqCst), 6);
}
