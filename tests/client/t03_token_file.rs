//! Token files: what readers see, and failed writes.

use std::error::Error as _;
use std::fs;
use std::io;
#[cfg(unix)]
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

#[cfg(unix)]
use tower_spiffe::clock::Clock as _;
use tower_spiffe::metrics::MetricsRecorder;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::token::FetchSvidReason;
use tower_spiffe::token_file::{TokenFile, TokenFileBuilder, TokenFileErrorReason};
use tower_spiffe::{JwtSvid, SvidCache};
use tower_spiffe_test_support::temp::TempDir;
use tracing::Level;

use crate::log::Log;
use crate::support::{Answer, Bench, millis, request, secs, settle};

#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Waits in paused time until the file was written this many times.
async fn writes(file: &TokenFile, count: u64) {
    for _ in 0..100_000 {
        if file.state().writes >= count {
            return;
        }
        tokio::time::sleep(millis(100)).await;
    }
    panic!("not written {count} times: {:?}", file.state());
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn t03_readers_see_whole_tokens_only() {
    const ROTATIONS: u64 = 1000;
    let (bench, dir) = (Bench::new(), TempDir::new());
    let path = dir.join("token");
    let file = TokenFile::builder(&bench.cache, request("a"), &path)
        .start()
        .unwrap();
    file.written().await.unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (path, ended) = (path.clone(), ended.clone());
        move || {
            let (mut reads, mut changes, mut last) = (0_u64, 0_u64, String::new());
            while !ended.load(Ordering::SeqCst) {
                let mut opened = fs::File::open(&path).expect("the file is always there");
                let permissions = opened.metadata().unwrap().permissions();
                assert_eq!(permissions.mode() & 0o7777, 0o600);
                let mut text = String::new();
                std::io::Read::read_to_string(&mut opened, &mut text).unwrap();
                JwtSvid::parse_unverified(&text, "").expect("the whole token");
                assert!(text.len() > 100);
                reads += 1;
                if text != last {
                    changes += 1;
                    last = text;
                }
            }
            (reads, changes)
        }
    });
    while file.state().writes <= ROTATIONS {
        assert!(bench.clock.monotonic() < secs(300 * ROTATIONS));
        tokio::time::sleep(secs(20)).await;
    }
    ended.store(true, Ordering::SeqCst);
    let (reads, changes) = reader.join().unwrap();
    assert!(reads > ROTATIONS && changes > 100, "{reads} {changes}");
    let state = file.state();
    assert_eq!((state.failures, state.last_error), (0, None));
    // Each token was written once.
    assert_eq!(state.writes, bench.issuer.calls());
    assert_eq!(names(dir.path()), ["token"]);
}

#[tokio::test(start_paused = true)]
async fn t03_file_has_the_bare_current_token() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    let path = dir.join("token");
    let file = TokenFile::builder(&bench.cache, request("a"), &path)
        .start()
        .unwrap();
    for write in 1..=5 {
        writes(&file, write).await;
        let current = bench.cache.get(&request("a")).await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), current.token());
        let state = file.state();
        assert_eq!(state.spiffe_id.as_ref(), Some(current.spiffe_id()));
        assert!(state.expires_in.unwrap() > secs(290), "{state:?}");
        assert!(state.last_write.unwrap() < secs(1), "{state:?}");
    }
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn t03_planted_links_are_not_followed() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    let (path, victim) = (dir.join("token"), dir.join("victim"));
    fs::write(&victim, "untouched").unwrap();
    symlink(&victim, &path).unwrap();
    let file = TokenFile::builder(&bench.cache, request("a"), &path)
        .start()
        .unwrap();
    file.written().await.unwrap();
    for write in 2..4 {
        assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        // Again, as a dangling link and as a link to a directory.
        fs::remove_file(&path).unwrap();
        let to = if write == 2 { "nowhere" } else { "." };
        symlink(to, &path).unwrap();
        writes(&file, write).await;
    }
    assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
    assert_eq!(names(dir.path()), ["token", "victim"]);
    assert_eq!(mode(&victim) & 0o777, 0o644 & mode(&victim));
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn t03_permissions_are_set_on_every_write() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    let group = fs::metadata(dir.path()).unwrap().gid();
    let owner = fs::metadata(dir.path()).unwrap().uid();
    let builder = |name: &str| TokenFile::builder(&bench.cache, request("a"), dir.join(name));
    let private = builder("private").start().unwrap();
    let shared = builder("shared")
        .mode(0o640)
        .owner(owner)
        .group(group)
        .start()
        .unwrap();
    // More permissions than a usual umask allows.
    let open = builder("open").mode(0o666).start().unwrap();
    for write in 1..4 {
        for (file, expected) in [(&private, 0o600), (&shared, 0o640), (&open, 0o666)] {
            writes(file, write).await;
            assert_eq!(mode(file.path()), expected, "{:?}", file.path());
            assert_eq!(fs::metadata(file.path()).unwrap().gid(), group);
            fs::set_permissions(file.path(), fs::Permissions::from_mode(0o777)).unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn t03_failed_writes_keep_the_old_file() {
    let (bench, dir, log) = (Bench::new(), TempDir::new(), Log::default());
    let _listening = log.begin(Level::DEBUG);
    let (inside, away) = (dir.join("in"), dir.join("away"));
    fs::create_dir(&inside).unwrap();
    let path = inside.join("token");
    let counts = Arc::new(Counts::default());
    let file = TokenFile::builder(&bench.cache, request("a"), &path)
        .metrics(counts.clone())
        .start()
        .unwrap();
    file.written().await.unwrap();
    let old = fs::read_to_string(&path).unwrap();
    // Permissions do not work, because these tests may run as root.
    fs::rename(&inside, &away).unwrap();
    bench.at(secs(250)).await;
    let state = file.state();
    let error = state.last_error.unwrap();
    assert!(error.contains("create its directory"), "{error}");
    assert!(!error.contains("eyJ"));
    // Retries after 1 s, 2 s, 4 s, … 30 s.
    assert!((6..=12).contains(&state.failures), "{}", state.failures);
    assert_eq!(state.writes, 1);
    assert_eq!(fs::read_to_string(away.join("token")).unwrap(), old);
    assert_eq!(names(&away), ["token"]);
    let message = "token file cannot be written";
    let levels = log.levels(message);
    assert_eq!(levels.iter().filter(|level| *level == "WARN").count(), 1);
    assert_eq!(levels.len() as u64, state.failures);

    fs::rename(&away, &inside).unwrap();
    writes(&file, 2).await;
    assert!(tower_spiffe::clock::Clock::now(&bench.clock).secs() < 1_790_000_000 + 285);
    assert_ne!(fs::read_to_string(&path).unwrap(), old);
    assert_eq!(file.state().last_error, None);
    assert_eq!(counts.errors.load(Ordering::SeqCst), state.failures);
    assert_eq!(counts.ok.load(Ordering::SeqCst), 2);
    assert!(!log.text().contains("eyJ"));
}

#[derive(Default)]
struct Counts {
    ok: AtomicU64,
    errors: AtomicU64,
}

impl MetricsRecorder for Counts {
    fn record_token_file(&self, outcome: &'static str) {
        match outcome {
            "ok" => self.ok.fetch_add(1, Ordering::SeqCst),
            "error" => self.errors.fetch_add(1, Ordering::SeqCst),
            other => panic!("{other}"),
        };
    }
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn t03_read_only_directory_is_retried() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    // For root, only directories of the kernel are read-only.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let is_root = fs::write(dir.join("probe"), "").is_ok();
    let path = match is_root {
        true => Path::new("/proc/self/token").to_owned(),
        false => dir.join("token"),
    };
    let file = TokenFile::builder(&bench.cache, request("a"), &path)
        .start()
        .unwrap();
    bench.at(secs(10)).await;
    let state = file.state();
    assert!(state.failures >= 3 && state.writes == 0, "{state:?}");
    assert!(state.last_error.is_some() && state.refreshed);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    if !is_root {
        writes(&file, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn t03_directory_at_the_path_is_an_error() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    let path = dir.join("token");
    fs::create_dir(&path).unwrap();
    let file = TokenFile::builder(&bench.cache, request("a"), &path)
        .start()
        .unwrap();
    bench.at(secs(5)).await;
    let error = file.state().last_error.unwrap();
    assert!(error.contains("remove the directory"), "{error}");
    assert_eq!(names(dir.path()), ["token"]);
    fs::remove_dir(&path).unwrap();
    writes(&file, 1).await;
}

/// Many programs open files so that they cannot be replaced.
#[cfg(windows)]
#[tokio::test(start_paused = true)]
async fn t03_file_open_in_a_reader_is_retried() {
    use std::os::windows::fs::OpenOptionsExt as _;
    const SHARE_READ_WRITE: u32 = 3;
    let (bench, dir) = (Bench::new(), TempDir::new());
    let path = dir.join("token");
    let file = TokenFile::builder(&bench.cache, request("a"), &path)
        .start()
        .unwrap();
    file.written().await.unwrap();
    let old = fs::read_to_string(&path).unwrap();
    let mut options = fs::File::options();
    options.read(true).share_mode(SHARE_READ_WRITE);
    let reader = options.open(&path).unwrap();
    bench.at(secs(250)).await;
    let state = file.state();
    let error = state.error.unwrap();
    assert!(error.contains("close the file"), "{error}");
    assert!(state.failures > 3 && state.writes == 1);
    assert_eq!(fs::read_to_string(&path).unwrap(), old);
    assert_eq!(names(dir.path()), ["token"]);
    drop(reader);
    writes(&file, 2).await;
    assert_ne!(fs::read_to_string(&path).unwrap(), old);
    assert_eq!(file.state().error, None);
}

#[tokio::test(start_paused = true)]
async fn t03_outage_keeps_the_file() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    let path = dir.join("token");
    let file = TokenFile::builder(&bench.cache, request("a"), &path)
        .start()
        .unwrap();
    file.written().await.unwrap();
    let old = fs::read_to_string(&path).unwrap();
    bench
        .issuer
        .then(|_| Answer::Fail(FetchSvidReason::Unavailable));
    bench.at(secs(1000)).await;
    assert_eq!(fs::read_to_string(&path).unwrap(), old);
    let state = file.state();
    assert_eq!((state.writes, state.expires_in), (1, Some(secs(0))));
    bench.issuer.then(|call| call.fresh(300));
    writes(&file, 2).await;
    assert_ne!(fs::read_to_string(&path).unwrap(), old);
}

#[tokio::test(start_paused = true)]
async fn t03_exit_removes_the_file_if_configured() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    for remove in [true, false] {
        for by in ["shutdown", "drop", "close"] {
            let bench = match by {
                "close" => &Bench::new(),
                _ => &bench,
            };
            let path = dir.join(by);
            let file = TokenFile::builder(&bench.cache, request("a"), &path)
                .remove_on_exit(remove)
                .start()
                .unwrap();
            file.written().await.unwrap();
            match by {
                "shutdown" => file.shutdown().await,
                "drop" => drop(file),
                _ => {
                    bench.cache.close();
                    settle().await;
                    tokio::time::sleep(secs(1)).await;
                    assert!(!file.state().refreshed);
                }
            }
            assert_eq!(path.exists(), !remove, "{by} {remove}");
            let _ = fs::remove_file(&path);
        }
    }
    assert!(names(dir.path()).is_empty());
}

// Windows has no stable file identity in std.
#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn t03_successors_file_is_not_removed() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    let path = dir.join("token");
    let builder =
        || TokenFile::builder(&bench.cache, request("a"), dir.join("token")).remove_on_exit(true);
    let old = builder().start().unwrap();
    old.written().await.unwrap();
    let new = builder().start().unwrap();
    new.written().await.unwrap();
    old.shutdown().await;
    assert!(path.exists());
    new.shutdown().await;
    assert!(!path.exists());
}

#[tokio::test(start_paused = true)]
async fn t03_action_runs_after_each_write() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    let (sender, seen) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let file = TokenFile::builder(&bench.cache, request("a"), dir.join("token"))
        .after_write(move |path| {
            let text = fs::read_to_string(path).unwrap();
            sender.lock().unwrap().send(text).unwrap();
            Ok(())
        })
        .start()
        .unwrap();
    writes(&file, 5).await;
    settle().await;
    tokio::time::sleep(secs(1)).await;
    let seen: Vec<String> = seen.try_iter().collect();
    assert_eq!(seen.len(), 5);
    assert_eq!(seen.last(), fs::read_to_string(file.path()).ok().as_ref());
}

#[tokio::test(start_paused = true)]
async fn t03_failed_action_is_retried_and_visible() {
    let (bench, dir, log) = (Bench::new(), TempDir::new(), Log::default());
    let _listening = log.begin(Level::DEBUG);
    let (fails, runs) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (failing, counted) = (fails.clone(), runs.clone());
    let file = TokenFile::builder(&bench.cache, request("a"), dir.join("token"))
        .after_write(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            match failing.load(Ordering::SeqCst) {
                true => Err("reload failed: exit code 1".to_owned()),
                false => Ok(()),
            }
        })
        .start()
        .unwrap();
    bench.at(secs(20)).await;
    let error = file.state().after_write_error.unwrap();
    assert_eq!(&*error, "reload failed: exit code 1");
    assert!(runs.load(Ordering::SeqCst) >= 4);
    assert_eq!(file.state().writes, 1, "the file is not written again");
    let levels = log.levels("the action after the write of a token file failed");
    assert_eq!(levels.iter().filter(|level| *level == "WARN").count(), 1);
    fails.store(false, Ordering::SeqCst);
    bench.at(secs(60)).await;
    assert_eq!(file.state().after_write_error, None);
}

#[test]
fn t03_hanging_action_delays_no_write() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let dir = TempDir::new();
    let cache = SvidCache::builder(Second).build();
    let (open, gate) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    runtime.block_on(async {
        let file = TokenFile::builder(&cache, request("a"), dir.join("token"))
            .after_write(move |_| {
                let _ = gate.lock().unwrap().recv();
                Ok(())
            })
            .start()
            .unwrap();
        let written = || file.state().writes >= 2;
        tower_spiffe_test_support::wait::eventually("a second write", written).await;
        drop(open);
    });
}

/// Tokens that live for two seconds.
struct Second;

impl tower_spiffe::token::FetchSvid for Second {
    fn fetch_svid(
        &self,
        request: &tower_spiffe::token::SvidRequest,
    ) -> tower_spiffe::token::FetchSvidFuture {
        let now =
            tower_spiffe::clock::Clock::now(&tower_spiffe::clock::SystemClock::default()).secs();
        let text = crate::support::Token::new(request, now, 2).text();
        Box::pin(async move { Ok(JwtSvid::parse_unverified(&text, "").unwrap()) })
    }
}

#[tokio::test(start_paused = true)]
async fn t03_several_audiences_in_one_process() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    let files: Vec<_> = ["a", "b", "c"]
        .map(|audience| {
            TokenFile::builder(&bench.cache, request(audience), dir.join(audience))
                .start()
                .unwrap()
        })
        .into();
    for file in &files {
        writes(file, 3).await;
        let text = fs::read_to_string(file.path()).unwrap();
        let svid = JwtSvid::parse_unverified(&text, "").unwrap();
        let name = file.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(svid.audiences().collect::<Vec<_>>(), [name]);
    }
    assert_eq!(names(dir.path()), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn t03_leftovers_of_a_crash_are_removed() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    let path = dir.join("token");
    // A crash between the two steps: the final name is taken, so the rename fails.
    let left: Vec<String> = {
        let file = TokenFile::builder(&bench.cache, request("a"), &path)
            .start()
            .unwrap();
        file.written().await.unwrap();
        let mut left = Vec::new();
        for n in 0..3_u64 {
            left.push(format!("{}{n:016x}.tmp", prefix(&path)));
        }
        left
    };
    for name in &left {
        fs::write(dir.join(name), "old token").unwrap();
    }
    let foreign = ".spiffe-token-0000000000000000-0000000000000000.tmp";
    fs::write(dir.join(foreign), "of another path").unwrap();
    let file = TokenFile::builder(&bench.cache, request("a"), &path)
        .start()
        .unwrap();
    file.written().await.unwrap();
    assert_eq!(names(dir.path()), [foreign, "token"]);
}

/// Returns the prefix of the writer's temporary files.
fn prefix(path: &Path) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    path.file_name().hash(&mut hasher);
    format!(".spiffe-token-{:016x}-", hasher.finish())
}

#[tokio::test(start_paused = true)]
async fn t03_invalid_options_are_errors_at_start() {
    let bench = Bench::new();
    let builder = |path: &str| TokenFile::builder(&bench.cache, request("a"), path);
    let reason = |builder: TokenFileBuilder| builder.start().map(drop).unwrap_err().reason();
    for path in ["", "/", "..", "/tmp/", "dir/..", "a\0b"] {
        assert_eq!(
            reason(builder(path)),
            TokenFileErrorReason::Path,
            "{path:?}"
        );
    }
    #[cfg(unix)]
    for mode in [0o4600, 0o1_000, 0o100_600] {
        assert_eq!(
            reason(builder("token").mode(mode)),
            TokenFileErrorReason::Mode
        );
    }
    assert_eq!(bench.issuer.calls(), 0);
}

#[test]
fn t03_start_without_a_runtime_is_an_error() {
    let cache = SvidCache::new(Second);
    let started = TokenFile::builder(&cache, request("a"), "token").start();
    let error = started.map(drop).unwrap_err();
    assert_eq!(error.reason(), TokenFileErrorReason::NoRuntime);
}

#[tokio::test(start_paused = true)]
async fn t03_closed_error_has_the_error_of_the_write() {
    let dir = TempDir::new();
    let agent = FakeAgent::start_in_memory("example.org").await.unwrap();
    let source = agent.source().await.unwrap();
    let path = dir.join("missing").join("token");
    let file = TokenFile::builder(&SvidCache::from(&source), request("a"), path);
    let file = file.start().unwrap();
    while file.state().failures == 0 {
        tokio::time::sleep(secs(1)).await;
    }
    source.shutdown().await;
    let error = file.written().await.unwrap_err().clone();
    assert_eq!(error.reason(), TokenFileErrorReason::Closed);
    let cause = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(cause.kind(), io::ErrorKind::NotFound);
}

#[test]
fn t03_end_of_the_runtime_is_visible() {
    let dir = TempDir::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let cache = SvidCache::new(Second);
    let file = runtime.block_on(async {
        let path = dir.join("token");
        let builder = TokenFile::builder(&cache, request("a"), path).remove_on_exit(true);
        let file = builder.start().unwrap();
        file.written().await.unwrap();
        file
    });
    drop(runtime);
    assert!(!file.state().refreshed);
    let path = file.path().to_owned();
    drop(file);
    assert!(!path.exists());
}

#[tokio::test(start_paused = true)]
async fn t03_shutdown_of_the_source_ends_the_file() {
    let dir = TempDir::new();
    let agent = FakeAgent::start_in_memory("example.org").await.unwrap();
    let source = agent.source().await.unwrap();
    let cache = SvidCache::from(&source);
    let path = dir.join("token");
    let builder = TokenFile::builder(&cache, request("a"), &path);
    let file = builder.remove_on_exit(true).start().unwrap();
    file.written().await.unwrap();
    source.shutdown().await;
    settle().await;
    tokio::time::sleep(secs(1)).await;
    assert!(!file.state().refreshed && !path.exists());
    // It was never written, and the wait ends.
    let late = TokenFile::builder(&cache, request("b"), dir.join("late"));
    let late = late.start().unwrap();
    let error = late.written().await.unwrap_err();
    assert_eq!(error.reason(), TokenFileErrorReason::Closed);
}

#[tokio::test(start_paused = true)]
async fn t03_state_and_debug_show_no_token() {
    let (bench, dir) = (Bench::new(), TempDir::new());
    let file = TokenFile::builder(&bench.cache, request("a"), dir.join("token"))
        .start()
        .unwrap();
    file.written().await.unwrap();
    let shown = format!("{file:?} {:?}", file.state());
    for part in fs::read_to_string(file.path()).unwrap().split('.') {
        assert!(!shown.contains(part), "{shown}");
    }
}
