//! Token files as a source: reads, kept tokens and errors.

use std::error::Error as _;
use std::fs;
use std::path::PathBuf;

use tower_spiffe::bundle::Algorithm;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::{Issuer, PausedClock};
use tower_spiffe::token::{FetchSvid, FetchSvidReason, SvidRequestError, TokenErrorReason};
use tower_spiffe::token_file::{FileTokens, FileTokensBuilder, TokenFile, TokenFileErrorReason};
use tower_spiffe::{JwtSvid, SvidCache};
use tower_spiffe_test_support::temp::{TempDir, replace};
use tracing::Level;

use crate::log::Log;
use crate::support::{START, millis, request, secs, settle};

const WEB: &str = "spiffe://example.org/web";

struct Sidecar {
    clock: PausedClock,
    issuer: Issuer,
    dir: TempDir,
}

impl Sidecar {
    fn new() -> Self {
        let clock = PausedClock::new(UnixTime::from_secs(START));
        Self {
            issuer: Issuer::with_clock("example.org", clock.shared()).unwrap(),
            clock,
            dir: TempDir::new(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("token")
    }

    fn builder(&self) -> FileTokensBuilder {
        let builder = FileTokens::builder().clock(self.clock.shared());
        builder.file(["a"], self.path())
    }

    fn open(&self) -> FileTokens {
        self.builder().open().unwrap()
    }

    /// Writes a new token for this audience to the file, and returns it.
    fn write(&self, audience: &str) -> String {
        let token = self
            .issuer
            .token(WEB, audience)
            .expires_in(secs(300))
            .sign();
        replace(self.path(), &token);
        token
    }
}

async fn fetch(files: &FileTokens) -> Result<JwtSvid, FetchSvidReason> {
    let fetched = files.fetch_svid(&request("a")).await;
    fetched.map_err(|error| {
        assert!(!error.to_string().contains("eyJ"), "{error}");
        error.reason()
    })
}

#[tokio::test(start_paused = true)]
async fn t04_changed_file_is_taken_within_seconds() {
    let sidecar = Sidecar::new();
    let first = sidecar.write("a");
    let cache = SvidCache::from(sidecar.open());
    let pin = cache.pin(request("a"));
    let _warm = cache.keep_warm([request("a")]).unwrap();
    assert_eq!(pin.changed().await.unwrap().token(), first);
    for _ in 0..5 {
        // Long before the refresh.
        tokio::time::sleep(secs(20)).await;
        let newer = sidecar.write("a");
        let changed = tokio::time::timeout(secs(6), pin.changed()).await;
        assert_eq!(changed.unwrap().unwrap().token(), newer);
    }
}

#[tokio::test(start_paused = true)]
async fn t04_next_request_takes_a_changed_file() {
    let sidecar = Sidecar::new();
    sidecar.write("a");
    let cache = SvidCache::from(sidecar.open());
    cache.get(&request("a")).await.unwrap();
    let newer = sidecar.write("a");
    tokio::time::sleep(secs(6)).await;
    // This request starts the read in the background.
    cache.get(&request("a")).await.unwrap();
    tokio::time::sleep(secs(1)).await;
    assert_eq!(cache.get(&request("a")).await.unwrap().token(), newer);
}

#[tokio::test(start_paused = true)]
async fn t04_last_good_token_outlives_its_file() {
    let (sidecar, log) = (Sidecar::new(), Log::default());
    let _listening = log.begin(Level::DEBUG);
    let token = sidecar.write("a");
    let files = sidecar.open();
    assert_eq!(fetch(&files).await.unwrap().token(), token);
    let signature_at = token.rfind('.').unwrap();
    let broken = [
        None,
        Some(String::new()),
        Some("\n".to_owned()),
        Some(token[..10].to_owned()),
        Some(token[..signature_at].to_owned()),
        // Each line is a token of another form.
        Some(token[..signature_at + 5].to_owned()),
        Some(token[..token.len() - 1].to_owned()),
        Some(token[..token.len() - 4].to_owned()),
        Some(format!("{token}{token}")),
        Some(format!("{token}\0\0\0\0")),
        Some("x".repeat(20_000)),
    ];
    for text in &broken {
        match text {
            None => fs::remove_file(sidecar.path()).unwrap(),
            Some(text) => replace(sidecar.path(), text),
        }
        assert_eq!(fetch(&files).await.unwrap().token(), token, "{text:?}");
        let state = &files.state()[0];
        assert!(state.last_error.is_some(), "{text:?}");
        assert_eq!(state.expires_in, Some(secs(300)));
    }
    assert!(log.lines_with("token file is unreadable or invalid") > 3);
    assert!(!log.text().contains(&token[..30]));
    // Until its `exp`, and not longer.
    tokio::time::sleep(millis(299_999)).await;
    assert!(fetch(&files).await.is_ok());
    tokio::time::sleep(millis(1)).await;
    assert_eq!(fetch(&files).await.unwrap_err(), FetchSvidReason::Other);
    replace(sidecar.path(), "half");
    assert_eq!(
        fetch(&files).await.unwrap_err(),
        FetchSvidReason::Unacceptable
    );
    let newer = sidecar.write("a");
    assert_eq!(fetch(&files).await.unwrap().token(), newer);
    assert!(files.state()[0].last_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn t04_cut_signatures_are_half_written() {
    let sidecar = Sidecar::new();
    for algorithm in [
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::ES512,
        Algorithm::RS256,
        Algorithm::PS512,
    ] {
        sidecar.issuer.rotate_now_to(algorithm);
        let token = sidecar.write("a");
        let files = sidecar.open();
        assert_eq!(fetch(&files).await.unwrap().token(), token);
        for cut in 1..40 {
            replace(sidecar.path(), &token[..token.len() - cut]);
            let cold = sidecar.open();
            assert_eq!(
                fetch(&cold).await.unwrap_err(),
                FetchSvidReason::Unacceptable,
                "{algorithm:?} {cut}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn t04_other_audience_or_identity_is_an_error() {
    let sidecar = Sidecar::new();
    sidecar.write("a");
    let id = || WEB.parse().unwrap();
    let files = sidecar.builder().spiffe_id(id()).open().unwrap();
    assert!(fetch(&files).await.is_ok());
    let issuer = &sidecar.issuer;
    for token in [
        issuer.token(WEB, "b").sign(),
        issuer.token(WEB, "A").sign(),
        issuer.token(WEB, "a").audience("b").sign(),
        issuer.token("spiffe://example.org/other", "a").sign(),
        issuer.token("spiffe://other.test/web", "a").sign(),
    ] {
        replace(sidecar.path(), &token);
        // Also if there is a good token.
        assert_eq!(
            fetch(&files).await.unwrap_err(),
            FetchSvidReason::Unacceptable
        );
        assert!(files.state()[0].last_error.is_some());
    }
    for token in [
        issuer.token(WEB, "a").without_claim("exp").sign(),
        issuer.token(WEB, "a").without_claim("sub").sign(),
        issuer
            .token("system:serviceaccount:default:web", "a")
            .sign(),
    ] {
        replace(sidecar.path(), &token);
        let cold = sidecar.open();
        assert_eq!(
            fetch(&cold).await.unwrap_err(),
            FetchSvidReason::Unacceptable
        );
    }
}

#[tokio::test(start_paused = true)]
async fn t04_expired_token_is_an_error() {
    let sidecar = Sidecar::new();
    sidecar.write("a");
    let files = sidecar.open();
    let cache = SvidCache::from(&files);
    tokio::time::sleep(secs(300)).await;
    assert_eq!(fetch(&files).await.unwrap_err(), FetchSvidReason::Stale);
    let error = cache.get(&request("a")).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::StaleToken);
    assert!(error.to_string().contains("the process that writes it"));
}

#[tokio::test(start_paused = true)]
async fn t04_missing_file_does_not_block_others() {
    let sidecar = Sidecar::new();
    sidecar.write("a");
    let missing = sidecar.dir.join("missing");
    let files = sidecar.builder().file(["b"], &missing).open().unwrap();
    let cache = SvidCache::from(&files);
    for _ in 0..5 {
        assert!(cache.get(&request("b")).await.is_err());
        tokio::time::sleep(secs(6)).await;
    }
    assert!(cache.get(&request("a")).await.is_ok());
    // It appears later, and is used soon.
    let token = sidecar.issuer.token(WEB, "b").sign();
    replace(&missing, &token);
    tokio::time::sleep(secs(6)).await;
    assert_eq!(cache.get(&request("b")).await.unwrap().token(), token);
    // No file has this audience: a permanent error.
    let error = cache.get(&request("c")).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::InvalidRequest);
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn t04_links_are_followed_and_pipes_are_not_opened() {
    let sidecar = Sidecar::new();
    // As in Kubernetes volumes, the target of the link changes.
    let (one, two) = (sidecar.dir.join("one"), sidecar.dir.join("two"));
    let token = |_| sidecar.issuer.token(WEB, "a").sign();
    let [first, second] = [1, 2].map(token);
    fs::write(&one, format!("{first}\n")).unwrap();
    fs::write(&two, &second).unwrap();
    std::os::unix::fs::symlink(&one, sidecar.path()).unwrap();
    let files = sidecar.open();
    assert_eq!(fetch(&files).await.unwrap().token(), first);
    fs::remove_file(sidecar.path()).unwrap();
    std::os::unix::fs::symlink(&two, sidecar.path()).unwrap();
    assert_eq!(fetch(&files).await.unwrap().token(), second);
    fs::remove_file(sidecar.path()).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(sidecar.path())
        .status();
    assert!(made.unwrap().success());
    assert_eq!(fetch(&files).await.unwrap().token(), second);
    let error = files.state()[0].last_error.clone().unwrap();
    assert!(error.contains("not a regular file"), "{error}");
    fs::remove_file(sidecar.path()).unwrap();
    fs::create_dir(sidecar.path()).unwrap();
    assert_eq!(fetch(&files).await.unwrap().token(), second);
}

#[tokio::test(start_paused = true)]
async fn t04_our_own_writer_feeds_the_source() {
    let (bench, sidecar) = (crate::support::Bench::new(), Sidecar::new());
    let issuer = Issuer::with_clock("example.org", bench.clock.shared()).unwrap();
    bench.issuer.then(move |_| {
        crate::support::Answer::Text(issuer.token(WEB, "a").expires_in(secs(300)).sign())
    });
    let writer = TokenFile::builder(&bench.cache, request("a"), sidecar.path());
    let writer = writer.start().unwrap();
    let files = FileTokens::builder().clock(bench.clock.shared());
    let files = files.file(["a"], sidecar.path()).open().unwrap();
    let cache = SvidCache::from(&files);
    for minute in 0..60 {
        bench.at(secs(60 * minute + 1)).await;
        cache.get(&request("a")).await.unwrap();
    }
    // The last token may be newer than the last poll of the files. A request after the next poll fetches
    // it in the background.
    writer.shutdown().await;
    for _ in 0..2 {
        tokio::time::sleep(secs(6)).await;
        cache.get(&request("a")).await.unwrap();
    }
    let last = cache.get(&request("a")).await.unwrap();
    assert_eq!(fs::read_to_string(sidecar.path()).unwrap(), last.token());
    let (read, written) = (cache.stats(), bench.cache.stats());
    // Each written token was read, except for one that was replaced before.
    let new = read.fetches - read.unchanged;
    assert!(
        new > 15 && new.abs_diff(written.fetches) <= 1,
        "{written:?} {read:?}"
    );
    assert_eq!(read.errors, 0, "{read:?}");
}

#[tokio::test(start_paused = true)]
async fn t04_invalid_options_are_errors() {
    let reason = |builder: FileTokensBuilder| builder.open().unwrap_err().reason();
    let builder = FileTokens::builder;
    assert_eq!(reason(builder()), TokenFileErrorReason::Path);
    let none: [&str; 0] = [];
    for audiences in [vec![""], vec!["a "], none.to_vec()] {
        let builder = builder().file(audiences, "x");
        assert_eq!(reason(builder), TokenFileErrorReason::Audience);
    }
    let error = builder().file([""], "x").open().unwrap_err().clone();
    let cause = error.source().unwrap().downcast_ref();
    assert_eq!(cause, Some(&SvidRequestError::EmptyAudience));
    assert!(format!("{error:#}").ends_with(&cause.unwrap().to_string()));
    let twice = builder().file(["a", "b"], "x").file(["b", "a"], "y");
    assert_eq!(reason(twice), TokenFileErrorReason::Audience);
}

#[test]
fn t04_open_without_a_runtime_is_an_error() {
    let opened = FileTokens::builder().file(["a"], "x").open();
    let reason = opened.unwrap_err().reason();
    assert_eq!(reason, TokenFileErrorReason::NoRuntime);
}

#[tokio::test(start_paused = true)]
async fn t04_debug_and_state_show_no_token() {
    let sidecar = Sidecar::new();
    let token = sidecar.write("a");
    let files = sidecar.open();
    fetch(&files).await.unwrap();
    settle().await;
    let shown = format!("{files:?} {:?}", files.state());
    for part in token.split('.') {
        assert!(!shown.contains(part), "{shown}");
    }
}
