//! A source is unhealthy if its task does not run, or its polls are overdue.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tower_spiffe::JwtSource;
use tower_spiffe::clock::{Clock, UnixTime};
use tower_spiffe::source::FileBundles;
use tower_spiffe::testing::FakeAgent;

use crate::support::*;

/// The wall clock and the monotonic clock, in seconds.
#[derive(Default)]
struct Hands {
    wall: AtomicI64,
    monotonic: AtomicU64,
}

impl Clock for Hands {
    fn now(&self) -> UnixTime {
        UnixTime::from_secs(1_790_000_000 + self.wall.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        secs(self.monotonic.load(Ordering::SeqCst))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// A file that is deleted on drop.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = std::env::temp_dir().join(format!("{name}-{}.json", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn e20_undriven_runtime_makes_the_source_unhealthy() {
    let runtime = runtime();
    let clock = Arc::new(Hands::default());
    let (agent, source) = runtime.block_on(async {
        let agent = FakeAgent::start_in_memory(TD).await.unwrap();
        let source = JwtSource::builder()
            .connector(agent.connector())
            .clock(clock.clone())
            .build()
            .await
            .unwrap();
        (agent, source)
    });
    for wall in [false, true] {
        let pass = |seconds: u64| match wall {
            true => drop(clock.wall.fetch_add(seconds as i64, Ordering::SeqCst)),
            false => drop(clock.monotonic.fetch_add(seconds, Ordering::SeqCst)),
        };
        pass(5);
        assert!(source.is_healthy() && source.state().connected);
        pass(1);
        let state = source.state();
        assert!(state.overdue && !state.is_healthy() && !state.connected);
        assert!(state.is_ready());
        runtime.block_on(eventually("the task", || source.is_healthy()));
    }
    drop(agent);
}

#[test]
fn e20_undriven_runtime_makes_files_unhealthy() {
    let runtime = runtime();
    let clock = Arc::new(Hands::default());
    let file = File::new("e20-undriven", r#"{"keys": []}"#);
    let files = {
        let _inside = runtime.enter();
        FileBundles::builder()
            .jwks(td(TD), &file.0)
            .poll_interval(secs(3))
            .clock(clock.clone())
            .open()
            .unwrap()
    };
    clock.monotonic.store(8, Ordering::SeqCst);
    assert!(files.state().is_healthy());
    clock.monotonic.store(9, Ordering::SeqCst);
    let state = files.state();
    assert!(state.overdue && state.following && !state.is_healthy());
    runtime.block_on(eventually("a look", || files.state().is_healthy()));
}

/// All threads for blocking work are busy.
#[test]
fn e20_full_blocking_pool_delays_no_file() {
    runtime().block_on(async {
        let file = File::new("e20-pool", r#"{"keys": []}"#);
        let files = FileBundles::builder()
            .jwks(td(TD), &file.0)
            .poll_interval(millis(20))
            .open()
            .unwrap();
        let (open, gate) = mpsc::channel::<()>();
        let taken = tokio::task::spawn_blocking(move || gate.recv());
        let issuer = tower_spiffe::testing::Issuer::new(TD).unwrap();
        std::fs::write(&file.0, issuer.jwks()).unwrap();
        let keys = || files.bundle_set().unwrap().get(TD).unwrap().len();
        eventually("the key", || keys() == 1).await;
        assert!(files.state().is_healthy());
        open.send(()).unwrap();
        taken.await.unwrap().unwrap();
    });
}
