use std::path::PathBuf;

use super::*;
use crate::bundle::BundleAnswer;

const KEY: &str = r#""kty": "EC", "crv": "P-256",
    "x": "bVDjA5e6fbeeyTcGBKr7nOk7JcsJBBSY5AfzijSjWi0",
    "y": "Cav0NjSa0vjokblBt6XX3cuVwwqCmhC20E0wgNmBGMU""#;

/// A directory for one test, removed with it.
pub(super) struct Dir(PathBuf);

impl Dir {
    pub(super) fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tower-spiffe-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        Self(dir)
    }

    pub(super) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("write");
        path
    }

    pub(super) fn rename_over(&self, name: &str, text: impl AsRef<[u8]>) {
        let fresh = self.write(&format!("{name}.new"), text);
        std::fs::rename(fresh, self.0.join(name)).expect("rename");
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn jwks(kids: &[&str]) -> String {
    let keys: Vec<String> = kids
        .iter()
        .map(|kid| format!(r#"{{{KEY}, "kid": "{kid}"}}"#))
        .collect();
    format!(r#"{{"keys": [{}]}}"#, keys.join(","))
}

pub(super) fn bundle(kids: &[&str]) -> String {
    jwks(kids).replace(r#""kty""#, r#""use": "jwt-svid", "kty""#)
}

pub(super) fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).expect(name)
}

pub(super) fn kids(source: &FileBundles, trust_domain: &str) -> Vec<String> {
    match source.bundle(trust_domain) {
        BundleAnswer::Ready(bundle) => bundle
            .authorities()
            .map(|key| key.key_id().to_owned())
            .collect(),
        other => vec![format!("{other:?}")],
    }
}

pub(super) fn quick() -> FileBundlesBuilder {
    FileBundles::builder().poll_interval(Duration::from_millis(10))
}

/// Polls with a deadline: these tests wait for real files.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("within 10 s not: {what}");
}

#[tokio::test]
async fn jwks_and_spiffe_bundle_have_different_use_rules() {
    let dir = Dir::new("formats");
    let open = |path: &PathBuf, spiffe: bool| {
        let files = quick();
        let files = match spiffe {
            true => files.spiffe_bundle(td("x"), path),
            false => files.jwks(td("x"), path),
        };
        files.open().expect("open")
    };
    let plain = dir.write("jwks", jwks(&["a"]));
    let marked = dir.write("bundle", bundle(&["a"]));
    assert_eq!(kids(&open(&plain, false), "x"), ["a"]);
    assert_eq!(kids(&open(&marked, false), "x"), ["a"]);
    assert_eq!(kids(&open(&marked, true), "x"), ["a"]);
    assert!(
        kids(&open(&plain, true), "x").is_empty(),
        "a key without `use` does not count (TB-12)"
    );
    assert_eq!(kids(&open(&plain, false), "y"), ["UnknownTrustDomain"]);
}

#[tokio::test]
async fn tb13_map_has_a_bundle_per_trust_domain() {
    let dir = Dir::new("map");
    let map = |x: &str, y: &str| format!(r#"{{"trust_domains": {{"x": {x}, "y": {y}}}}}"#);
    let path = dir.write("map", map(&bundle(&["a"]), &bundle(&["b"])));
    let source = quick().bundle_map(&path).open().expect("open");
    assert_eq!(
        (kids(&source, "x"), kids(&source, "y")),
        (vec!["a".into()], vec!["b".into()])
    );

    // One unreadable entry keeps its last bundle; the others update.
    dir.rename_over("map", map("7", &bundle(&["c"])));
    until("y updates", || kids(&source, "y") == ["c"]).await;
    assert_eq!(kids(&source, "x"), ["a"]);
    let state = source.state();
    assert!(!state.is_healthy());
    assert!(
        state.files[0]
            .last_error
            .as_ref()
            .is_some_and(|error| error.contains("trust domain \"x\": "))
    );

    // A trust domain that is no longer in the map is removed.
    dir.rename_over(
        "map",
        format!(r#"{{"trust_domains": {{"y": {}}}}}"#, bundle(&["c"])),
    );
    until("x is removed", || {
        kids(&source, "x") == ["UnknownTrustDomain"]
    })
    .await;
    assert!(source.state().is_healthy());
}

#[tokio::test]
async fn tb13_malformed_or_duplicate_map_is_rejected() {
    let dir = Dir::new("badmap");
    let one = bundle(&["a"]);
    let mut no_text = format!(r#"{{"trust_domains": {{"x": {one}}}, "?": 0}}"#).into_bytes();
    no_text
        .iter_mut()
        .filter(|byte| **byte == b'?')
        .for_each(|byte| *byte = 0xff);
    let error = quick().bundle_map(dir.write("map", no_text)).open();
    assert!(
        error
            .expect_err("no text")
            .to_string()
            .ends_with("map of bundles is not UTF-8")
    );
    for text in [
        format!(r#"{{"trust_domains": {{"x": {one}, "x": {one}}}}}"#),
        format!(r#"{{"trust_domains": {{"x": {one}, "spiffe://x": {one}}}}}"#),
        format!(r#"{{"trust_domains": {{"X": {one}, "X": {one}}}}}"#),
        format!(r#"{{"trust_domains": {{}}, "trust_domains": {{"x": {one}}}}}"#),
        r#"{"trust_domains": []}"#.to_owned(),
        // The values alone, without their names.
        format!(r#"[{{"x": {one}}}]"#),
        "{}".to_owned(),
        String::new(),
    ] {
        let path = dir.write("map", &text);
        let error = quick().bundle_map(&path).open().expect_err(&text);
        assert_eq!(error.reason(), FileBundlesErrorReason::Malformed, "{text}");
        assert!(error.to_string().contains("map"), "{error}");
    }
    let empty = dir.write("map", r#"{"trust_domains": {}}"#);
    assert!(
        quick().bundle_map(&empty).open().is_ok(),
        "a map may be empty"
    );
}

#[tokio::test]
async fn a26_unreadable_map_entry_has_no_keys() {
    let dir = Dir::new("unreadable");
    let path = dir.write("map", r#"{"trust_domains": {"x": 7}}"#);
    let source = quick().bundle_map(&path).open().expect("open");
    assert!(matches!(source.bundle("x"), BundleAnswer::Ready(bundle) if bundle.is_empty()));
    assert!(!source.state().is_healthy());
    assert!(matches!(
        source.bundle("y"),
        BundleAnswer::UnknownTrustDomain
    ));
}

#[tokio::test]
async fn map_error_text_is_bounded() {
    let dir = Dir::new("many");
    let long = "x".repeat(240);
    let entries: Vec<_> = (0..1000)
        .map(|n| format!(r#""{long}{n:03}": [{n}]"#))
        .collect();
    let text = format!(r#"{{"trust_domains": {{{}}}}}"#, entries.join(","));
    let source = quick()
        .bundle_map(dir.write("map", text))
        .open()
        .expect("open");
    let state = source.state();
    let error = state.files[0].last_error.clone().expect("an error");
    assert!(
        error.contains("x000\": ") && error.ends_with("; and 998 more"),
        "{error}"
    );
    assert!(error.len() < 1024, "{} bytes", error.len());
}

#[tokio::test]
async fn changed_ignored_keys_do_not_raise_the_revision() {
    let dir = Dir::new("ignored");
    let with = |element: &str| {
        let one = bundle(&["a"]);
        let keys = one.strip_suffix("]}").expect("a set of keys");
        format!("{keys}, {element}]}}")
    };
    let path = dir.write("x", with(r#"{"kty": "AKP", "kid": "b"}"#));
    let source = quick().spiffe_bundle(td("x"), &path).open().expect("open");
    let revision = source.revision();
    let ignored = || {
        let set = source.bundle_set().expect("a set");
        let bundle = set.get("x").expect("a bundle");
        assert_eq!(bundle.len(), 1);
        let names = bundle
            .ignored()
            .iter()
            .map(|key| key.key_id().map(str::to_owned));
        names.collect::<Vec<_>>()
    };
    assert_eq!(ignored(), [Some("b".to_owned())]);
    dir.rename_over("x", with(r#"{"kty": "AKP", "kid": "c"}"#));
    until("the other one", || ignored() == [Some("c".to_owned())]).await;
    dir.rename_over("x", bundle(&["a"]));
    until("none", || ignored().is_empty()).await;
    assert_eq!(source.revision(), revision);
}

#[tokio::test]
async fn renames_and_writes_in_place_are_noticed() {
    let dir = Dir::new("reload");
    let path = dir.write("x", bundle(&["a"]));
    let source = quick().spiffe_bundle(td("x"), &path).open().expect("open");
    let first = source.revision().expect("revision");
    let changed = source.changed_since(first).expect("reports changes");

    dir.rename_over("x", bundle(&["b"]));
    changed.await;
    assert_eq!(kids(&source, "x"), ["b"]);
    // The same length: only the contents differ.
    dir.write("x", bundle(&["c"]));
    until("the write in place", || kids(&source, "x") == ["c"]).await;
    assert_eq!(source.revision(), Ok(first + 2));
}

#[cfg(unix)]
#[tokio::test]
async fn retargeted_symbolic_link_is_noticed() {
    let dir = Dir::new("symlink");
    let (old, new) = (
        dir.write("old", bundle(&["a"])),
        dir.write("new", bundle(&["b"])),
    );
    let link = dir.0.join("link");
    std::os::unix::fs::symlink(&old, &link).expect("link");
    let source = quick().spiffe_bundle(td("x"), &link).open().expect("open");
    std::os::unix::fs::symlink(&new, dir.0.join("next")).expect("link");
    std::fs::rename(dir.0.join("next"), &link).expect("rename");
    until("the link's new target", || kids(&source, "x") == ["b"]).await;
}

#[tokio::test]
async fn broken_file_keeps_bundles_and_reports_error() {
    let dir = Dir::new("broken");
    let path = dir.write("x", bundle(&["a"]));
    let source = quick()
        .spiffe_bundle(td("x"), &path)
        .max_file_bytes(10_000)
        .open()
        .expect("open");
    let revision = source.revision();
    let good = bundle(&["a"]);
    let half = good.get(..good.len() / 2).expect("half").to_owned();
    for (broken, what) in [
        (half, "ends too early"),
        (String::new(), "ends too early"),
        ("garbage".to_owned(), "not JSON"),
        (
            "\"eyJhbGciOiJFUzI1NiJ9.e30.c2ln\"".to_owned(),
            "must be an object",
        ),
        (
            format!("{}{good}", " ".repeat(20_000)),
            "more than the 10000 bytes",
        ),
    ] {
        dir.write("x", &broken);
        let error_text = || source.state().files[0].last_error.clone();
        until(what, || {
            error_text().is_some_and(|error| error.contains(what))
        })
        .await;
        assert!(error_text().is_some_and(|error| !error.contains("eyJ")));
        assert_eq!(kids(&source, "x"), ["a"]);
        dir.write("x", &good);
        until("fixed", || error_text().is_none()).await;
    }
    std::fs::remove_file(&path).expect("remove");
    until("missing", || !source.state().is_healthy()).await;
    assert_eq!(
        (kids(&source, "x"), source.revision()),
        (vec!["a".into()], revision)
    );
    dir.write("x", &good);
    until("back", || source.state().is_healthy()).await;
    assert_eq!(source.revision(), revision, "the bundles did not change");
}

#[tokio::test]
async fn unchanged_keys_are_not_reported_or_reparsed() {
    let dir = Dir::new("equal");
    let path = dir.write("x", jwks(&["a", "b"]));
    let source = quick().jwks(td("x"), &path).open().expect("open");
    let (before, revision) = (source.bundle_set().expect("set"), source.revision());
    dir.write("x", jwks(&["b", "a"]));
    let written = tokio::time::Instant::now();
    // The second look after it: the first may have begun before.
    for _ in 0..2 {
        until("a look", || {
            source.state().files[0].last_look < written.elapsed()
        })
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(source.revision(), revision);
    dir.write("x", jwks(&["a", "c"]));
    until("c", || kids(&source, "x") == ["a", "c"]).await;
    let now = source.bundle_set().expect("set");
    let key = |set: &JwtBundleSet| {
        set.get("x")
            .and_then(|x| x.authority("a"))
            .cloned()
            .expect("a")
    };
    assert!(Arc::ptr_eq(&key(&before), &key(&now)));
}

#[tokio::test]
async fn two_files_for_one_trust_domain_are_rejected() {
    let dir = Dir::new("two");
    let (a, b) = (
        dir.write("a", bundle(&["a"])),
        dir.write("b", bundle(&["b"])),
    );
    let both = quick()
        .spiffe_bundle(td("x"), &a)
        .spiffe_bundle(td("x"), &b);
    let error = both.open().expect_err("two for one");
    assert_eq!(error.reason(), FileBundlesErrorReason::TwoForOneTrustDomain);
    assert_eq!(error.path(), Some(b.as_path()));

    let map = dir.write("map", r#"{"trust_domains": {}}"#);
    let source = quick()
        .spiffe_bundle(td("x"), &a)
        .bundle_map(&map)
        .open()
        .expect("open");
    dir.write(
        "map",
        format!(r#"{{"trust_domains": {{"x": {}}}}}"#, bundle(&["b"])),
    );
    until("the error", || !source.state().is_healthy()).await;
    assert_eq!(kids(&source, "x"), ["a"]);
}

#[tokio::test]
async fn errors_have_their_causes() {
    use std::error::Error as _;
    let dir = Dir::new("causes");
    let missing = dir.0.join("missing");
    let error = quick().jwks(td("x"), &missing).open().expect_err("missing");
    let error = error.clone();
    let io = error
        .source()
        .and_then(|cause| cause.downcast_ref::<std::io::Error>());
    assert_eq!(
        io.map(std::io::Error::kind),
        Some(std::io::ErrorKind::NotFound)
    );
    assert!(error.to_string().ends_with("it cannot be read"), "{error}");

    let timeout = quick()
        .jwks(td("x"), &missing)
        .initial_sync_timeout(Duration::from_millis(50));
    let timeout = timeout.build().await.expect_err("missing");
    let read = timeout
        .source()
        .and_then(|cause| cause.downcast_ref::<FileBundlesError>());
    assert_eq!(read, Some(&error));
    assert!(format!("{timeout:#}").contains(&io.expect("an I/O error").to_string()));

    let malformed = dir.write("malformed", "{}");
    let error = quick()
        .jwks(td("x"), &malformed)
        .open()
        .expect_err("malformed");
    let jwks = error
        .source()
        .and_then(|cause| cause.downcast_ref::<crate::bundle::JwksError>());
    let jwks = jwks.expect("a `JwksError`").to_string();
    assert!(!error.to_string().contains(&jwks) && format!("{error:#}").ends_with(&jwks));
}

#[tokio::test]
async fn open_error_names_path_or_fix() {
    let dir = Dir::new("open");
    let missing = dir.0.join("missing");
    let error = quick().jwks(td("x"), &missing).open().expect_err("missing");
    assert_eq!(error.reason(), FileBundlesErrorReason::Io);
    assert!(error.to_string().contains("missing"), "{error}");
    let error = quick().open().expect_err("none");
    assert_eq!(error.reason(), FileBundlesErrorReason::NoFile);
    assert!(error.to_string().contains("name one by `jwks`"), "{error}");
}

#[test]
fn source_needs_a_runtime_and_closes_with_it() {
    let dir = Dir::new("runtime");
    let path = dir.write("x", bundle(&["a"]));
    let error = quick()
        .spiffe_bundle(td("x"), &path)
        .open()
        .expect_err("no runtime");
    assert_eq!(error.reason(), FileBundlesErrorReason::NoRuntime);

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let source = {
        let _inside = runtime.enter();
        quick().spiffe_bundle(td("x"), &path).open().expect("open")
    };
    assert_eq!(kids(&source, "x"), ["a"]);
    drop(runtime);
    assert_eq!(source.revision(), Err(BundlesUnavailable::Closed));
    assert!(!source.state().is_healthy());
}

#[tokio::test]
async fn task_ends_with_the_last_handle() {
    let dir = Dir::new("last");
    let path = dir.write("x", bundle(&["a"]));
    let source = quick().spiffe_bundle(td("x"), &path).open().expect("open");
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    assert_eq!(tasks(), 1);
    let clone = source.clone();
    drop(source);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((tasks(), kids(&clone, "x")), (1, vec!["a".to_owned()]));
    drop(clone);
    until("the task ends", || tasks() == 0).await;
}

#[tokio::test]
async fn two_files_may_exchange_a_trust_domain() {
    let dir = Dir::new("exchange");
    let map = |name: &str, kid: &str| {
        let bundle = bundle(&[kid]);
        format!(r#"{{"trust_domains": {{"{name}": {bundle}}}}}"#)
    };
    let one = dir.write("one", map("x", "a"));
    let two = dir.write("two", map("y", "b"));
    let files = quick().bundle_map(&one).bundle_map(&two);
    let source = files.open().expect("open");
    dir.rename_over("one", map("y", "c"));
    // Until the other one follows, y is that one's, and x stays.
    until("the conflict is reported", || !source.state().is_healthy()).await;
    assert_eq!(
        (kids(&source, "x"), kids(&source, "y")),
        (vec!["a".into()], vec!["b".into()])
    );
    dir.rename_over("two", map("x", "d"));
    until("the exchange", || kids(&source, "x") == ["d"]).await;
    assert_eq!(kids(&source, "y"), ["c"]);
    until("all is well", || source.state().is_healthy()).await;

    // Both files add a new trust domain: one gets it, the other has the error.
    dir.rename_over("one", map("z", "e"));
    until("z is there", || kids(&source, "z") == ["e"]).await;
    dir.rename_over("two", map("z", "f"));
    until("the conflict is reported", || !source.state().is_healthy()).await;
    assert_eq!(kids(&source, "z"), ["e"]);
    assert_eq!(kids(&source, "x"), ["d"]);
}

#[cfg(unix)]
#[tokio::test]
async fn pipe_is_rejected_without_blocking() {
    let dir = Dir::new("pipe");
    let path = dir.write("jwks", jwks(&["a"]));
    let source = quick().jwks(td("x"), &path).open().expect("open");
    let pipe = dir.0.join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|made| made.success()), "a pipe");
    // Opened, it would wait for a writer for ever.
    std::fs::rename(&pipe, &path).expect("rename");
    until("the trouble", || !source.state().is_healthy()).await;
    let state = source.state();
    let error = state.files[0].last_error.clone().expect("an error");
    assert!(error.contains("not a regular file"), "{error}");
    assert_eq!(kids(&source, "x"), ["a"]);
    let rejected = quick().jwks(td("x"), &path).open().expect_err("a pipe");
    assert_eq!(rejected.reason(), FileBundlesErrorReason::Io);
}

#[derive(Default)]
struct Recorder(std::sync::Mutex<Vec<String>>);

impl Recorder {
    fn has(&self, event: &str) -> bool {
        self.0
            .lock()
            .expect("recorder")
            .iter()
            .any(|one| one == event)
    }

    fn add(&self, event: String) {
        self.0.lock().expect("recorder").push(event);
    }
}

impl MetricsRecorder for Recorder {
    fn record_ready(&self, ready: bool) {
        self.add(format!("ready {ready}"));
    }

    fn record_update(&self) {
        self.add("update".to_owned());
    }

    fn record_error(&self, kind: &'static str) {
        self.add(kind.to_owned());
    }
}

#[tokio::test]
async fn changes_and_unreadable_files_are_counted() {
    let dir = Dir::new("counted");
    let path = dir.write("a.json", bundle(&["k1"]));
    let recorder = Arc::new(Recorder::default());
    let source = quick()
        .spiffe_bundle(td("a"), &path)
        .metrics(recorder.clone())
        .open()
        .expect("open");
    assert!(recorder.has("ready true"));
    dir.rename_over("a.json", bundle(&["k2"]));
    until("the update is counted", || recorder.has("update")).await;
    assert!(!recorder.has("bundle-file"));
    dir.rename_over("a.json", "half a bund");
    until("the error is counted", || recorder.has("bundle-file")).await;
    assert!(!recorder.has("ready false"), "the last good bundles stay");
    assert_eq!(kids(&source, "a"), ["k2"]);
}
