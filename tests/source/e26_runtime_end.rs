//! How the end of a source's task is logged.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tower_spiffe::JwtSource;
use tower_spiffe::clock::{Clock, SystemClock, UnixTime};
use tower_spiffe::source::FileBundles;
use tower_spiffe::testing::FakeAgent;
use tracing::Level;

use crate::log::Log;
use crate::support::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

async fn agent_and_source() -> (FakeAgent, JwtSource) {
    let agent = FakeAgent::start_in_memory(TD).await.unwrap();
    let source = agent.source().await.unwrap();
    source.get_jwt_svid([AUD]).await.unwrap();
    (agent, source)
}

fn warnings(log: &Log) -> Vec<String> {
    let text = log.text();
    let lines = text.lines().filter(|line| {
        let line = line.trim_start();
        line.starts_with("WARN") || line.starts_with("ERROR")
    });
    lines.map(str::to_owned).collect()
}

#[test]
fn e26_failed_test_is_not_a_source_panic() {
    let log = Log::default();
    let _guard = log.begin(Level::DEBUG);
    let mut kept = None;
    let failed = catch_unwind(AssertUnwindSafe(|| {
        // Dropped while the panic of the test unwinds.
        let runtime = runtime();
        runtime.block_on(async {
            kept = Some(agent_and_source().await.1);
            std::panic::resume_unwind(Box::new("an assertion of the user's test"));
        });
    }));
    assert!(failed.is_err());
    assert_eq!(warnings(&log), Vec::<String>::new());
    assert_eq!(log.lines_with("panicked"), 0);
    assert_eq!(log.levels("has ended"), ["INFO"]);
    assert!(!kept.unwrap().is_ready());
}

#[test]
fn e26_dropped_runtime_is_not_a_warning() {
    let log = Log::default();
    let _guard = log.begin(Level::DEBUG);
    let path = std::env::temp_dir().join(format!("e26-files-{}.json", std::process::id()));
    std::fs::write(&path, r#"{"keys": []}"#).unwrap();
    let runtime = runtime();
    let (agent, source, files) = runtime.block_on(async {
        let (agent, source) = agent_and_source().await;
        let files = FileBundles::builder().jwks(td(TD), &path).open().unwrap();
        // Here a task of the runtime holds the source.
        let held = source.clone();
        tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        (agent, source, files)
    });
    drop(runtime);
    assert!(source.bundle_set().is_err() && files.bundle_set().is_err());
    drop((agent, source));
    assert_eq!(warnings(&log), Vec::<String>::new());
    std::fs::remove_file(&path).unwrap();
}

/// A clock that panics once.
struct Faulty(AtomicBool);

impl Clock for Faulty {
    fn now(&self) -> UnixTime {
        SystemClock::default().now()
    }

    fn monotonic(&self) -> Duration {
        if self.0.swap(false, Ordering::SeqCst) {
            std::panic::resume_unwind(Box::new("the clock's own fault"));
        }
        SystemClock::default().monotonic()
    }
}

#[test]
fn e26_panic_of_the_task_is_an_error() {
    let log = Log::default();
    let _guard = log.begin(Level::DEBUG);
    runtime().block_on(async {
        let agent = FakeAgent::start_in_memory(TD).await.unwrap();
        let clock = Arc::new(Faulty(AtomicBool::new(false)));
        let builder = JwtSource::builder().connector(agent.connector());
        let source = builder.clock(clock.clone()).build().await.unwrap();
        let mut updates = source.updated();
        clock.0.store(true, Ordering::SeqCst);
        let ended = soon("the end", updates.changed()).await;
        assert!(ended.is_err() && !source.is_ready());
        soon("a shutdown", source.shutdown()).await;
    });
    let message = "the task of this source panicked; the source is closed";
    assert_eq!(log.levels(message), ["ERROR"]);
    assert_eq!(log.lines_with("has ended"), 0);
}
