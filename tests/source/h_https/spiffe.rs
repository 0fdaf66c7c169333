//! `https_spiffe`: the required SPIFFE ID of the endpoint, and the bundle that verifies it.

use tower_spiffe::SpiffeId;
use tower_spiffe::source::https::SpiffeBootstrap;
use tower_spiffe_test_support::temp::TempDir;
use tracing::Level;

use super::*;
use crate::log::Log;

const ID: &str = "spiffe://example.org/spire/server";

impl World {
    /// Creates a world whose server uses the endpoint's X.509-SVID.
    async fn spiffe() -> Self {
        let world = Self::new().await;
        world.server.certificate(world.ca.for_ids(&[ID]));
        world.serve(1, &[&world.ca]);
        world
    }

    /// Returns the issuer's bundle with these roots.
    fn document(&self, sequence: u64, roots: &[&Ca]) -> String {
        let mut bundle = self.bundle(Some(sequence), None);
        let keys = bundle["keys"].as_array_mut().unwrap();
        keys.extend(roots.iter().map(|ca| ca.jwk()));
        bundle.to_string()
    }

    fn serve(&self, sequence: u64, roots: &[&Ca]) {
        self.server
            .answer(Reply::json(self.document(sequence, roots)));
    }

    fn spiffe_builder(&self, bootstrap: SpiffeBootstrap) -> HttpsBundlesBuilder {
        let id = SpiffeId::parse(ID).unwrap();
        HttpsBundles::https_spiffe(td(TD), self.server.url("/"), id, bootstrap)
            .clock(self.clock.shared())
            .poll_seed(7)
    }

    fn bootstrap(&self) -> SpiffeBootstrap {
        SpiffeBootstrap::text(json!({"keys": [self.ca.jwk()]}).to_string())
    }
}

#[tokio::test(start_paused = true)]
async fn h11_endpoint_must_have_exactly_its_spiffe_id() {
    let world = World::spiffe().await;
    let bundles = world
        .spiffe_builder(world.bootstrap())
        .build()
        .await
        .unwrap();
    assert!(world.validator(&bundles).validate(&world.token()).is_ok());
    polls(&bundles, 1).await;
    for (certificate, text) in [
        (
            world.ca.for_ids(&["spiffe://example.org/spire/other"]),
            "is not the configured one",
        ),
        (
            world.ca.for_ids(&["spiffe://example.org/spire/server/x"]),
            "is not the configured one",
        ),
        (
            world.ca.for_ids(&[ID, "spiffe://example.org/other"]),
            "does not have one SPIFFE ID",
        ),
        (world.ca.for_ids(&[]), "does not have one SPIFFE ID"),
        (
            world.ca.for_host("localhost"),
            "does not have one SPIFFE ID",
        ),
        (
            Ca::new().for_ids(&[ID]),
            "does not verify against the latest bundle",
        ),
    ] {
        world.server.certificate(certificate);
        let requests = world.server.seen().len();
        let state = next_poll(&bundles).await;
        let (kind, found) = error_of(&state);
        assert_eq!(kind, "bundle-fetch");
        assert!(found.contains(text), "{found}");
        assert_eq!((state.keys, world.server.seen().len()), (1, requests));
    }
}

#[tokio::test(start_paused = true)]
async fn h05_redirects_must_lead_to_the_same_id() {
    let world = World::spiffe().await;
    let twin = Server::start(world.ca.for_ids(&[ID])).await;
    let other = Server::start(world.ca.for_ids(&["spiffe://example.org/other"])).await;
    for server in [&twin, &other] {
        server.answer(Reply::json(world.document(2, &[&world.ca])));
    }
    let bundles = world
        .spiffe_builder(world.bootstrap())
        .build()
        .await
        .unwrap();
    polls(&bundles, 1).await;
    world.server.answer(Reply::redirect(&other.url("/")));
    let state = next_poll(&bundles).await;
    assert!(
        error_of(&state).1.contains("is not the configured one"),
        "{state:?}"
    );
    assert_eq!((state.sequence, other.seen().len()), (Some(1), 0));
    world.server.answer(Reply::redirect(&twin.url("/")));
    assert_eq!(next_poll(&bundles).await.sequence, Some(2));
}

#[tokio::test(start_paused = true)]
async fn h11_latest_bundle_verifies_the_next_connection() {
    let world = World::spiffe().await;
    let next = Ca::new();
    let bundles = world
        .spiffe_builder(world.bootstrap())
        .build()
        .await
        .unwrap();
    polls(&bundles, 1).await;
    // The new root is published, then used; then the old root is removed.
    world.serve(2, &[&world.ca, &next]);
    assert!(next_poll(&bundles).await.is_healthy());
    world.server.certificate(next.for_ids(&[ID]));
    world.serve(3, &[&next]);
    assert!(next_poll(&bundles).await.is_healthy());
    world.server.certificate(world.ca.for_ids(&[ID]));
    let (_, text) = error_of(&next_poll(&bundles).await);
    assert!(
        text.contains("does not verify against the latest bundle"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn h10_saved_bundle_survives_a_root_rotation() {
    let world = World::spiffe().await;
    let dir = TempDir::new();
    let path = dir.join("bundle.json");
    let next = Ca::new();
    let builder = || world.spiffe_builder(world.bootstrap());
    {
        let bundles = builder().save_to(&path).build().await.unwrap();
        polls(&bundles, 1).await;
        world.serve(2, &[&next]);
        next_poll(&bundles).await;
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            world.document(2, &[&next])
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
    world.server.certificate(next.for_ids(&[ID]));
    // Without the saved file it cannot connect; with it, it can.
    let locked_out = builder().build_lazy().unwrap();
    let (_, text) = error_of(&polls(&locked_out, 1).await);
    assert!(text.contains("does not verify"), "{text}");
    let bundles = builder().save_to(&path).build().await.unwrap();
    assert!(bundles.is_healthy());
    // An unreadable file is ignored; a failed write is an error.
    std::fs::write(&path, "junk").unwrap();
    let locked_out = builder().save_to(&path).build_lazy().unwrap();
    assert!(polls(&locked_out, 1).await.last_error.is_some());
    world.server.certificate(world.ca.for_ids(&[ID]));
    let bundles = builder()
        .save_to(dir.join("missing/x"))
        .build()
        .await
        .unwrap();
    let state = polls(&bundles, 1).await;
    assert!(state.last_error.is_none() && state.save_error.is_some());
    assert!(!state.is_healthy() && state.revision == Ok(1));
}

/// Another user of the directory may guess the name of the file that is written first.
#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn h10_saving_follows_no_symbolic_link() {
    let world = World::spiffe().await;
    let dir = TempDir::new();
    let target = dir.join("target");
    std::fs::write(&target, "keep").unwrap();
    let guessed = format!("bundle.json.{}.new", std::process::id());
    std::os::unix::fs::symlink(&target, dir.join(&guessed)).unwrap();
    let path = dir.join("bundle.json");
    let builder = world.spiffe_builder(world.bootstrap()).save_to(&path);
    let bundles = builder.build().await.unwrap();
    assert!(polls(&bundles, 1).await.is_healthy());
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "keep");
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        world.document(1, &[&world.ca])
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
    assert_eq!(mode & 0o022, 0, "{mode:o}");
}

/// In a child process, since all threads share the umask.
#[cfg(unix)]
#[test]
fn h10_only_the_owner_may_write_the_saved_file() {
    let test = "h_https::spiffe::h10_saving_follows_no_symbolic_link";
    let output = std::process::Command::new("sh")
        .args(["-c", r#"umask 0 && exec "$@""#, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn h10_bootstrap_file_is_read_at_every_poll() {
    let world = World::spiffe().await;
    let dir = TempDir::new();
    let path = dir.join("bootstrap.json");
    let bundles = world
        .spiffe_builder(SpiffeBootstrap::file(&path))
        .build_lazy()
        .unwrap();
    let (_, text) = error_of(&polls(&bundles, 1).await);
    assert!(
        text.starts_with("the bootstrap bundle cannot be read"),
        "{text}"
    );
    std::fs::write(&path, r#"{"keys": []}"#).unwrap();
    let (_, text) = error_of(&next_poll(&bundles).await);
    assert!(
        text.contains("the bootstrap bundle has no X.509 roots"),
        "{text}"
    );
    std::fs::write(&path, world.document(1, &[&world.ca])).unwrap();
    assert!(next_poll(&bundles).await.is_healthy());
    // After a missed rotation, a newer bootstrap bundle restores access.
    let next = Ca::new();
    world.server.certificate(next.for_ids(&[ID]));
    world.serve(5, &[&next]);
    for (sequence, accepted) in [(1, false), (4, true)] {
        std::fs::write(&path, world.document(sequence, &[&next])).unwrap();
        assert_eq!(
            next_poll(&bundles).await.is_healthy(),
            accepted,
            "{sequence}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn h11_endpoint_of_another_domain_needs_its_own_bundle() {
    let world = World::spiffe().await;
    let own = world
        .spiffe_builder(world.bootstrap())
        .build()
        .await
        .unwrap();
    // The endpoint in example.org serves the bundle of other.test, whose roots are not trusted here.
    let theirs = Ca::new();
    let document = json!({"keys": [theirs.jwk()]}).to_string();
    world.server.answer(Reply::json(&document));
    let id = SpiffeId::parse(ID).unwrap();
    let bootstrap = SpiffeBootstrap::source(own);
    let bundles =
        HttpsBundles::https_spiffe(td("other.test"), world.server.url("/"), id, bootstrap)
            .clock(world.clock.shared())
            .build()
            .await
            .unwrap();
    polls(&bundles, 1).await;
    world.server.certificate(theirs.for_ids(&[ID]));
    let (_, text) = error_of(&next_poll(&bundles).await);
    assert!(text.contains("does not verify"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn h10_only_an_unreadable_saved_bundle_is_logged() {
    let log = Log::default();
    let _guard = log.begin(Level::WARN);
    let world = World::spiffe().await;
    let dir = TempDir::new();
    std::fs::create_dir(dir.join("folder")).unwrap();
    std::fs::write(dir.join("malformed"), "{").unwrap();
    for (name, warnings) in [("missing", 0), ("folder", 1), ("malformed", 1)] {
        log.clear();
        let builder = world.spiffe_builder(world.bootstrap());
        let bundles = builder.save_to(dir.join(name)).build_lazy().unwrap();
        let state = polls(&bundles, 1).await;
        assert_eq!(state.keys, 1, "{name}");
        assert_eq!(state.save_error.is_some(), name == "folder", "{state:?}");
        let logged = log.lines_with("the saved bundle cannot be read");
        assert_eq!(logged, warnings, "{name}");
    }
}
