//! H08 and H11: valid and invalid responses.

use tower_spiffe::bundle::BundlesUnavailable;

use super::*;

fn with_use(world: &World, usage: &str) -> String {
    let mut set: Value = serde_json::from_slice(&world.issuer.jwks()).unwrap();
    set["keys"][0]["use"] = json!(usage);
    set.to_string()
}

#[tokio::test(start_paused = true)]
async fn h08_sig_counts_for_jwks_and_not_for_bundles() {
    let world = World::new().await;
    world.server.answer(Reply::json(with_use(&world, "sig")));
    let jwks = world.jwks().await;
    assert!(world.validator(&jwks).validate(&world.token()).is_ok());
    assert!(jwks.is_healthy());
    let web = world.web().await;
    assert!(world.validator(&web).validate(&world.token()).is_err());
    assert_eq!(error_of(&web.state()).0, "bundle-unusable");
}

#[tokio::test(start_paused = true)]
async fn h08_a_set_without_usable_keys_is_an_error() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    let validator = world.validator(&bundles);
    polls(&bundles, 1).await;
    assert!(validator.validate(&world.token()).is_ok());
    let unusable = Reply::json(with_use(&world, "enc")).header("etag", "\"1\"");
    for reply in [unusable, Reply::status("304 Not Modified")] {
        world.server.answer(reply);
        let state = next_poll(&bundles).await;
        assert!(!state.is_healthy() && state.keys == 0);
        assert_eq!(error_of(&state).0, "bundle-unusable");
        // The keys may be revoked: the set takes effect, and the poll counts as contact.
        assert!(validator.validate(&world.token()).is_err());
        assert_eq!((state.revision, state.last_success), (Ok(2), Some(secs(0))));
    }
    // No keys, or only keys for other SVIDs: the issuer may publish that.
    for usage in ["x509-svid", "wit-svid"] {
        world.server.answer(Reply::json(with_use(&world, usage)));
        let state = next_poll(&bundles).await;
        assert!(state.is_healthy() && state.keys == 0, "{state:?}");
    }
    world.server.answer(Reply::json(r#"{"keys": []}"#));
    assert!(next_poll(&bundles).await.is_healthy());
    world
        .server
        .answer(Reply::json(with_use(&world, "jwt-svid")));
    let state = next_poll(&bundles).await;
    assert!(state.is_healthy() && state.revision == Ok(3));
}

#[tokio::test(start_paused = true)]
async fn h11_invalid_content_keeps_the_last_bundle() {
    let world = World::new().await;
    let bundles = world.web_builder().build_lazy().unwrap();
    world.serve_bundle(Some(1), Some(1));
    bundles.ready().await.unwrap();
    polls(&bundles, 1).await;
    let good = world.bundle(Some(2), None).to_string();
    let html = "<!DOCTYPE html><html><form>log in: eyJhbGciOiJFUzI1NiJ9.e30.c2ln</form></html>";
    let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let unreadable = "bundle-unreadable";
    let fetch = "bundle-fetch";
    let short = Reply::json(&good).header("content-length", &(good.len() + 1).to_string());
    for (name, reply, kind) in [
        ("html", Reply::json(html), unreadable),
        ("empty", Reply::json(""), unreadable),
        ("null", Reply::json("null"), unreadable),
        ("no keys", Reply::json("{}"), unreadable),
        ("not utf-8", Reply::json(b"{\"keys\": [\xff]}"), unreadable),
        ("gzip bytes", Reply::json(gzip), unreadable),
        (
            "gzip",
            Reply::json(gzip).header("content-encoding", "gzip"),
            fetch,
        ),
        (
            "unknown",
            Reply::json(&good).header("content-encoding", "br"),
            fetch,
        ),
        ("broken off", short, fetch),
        (
            "bad sequence",
            Reply::json(good.replace("_sequence\":2", "_sequence\":\"2\"")),
            unreadable,
        ),
        ("403", Reply::status("403 Forbidden").body(&good), fetch),
        ("204", Reply::status("204 No Content"), fetch),
        (
            "206",
            Reply::status("206 Partial Content").body(&good),
            fetch,
        ),
        ("no location", Reply::status("302 Found"), fetch),
        ("300", Reply::status("300 Multiple Choices"), fetch),
        ("not http", Reply::status("junk"), fetch),
    ] {
        world.server.answer(reply);
        let state = next_poll(&bundles).await;
        let (found, text) = error_of(&state);
        assert_eq!(found, kind, "{name}: {text}");
        assert!(
            !text.contains("eyJ") && !text.contains("log in") && text.len() < 500,
            "{text}"
        );
        assert_eq!((state.keys, state.sequence), (1, Some(1)), "{name}");
    }
    world
        .server
        .answer(Reply::json(format!("\u{feff}{good}")).header("content-encoding", "identity"));
    assert!(next_poll(&bundles).await.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn h11_servers_without_a_valid_certificate_are_rejected() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    polls(&bundles, 1).await;
    for certificate in [
        Ca::new().for_host("localhost"),
        world.ca.for_host("other.test"),
    ] {
        world.server.certificate(certificate);
        let requests = world.server.seen().len();
        let state = next_poll(&bundles).await;
        let (kind, text) = error_of(&state);
        assert_eq!(kind, "bundle-fetch");
        assert!(text.starts_with("the TLS handshake failed: "), "{text}");
        assert_eq!((state.keys, world.server.seen().len()), (1, requests));
    }
    world.server.certificate(world.ca.for_host("localhost"));
    assert!(next_poll(&bundles).await.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn h11_certificates_expire_by_the_given_clock() {
    let world = World::new().await;
    let late = PausedClock::new(UnixTime::from_secs(100_000_000_000));
    let bundles = world
        .jwks_builder()
        .clock(late.shared())
        .build_lazy()
        .unwrap();
    let (_, text) = error_of(&polls(&bundles, 1).await);
    assert!(text.contains("expired"), "{text}");
    assert_eq!(
        bundles.jwt_bundle().unwrap_err(),
        BundlesUnavailable::NotReady
    );
}
