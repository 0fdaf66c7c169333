//! H13: attacks on bundles over https that other rules do not cover.

use std::convert::Infallible;
use std::io::Read as _;
use std::sync::Mutex;

use http::{Request, Response};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_spiffe::SpiffeId;
use tower_spiffe::bundle::{BundleSource as _, BundlesUnavailable, JwtBundle, JwtBundleSet};
use tower_spiffe::server::{Allow, UnknownKeyWait, ValidateJwtSvidLayer};
use tower_spiffe::source::https::SpiffeBootstrap;
use tower_spiffe::source::{MemoryBundles, MergedBundles};
use tower_spiffe_test_support::temp::TempDir;
use tower_spiffe_test_support::tls_server::KeyUsagePurpose;

use super::*;

const ID: &str = "spiffe://example.org/spire/server";

impl World {
    /// Serves a discovery document with this `jwks_uri`.
    fn serve_issuer(&self, jwks_uri: &str) {
        let document = json!({ "issuer": self.server.url(""), "jwks_uri": jwks_uri });
        self.server.answer(Reply::json(document.to_string()));
    }

    fn oidc_builder(&self) -> HttpsBundlesBuilder {
        self.set_up(HttpsBundles::oidc_issuer(td(TD), self.server.url("")))
    }
}

/// The first poll of a source with these settings.
async fn first_poll(builder: &HttpsBundlesBuilder) -> HttpsBundlesState {
    let bundles = builder.clone().build_lazy().unwrap();
    polls(&bundles, 1).await
}

#[tokio::test(start_paused = true)]
async fn h13_allowed_hosts_limit_an_issuer() {
    let world = World::new().await;
    let other = Server::start(world.ca.for_host("localhost")).await;
    other.answer(Reply::json(world.issuer.jwks()));
    let name = format!("LOCALHOST:{}", other.port());
    let any = world.oidc_builder();
    let own = world.oidc_builder().allowed_hosts([]);
    let both = world.oidc_builder().allowed_hosts(["x.test", &name]);
    let elsewhere = world.oidc_builder().allowed_hosts(["localhost", "x.test"]);

    // By `jwks_uri`, then by a redirect.
    world.serve_issuer(&other.url("/keys"));
    for redirects in [false, true] {
        if redirects {
            world.server.answer(Reply::redirect(&other.url("/keys")));
            other.answer(Reply::json("{}"));
        }
        for (builder, is_allowed) in [
            (&any, true),
            (&own, false),
            (&both, true),
            (&elsewhere, false),
        ] {
            let before = other.seen().len();
            let state = first_poll(builder).await;
            assert_eq!(other.seen().len() > before, is_allowed, "{state:?}");
            if !is_allowed {
                let (_, text) = error_of(&state);
                assert!(text.contains("a host that is not allowed"), "{text}");
                assert!(!text.contains(&other.port().to_string()), "{text}");
            }
        }
    }
    // The host of the URL itself is always allowed.
    world.serve_issuer(&world.server.url("/keys"));
    let (_, text) = error_of(&first_poll(&own).await);
    assert!(!text.contains("allowed"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn h13_an_issuer_reaches_https_servers_only() {
    let world = World::new().await;
    let builder = world.oidc_builder();
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = plain.local_addr().unwrap().port();
    for jwks_uri in [
        format!("http://127.0.0.1:{port}/"),
        format!("HTTP://localhost:{port}/"),
        format!("ftp://127.0.0.1:{port}/"),
        format!("//127.0.0.1:{port}/"),
        format!("127.0.0.1:{port}"),
        format!("https://admin:word@127.0.0.1:{port}/"),
        "file:///etc/passwd".to_owned(),
        "/etc/passwd".to_owned(),
        "data:application/json,{}".to_owned(),
        "https://".to_owned(),
        "https://[::1".to_owned(),
        String::new(),
    ] {
        world.serve_issuer(&jwks_uri);
        let (kind, text) = error_of(&first_poll(&builder).await);
        assert_eq!(kind, "bundle-unreadable", "{jwks_uri}");
        assert!(
            text.starts_with("the document is invalid: its `jwks_uri`"),
            "{text}"
        );
    }
    plain.set_nonblocking(true).unwrap();
    assert!(plain.accept().is_err(), "a connection");

    // An internal service without TLS, by https URL: it gets a TLS greeting and no request.
    world.serve_issuer(&format!("https://localhost:{port}/admin?delete=all"));
    let bundles = builder.build_lazy().unwrap();
    let mut stream = None;
    until("a connection", || {
        stream.is_some() || plain.accept().map(|it| stream = Some(it.0)).is_ok()
    })
    .await;
    let mut stream = stream.unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut greeting = Vec::new();
    until("the greeting", || {
        let mut part = [0; 4096];
        let read = stream.read(&mut part).unwrap_or_default();
        greeting.extend_from_slice(&part[..read]);
        greeting.len() > 100
    })
    .await;
    drop(stream);
    polls(&bundles, 1).await;
    assert_eq!(greeting[0], 0x16);
    let text = String::from_utf8_lossy(&greeting);
    assert!(!text.contains("admin") && !text.contains("GET"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn h13_wrong_certificate_names_get_no_request() {
    // A name that resolves to another machine, as after DNS rebinding. Here it is this machine.
    let world = World::new().await;
    let internal = Server::start(world.ca.for_host("internal.test")).await;
    world.serve_issuer(&internal.url("/keys"));
    let (kind, text) = error_of(&first_poll(&world.oidc_builder()).await);
    assert_eq!(kind, "bundle-fetch");
    assert!(text.starts_with("the TLS handshake failed"), "{text}");
    assert!(internal.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn h13_a_given_client_never_gets_other_schemes() {
    let world = World::new().await;
    let seen = std::sync::Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    let bundles = HttpsBundles::jwks_url(td(TD), "https://keys.test/a")
        .client(move |request: Request<()>| {
            record.lock().unwrap().push(request.uri().to_string());
            let to = match request.uri().path() {
                "/a" => "/b",
                _ => "http://keys.test/c",
            };
            let response = Response::builder().status(307).header("location", to);
            std::future::ready(Ok::<_, Infallible>(response.body(String::new()).unwrap()))
        })
        .clock(world.clock.shared())
        .build_lazy()
        .unwrap();
    let (_, text) = error_of(&polls(&bundles, 1).await);
    assert!(text.contains("its scheme is not https"), "{text}");
    assert_eq!(
        *seen.lock().unwrap(),
        ["https://keys.test/a", "https://keys.test/b"]
    );
}

#[tokio::test(start_paused = true)]
async fn h13_revalidation_stays_with_the_last_hop() {
    let world = World::new().await;
    let jwks = world.issuer.jwks();
    world.server.script(move |path| match path {
        "/keys" => Reply::redirect("/moved"),
        _ => Reply::json(&jwks).header("etag", "\"1\""),
    });
    let bundles = world.jwks().await;
    polls(&bundles, 1).await;
    world.server.script(|path| match path {
        "/keys" => Reply::redirect("/moved"),
        _ => Reply::status("304 Not Modified"),
    });
    assert!(next_poll(&bundles).await.is_healthy());
    let [_, _, first, last] = &world.server.seen()[..] else {
        panic!("four requests")
    };
    assert!(!first.contains("if-none-match") && last.contains("if-none-match: \"1\""));
    // A 304 from a URL that did not send the document.
    for to in ["/keys", "/other"] {
        world.server.script(move |path| match (path, to) {
            ("/keys", "/other") => Reply::redirect("/other"),
            _ => Reply::status("304 Not Modified"),
        });
        let state = next_poll(&bundles).await;
        assert!(error_of(&state).1.contains("HTTP status 304"), "{state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn h13_only_contacts_end_staleness() {
    let world = World::new().await;
    let serve = |sequence, tag: &str| {
        let document = world.bundle(Some(sequence), None).to_string();
        world
            .server
            .answer(Reply::json(document).header("etag", tag));
    };
    serve(7, "\"7\"");
    let bundles = world
        .web_builder()
        .max_staleness(secs(700))
        .build()
        .await
        .unwrap();
    polls(&bundles, 1).await;
    // Unmodified for longer than the limit.
    world.server.answer(Reply::status("304 Not Modified"));
    for _ in 0..4 {
        assert!(next_poll(&bundles).await.is_healthy());
    }
    // An older document does not count as contact, even if it arrives often.
    serve(6, "\"6\"");
    for _ in 0..2 {
        assert_eq!(next_poll(&bundles).await.revision, Ok(1));
    }
    let stale = Err(BundlesUnavailable::Stale);
    assert_eq!(next_poll(&bundles).await.revision, stale);
    serve(7, "\"7\"");
    assert_eq!(next_poll(&bundles).await.revision, Ok(2));
}

fn spiffe_builder(world: &World) -> HttpsBundlesBuilder {
    let id = SpiffeId::parse(ID).unwrap();
    let bootstrap = SpiffeBootstrap::text(json!({"keys": [world.ca.jwk()]}).to_string());
    HttpsBundles::https_spiffe(td(TD), world.server.url("/"), id, bootstrap)
        .clock(world.clock.shared())
        .poll_seed(7)
}

fn serve_roots(world: &World, sequence: u64, roots: &[&Ca]) {
    let mut bundle = world.bundle(Some(sequence), None);
    let keys = bundle["keys"].as_array_mut().unwrap();
    keys.extend(roots.iter().map(|ca| ca.jwk()));
    world.server.answer(Reply::json(bundle.to_string()));
}

#[tokio::test(start_paused = true)]
async fn h13_rollback_changes_neither_roots_nor_file() {
    let world = World::new().await;
    world.server.certificate(world.ca.for_ids(&[ID]));
    let dir = TempDir::new();
    let path = dir.join("saved.json");
    serve_roots(&world, 8, &[&world.ca]);
    let bundles = spiffe_builder(&world).save_to(&path).build().await.unwrap();
    polls(&bundles, 1).await;
    let saved = std::fs::read(&path).unwrap();
    // An old bundle, with the key of a CA that was removed since.
    let removed = Ca::new();
    serve_roots(&world, 7, &[&removed]);
    assert_eq!(next_poll(&bundles).await.rollbacks, 1);
    assert_eq!(std::fs::read(&path).unwrap(), saved);
    assert_eq!(bundles.spiffe_bundle().as_deref(), Some(&*saved));
    world.server.certificate(removed.for_ids(&[ID]));
    let (_, text) = error_of(&next_poll(&bundles).await);
    assert!(text.contains("does not verify"), "{text}");
    world.server.certificate(world.ca.for_ids(&[ID]));
    serve_roots(&world, 9, &[&world.ca]);
    assert!(next_poll(&bundles).await.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn h13_endpoint_certificates_must_not_sign() {
    let world = World::new().await;
    serve_roots(&world, 1, &[&world.ca]);
    let builder = spiffe_builder(&world);
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyAgreement, KeyCertSign};
    for (uses, is_accepted) in [
        (&[DigitalSignature, KeyCertSign][..], false),
        (&[DigitalSignature, CrlSign], false),
        (&[KeyCertSign, CrlSign], false),
        (&[DigitalSignature, KeyAgreement], true),
        (&[], true),
    ] {
        world
            .server
            .certificate(world.ca.for_ids_and_uses(&[ID], uses));
        let state = first_poll(&builder).await;
        assert_eq!(state.is_healthy(), is_accepted, "{uses:?}: {state:?}");
        if !is_accepted {
            let (_, text) = error_of(&state);
            assert!(text.contains("may sign certificates"), "{text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn h13_endless_responses_end() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    polls(&bundles, 1).await;
    let loops = Reply::redirect("/keys");
    let headers = Reply::status("200 OK").without_end();
    let early =
        Reply::status("100 Continue").then_repeats("HTTP/1.1 100 Continue\r\n\r\n", secs(0));
    let chunks = Reply::json("").header("transfer-encoding", "chunked");
    let fetch = "bundle-fetch";
    let large = "bundle-too-large";
    // The limit that ends it: size or time.
    for (name, reply, kind, by_time) in [
        ("redirects", loops, fetch, false),
        (
            "headers",
            headers.then_repeats("x: y\r\n".repeat(1000), secs(0)),
            fetch,
            false,
        ),
        ("early responses", early, fetch, true),
        (
            "chunks",
            chunks.then_repeats("4\r\n    \r\n".repeat(1000), secs(0)),
            large,
            false,
        ),
        (
            "no content length",
            Reply::status("200 OK").then_repeats(" ".repeat(8000), secs(0)),
            large,
            false,
        ),
    ] {
        world.server.answer(reply);
        let before = bundles.state();
        advance(before.next_poll.unwrap()).await;
        if by_time {
            rest().await;
            advance(secs(10)).await;
        }
        let state = polls(&bundles, before.polls + 1).await;
        assert_eq!(error_of(&state).0, kind, "{name}: {state:?}");
        assert_eq!((state.keys, state.revision), (1, Ok(1)), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn h13_a_trickling_server_blocks_no_other_member() {
    let world = World::new().await;
    let slow = Server::start(world.ca.for_host("localhost")).await;
    let start = Reply::status("200 OK").header("content-length", "100");
    slow.answer(start.then_repeats(" ", secs(1)));
    let partner = world.set_up(HttpsBundles::jwks_url(td("partner.test"), slow.url("/")));
    let partner = partner.build_lazy().unwrap();
    let own = JwtBundle::from_jwks(td(TD), &world.issuer.jwks()).unwrap();
    let merged = MergedBundles::builder()
        .default_member("own", MemoryBundles::new(JwtBundleSet::from_iter([own])))
        .member("partner", partner.clone(), [td("partner.test")])
        .build()
        .unwrap();
    let validator = Validator::builder(merged.clone()).audience(AUD);
    let validator = validator.clock(world.clock.shared()).build().unwrap();
    until("a request", || !slow.seen().is_empty()).await;
    for _ in 0..9 {
        assert!(validator.validate(&world.token()).is_ok());
        assert!(merged.is_ready() && !merged.is_healthy());
        advance(secs(1)).await;
        rest().await;
    }
    assert_eq!(partner.state().polls, 0);
    advance(secs(1)).await;
    let (_, text) = error_of(&polls(&partner, 1).await);
    assert!(text.contains("no complete response within 10s"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn h13_the_largest_allowed_body_is_accepted() {
    let world = World::new().await;
    let jwks = String::from_utf8(world.issuer.jwks()).unwrap();
    let padded = |length: usize| format!("{jwks}{}", " ".repeat(length - jwks.len()));
    world.server.answer(Reply::json(padded(1 << 20)));
    let bundles = world.jwks().await;
    assert!(polls(&bundles, 1).await.is_healthy());
    world.server.answer(Reply::json(padded((1 << 20) + 1)));
    assert_eq!(error_of(&next_poll(&bundles).await).0, "bundle-too-large");
}

#[tokio::test(start_paused = true)]
async fn h13_unknown_keys_poll_once_through_layers() {
    let stranger = Issuer::new(TD).unwrap();
    for waits in [false, true] {
        let world = World::new().await;
        let bundles = world.jwks().await;
        polls(&bundles, 1).await;
        let merged = MergedBundles::builder().default_member("own", bundles.clone());
        let validator = Validator::builder(merged.build().unwrap()).audience(AUD);
        let validator = validator.clock(world.clock.shared()).build().unwrap();
        let layer = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain());
        let inner = service_fn(|_: Request<String>| async {
            Ok::<_, Infallible>(Response::new(String::new()))
        });
        let service = match waits {
            false => layer
                .layer(inner)
                .map_response(|it| it.status())
                .boxed_clone(),
            true => {
                let layer = layer.wait_for_unknown_keys(UnknownKeyWait::new(secs(5)));
                layer
                    .layer(inner)
                    .map_response(|it| it.status())
                    .boxed_clone()
            }
        };
        let requests = (0..2_000).map(|kid| {
            let token = stranger.token(WEB, AUD).header("kid", format!("x-{kid}"));
            let bearer = format!(
                "Bearer {}",
                token.expires_at(UnixTime::from_secs(1_790_000_200)).sign()
            );
            let request = Request::get("https://reports.test/").header("authorization", bearer);
            service
                .clone()
                .oneshot(request.body(String::new()).unwrap())
        });
        let all = tokio::spawn(futures_util::future::join_all(requests));
        if waits {
            until("the early poll", || bundles.state().polls == 2).await;
            rest().await;
            advance(secs(5)).await;
        }
        for response in all.await.unwrap() {
            assert_eq!(response.unwrap(), 401);
        }
        polls(&bundles, 2).await;
        assert_eq!(world.server.seen().len(), 2, "waits: {waits}");
    }
}

#[tokio::test(start_paused = true)]
async fn h13_retry_after_counts_before_the_first_success() {
    let world = World::new().await;
    let busy = Reply::status("503 Service Unavailable").header("retry-after", "120");
    world.server.answer(busy);
    let bundles = world.jwks_builder().build_lazy().unwrap();
    assert_eq!(polls(&bundles, 1).await.next_poll, Some(secs(120)));
    // Neither requests nor unknown keys shorten the wait.
    bundles.unknown_key(TD, "x");
    advance(secs(118)).await;
    rest().await;
    assert_eq!(world.server.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn h13_first_retries_are_spread() {
    let world = World::new().await;
    world
        .server
        .answer(Reply::status("503 Service Unavailable"));
    let mut waits = Vec::new();
    for seed in 0..20 {
        let bundles = world.jwks_builder().poll_seed(seed).build_lazy().unwrap();
        waits.push(polls(&bundles, 1).await.next_poll.unwrap());
    }
    waits.sort();
    assert!(
        waits[0] < Duration::from_millis(300) && waits[19] > Duration::from_millis(700),
        "{waits:?}"
    );
    assert!(waits[19] <= secs(1));
}

#[tokio::test(start_paused = true)]
async fn h13_members_of_a_jwk_restrict_the_key() {
    let world = World::new().await;
    let builder = world.jwks_builder();
    for (member, value, is_usable) in [
        ("alg", json!("ES256"), true),
        ("alg", json!("RS256"), false),
        ("alg", json!("HS256"), false),
        ("alg", json!("none"), false),
        ("alg", json!(256), false),
        ("key_ops", json!(["verify"]), true),
        ("key_ops", json!(["sign"]), false),
        ("use", json!("enc"), false),
        ("use", json!("SIG"), false),
    ] {
        let mut set: Value = serde_json::from_slice(&world.issuer.jwks()).unwrap();
        set["keys"][0][member] = value.clone();
        world.server.answer(Reply::json(set.to_string()));
        let bundles = builder.clone().build_lazy().unwrap();
        let state = polls(&bundles, 1).await;
        let accepted = world.validator(&bundles).validate(&world.token()).is_ok();
        assert_eq!(accepted, is_usable, "{member}: {value}");
        assert_eq!(
            state.is_healthy(),
            is_usable || member != "use",
            "{member}: {value}: {state:?}"
        );
    }
}
