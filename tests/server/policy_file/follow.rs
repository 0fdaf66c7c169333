//! Changes of a policy file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::server::{Decision, FilePolicy, FilePolicyErrorReason, Policy};
use tower_spiffe::testing::{PausedClock, verified_svid};
use tower_spiffe_test_support::temp::{TempDir, replace};
use tower_spiffe_test_support::wait::SetOnDrop;
use tracing::Level;

use super::metrics::Counts;
use super::{ops_rule, parts, web_rule};
use crate::log::Log;
use crate::support::{OPS, WEB};

const SECOND: Duration = Duration::from_secs(1);

struct File {
    dir: TempDir,
}

impl File {
    fn new(text: &str) -> Self {
        let file = Self {
            dir: TempDir::new(),
        };
        file.write(text);
        file
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.join("policy.toml")
    }

    fn write(&self, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(), text).unwrap();
    }

    fn replace(&self, text: &str) {
        replace(self.path(), text);
    }

    fn open(&self) -> FilePolicy {
        FilePolicy::builder(self.path()).open().unwrap()
    }
}

fn allows(policy: &FilePolicy, id: &str) -> bool {
    policy.decide(Some(&verified_svid(id)), &parts("/a")) == Decision::Allow
}

fn web() -> String {
    web_rule("/a", "['GET']")
}

fn ops() -> String {
    ops_rule("/a")
}

/// Waits for longer than a check interval, twice.
async fn next_checks() {
    sleep(6 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn p04_a_change_takes_effect_within_the_interval() {
    let file = File::new(&web());
    let policy = file.open();
    assert!(allows(&policy, WEB) && !allows(&policy, OPS));
    file.replace(&ops());
    sleep(4 * SECOND).await;
    assert!(allows(&policy, WEB));
    sleep(2 * SECOND).await;
    assert!(!allows(&policy, WEB) && allows(&policy, OPS));
    assert_eq!((policy.state().revision, policy.state().rules), (2, 1));
    // A document does not change.
    let document = policy.document();
    file.write(web());
    next_checks().await;
    assert!(allows(&policy, WEB));
    let decision = document.decide(Some(&verified_svid(WEB)), &parts("/a"));
    assert!(decision.is_deny());
}

#[tokio::test(start_paused = true)]
async fn p04_a_half_written_file_is_not_used() {
    let all = format!("{}{}", web_rule("/{*rest}", "['GET']"), ops());
    let file = File::new(&all);
    let policy = file.open();
    // Truncated after a rule, the policy would allow more.
    file.write(web_rule("/{*rest}", "['GET']"));
    sleep(5 * SECOND + Duration::from_millis(100)).await;
    assert!(!allows(&policy, WEB));
    file.write(format!("{all}# changed\n"));
    sleep(Duration::from_millis(250)).await;
    assert!(!allows(&policy, WEB));
    assert_eq!(policy.state().revision, 1);
    sleep(Duration::from_millis(250)).await;
    assert!(!allows(&policy, WEB));
    assert_eq!((policy.state().revision, policy.state().rules), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn p04_a_broken_file_keeps_the_policy() {
    let log = Log::default();
    let _listening = log.begin(Level::INFO);
    let file = File::new(&web());
    let counts = Arc::new(Counts::default());
    let policy = FilePolicy::builder(file.path())
        .metrics(counts.clone())
        .open()
        .unwrap();
    file.replace("[[rule]]\npath = '/a'\nmethod = 'GET'\n");
    next_checks().await;
    assert!(allows(&policy, WEB) && !policy.is_healthy());
    let state = policy.state();
    let error = state.last_error.as_ref().unwrap();
    assert_eq!(error.reason(), FilePolicyErrorReason::Invalid);
    assert_eq!((error.line(), error.column()), (Some(3), Some(1)));
    assert_eq!(error.path(), Some(file.path().as_path()));
    let problem = "policy file is unreadable or invalid; its last good policy stays in use";
    assert_eq!(log.levels(problem), ["WARN"]);
    assert!(log.text().contains("line=3 column=1"), "{}", log.text());
    // Each check counts it, but one line is logged.
    let before = counts.count("policy-file");
    sleep(50 * SECOND).await;
    assert!(counts.count("policy-file") >= before + 9);
    assert_eq!(log.lines_with(problem), 1);
    // Another error is logged separately.
    file.write("");
    next_checks().await;
    assert_eq!(log.lines_with(problem), 2);
    // It recovers with a new policy, then with the same policy.
    let recovered = "the policy file can be read again";
    file.replace(&ops());
    next_checks().await;
    assert!(allows(&policy, OPS) && policy.is_healthy());
    assert_eq!(
        (
            log.lines_with(recovered),
            log.lines_with("policy file changed")
        ),
        (1, 1)
    );
    file.write("\u{0}");
    next_checks().await;
    file.replace(&ops());
    next_checks().await;
    assert!(policy.is_healthy());
    assert_eq!(
        (
            log.lines_with(recovered),
            log.lines_with("policy file changed")
        ),
        (2, 1)
    );
    assert_eq!(policy.state().revision, 2);
}

#[tokio::test(start_paused = true)]
async fn p04_a_missing_file_keeps_the_policy() {
    let file = File::new(&web());
    let policy = file.open();
    std::fs::remove_file(file.path()).unwrap();
    next_checks().await;
    assert!(allows(&policy, WEB));
    let reason = policy.state().last_error.map(|error| error.reason());
    assert_eq!(reason, Some(FilePolicyErrorReason::Io));
    file.write(web());
    next_checks().await;
    assert!(policy.is_healthy());
    assert_eq!(policy.state().revision, 1);
}

#[tokio::test(start_paused = true)]
async fn p04_large_and_unreadable_files_are_errors() {
    let file = File::new(&web());
    let policy = FilePolicy::builder(file.path())
        .max_file_bytes(1000)
        .open()
        .unwrap();
    let large = format!("{}#{}", web(), "x".repeat(1000));
    let odd: [(&[u8], &str, Option<usize>); 4] = [
        (large.as_bytes(), "more than the 1000 bytes", None),
        (b"a = 1\n\xff", "not UTF-8", Some(2)),
        (b"\xff\xfea\0", "not UTF-8", Some(1)),
        (b"{\"rule\": []}", "not TOML", Some(1)),
    ];
    for (bytes, part, line) in odd {
        file.write(bytes);
        next_checks().await;
        let state = policy.state();
        let error = state.last_error.as_ref().unwrap();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.line(), line, "{error}");
        assert!(allows(&policy, WEB));
    }
    std::fs::remove_file(file.path()).unwrap();
    std::fs::create_dir(file.path()).unwrap();
    next_checks().await;
    assert!(!policy.is_healthy() && allows(&policy, WEB));
}

#[tokio::test]
async fn p04_a_broken_file_is_not_opened() {
    let file = File::new("[[rule]]");
    let open = |path: std::path::PathBuf| FilePolicy::builder(path).open().unwrap_err();
    let error = open(file.path());
    assert_eq!(error.reason(), FilePolicyErrorReason::Invalid);
    let error = open(file.dir.join("missing"));
    assert_eq!(error.reason(), FilePolicyErrorReason::Io);
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn p04_without_a_runtime_it_is_not_opened() {
    let file = File::new(&web());
    let error = FilePolicy::builder(file.path()).open().unwrap_err();
    assert_eq!(error.reason(), FilePolicyErrorReason::NoRuntime);
    // After the runtime ends, the policy is kept, and the state reports it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let policy = {
        let _inside = runtime.enter();
        file.open()
    };
    assert!(policy.is_healthy());
    drop(runtime);
    assert!(allows(&policy, WEB));
    assert!(!policy.state().following && !policy.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn p04_reload_applies_a_file_at_once() {
    let file = File::new(&web());
    let policy = file.open();
    file.write(ops());
    policy.reload().unwrap();
    assert!(allows(&policy, OPS) && !allows(&policy, WEB));
    file.write("x");
    let error = policy.reload().unwrap_err();
    assert_eq!(error.reason(), FilePolicyErrorReason::Syntax);
    assert_eq!(policy.state().last_error, Some(error));
    assert!(allows(&policy, OPS));
    file.write(ops());
    policy.reload().unwrap();
    assert!(policy.is_healthy());
    assert_eq!(policy.state().revision, 2);
}

#[tokio::test]
async fn p04_reload_applies_a_file_despite_other_reads() {
    let file = File::new(&web());
    let policy = file.open();
    let done = AtomicBool::new(false);
    let failed = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    policy.reload().unwrap();
                }
            });
        }
        let _done = SetOnDrop(&done);
        let reload = |n: &usize| {
            let (text, id) = [(ops(), OPS), (web(), WEB)][n % 2].clone();
            file.replace(&text);
            policy.reload().unwrap();
            !allows(&policy, id)
        };
        (0..300).filter(reload).collect::<Vec<usize>>()
    });
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn p04_checks_follow_interval_and_clock() {
    let file = File::new(&web());
    let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
    let policy = FilePolicy::builder(file.path())
        .poll_interval(60 * SECOND)
        .clock(clock.shared())
        .open()
        .unwrap();
    sleep(50 * SECOND).await;
    assert_eq!(policy.state().last_look, 50 * SECOND);
    sleep(20 * SECOND).await;
    let state = policy.state();
    assert!(state.last_look <= 11 * SECOND && state.last_change == 70 * SECOND);
    // After a suspend it is checked within a second.
    file.replace(&ops());
    clock.step_wall(3600);
    sleep(2 * SECOND).await;
    assert!(allows(&policy, OPS));
    assert!(!policy.state().overdue);
}

#[tokio::test(start_paused = true)]
async fn p04_the_task_ends_with_the_last_handle() {
    let file = File::new(&web());
    let policy = file.open();
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let clone = policy.clone();
    drop(policy);
    next_checks().await;
    assert_eq!((tasks(), allows(&clone, WEB)), (1, true));
    drop(clone);
    next_checks().await;
    assert_eq!(tasks(), 0);
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn p04_another_target_of_a_link_is_a_change() {
    let file = File::new(&web());
    let (link, next) = (file.dir.join("link"), file.dir.join("next-link"));
    std::os::unix::fs::symlink(file.path(), &link).unwrap();
    let policy = FilePolicy::builder(&link).open().unwrap();
    std::fs::write(file.dir.join("other"), ops()).unwrap();
    std::os::unix::fs::symlink(file.dir.join("other"), &next).unwrap();
    std::fs::rename(&next, &link).unwrap();
    next_checks().await;
    assert!(allows(&policy, OPS));
}
