//! Whoever is told of the cache may look into it.

use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use tower_spiffe::SvidCache;
use tower_spiffe::metrics::{MetricsRecorder, SvidCacheEvent};
use tower_spiffe::token::FetchSvidReason;

use crate::support::{Answer, Bench, millis, request, secs, settle};

/// Looks at the cache whenever it is told something.
#[derive(Default)]
struct Curious {
    cache: OnceLock<SvidCache>,
    told: Mutex<Vec<&'static str>>,
}

impl Curious {
    fn look(&self, told: &'static str) {
        self.told.lock().unwrap().push(told);
        let cache = self.cache.get().unwrap();
        assert!(cache.snapshot().len() <= 1);
        assert!(cache.snapshot_of(&request("b")).is_none());
        let _ = (cache.snapshot_of(&request("a")), cache.stats());
    }
}

impl MetricsRecorder for Curious {
    fn record_svid_cache(&self, event: SvidCacheEvent) {
        self.look(event.as_str());
    }

    fn record_svid_fetch(&self, outcome: &'static str, _: Duration) {
        self.look(outcome);
    }
}

/// The same as a subscriber of the log.
struct CuriousLog(Arc<Curious>);

impl std::io::Write for CuriousLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.look("log");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs `play` on paused time in a thread of its own, so that a deadlock is a failure.
fn on_a_thread(play: impl AsyncFnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play());
        done.send(()).unwrap();
    });
    match ended.recv_timeout(secs(60)) {
        Ok(()) => thread.join().unwrap(),
        Err(mpsc::RecvTimeoutError::Disconnected) => thread.join().unwrap(),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("a deadlock"),
    }
}

#[test]
fn a_recorder_and_a_log_may_look_at_the_cache() {
    on_a_thread(async || {
        let curious = Arc::new(Curious::default());
        let log = curious.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || CuriousLog(log.clone()))
            .finish();
        let recorder: Arc<dyn MetricsRecorder> = curious.clone();
        let bench = Bench::built(|call| call.fresh(300), |builder| builder.metrics(recorder));
        assert!(curious.cache.set(bench.cache.clone()).is_ok());
        let _guard = crate::log::listen(subscriber);
        let aud = request("a");
        bench.cache.header(&aud).await.unwrap();
        bench.cache.header(&aud).await.unwrap();
        // Due: a refresh that fails, then one that does not.
        bench.at(secs(200)).await;
        bench.desk.then(|_| Answer::Fail(FetchSvidReason::Denied));
        bench.cache.header(&aud).await.unwrap();
        settle().await;
        bench.desk.then(|call| call.fresh(300));
        tokio::time::sleep(millis(1300)).await;
        bench.cache.try_header(&aud).unwrap();
        settle().await;
        // Refused by a service; then away until it is late, and until nothing can be sent.
        let sent = bench.cache.header(&aud).await.unwrap();
        assert!(bench.cache.report_refused(&aud, &sent));
        let unavailable = FetchSvidReason::Unavailable;
        bench.desk.then(move |_| Answer::Fail(unavailable));
        for _ in 0..400 {
            let _ = bench.cache.header(&aud).await;
            tokio::time::sleep(secs(1)).await;
        }
        let told = curious.told.lock().unwrap().clone();
        for word in [
            "miss",
            "hit",
            "refresh",
            "late",
            "refused",
            "breaker-opened",
            "error",
            "ok",
            "denied",
            "log",
        ] {
            assert!(told.contains(&word), "{word}: {told:?}");
        }
    });
}

/// Whoever cannot wait for a token goes without one, and that is counted as such.
#[tokio::test(start_paused = true)]
async fn one_that_cannot_wait_is_counted_as_one_without_a_token() {
    let bench = Bench::new();
    let aud = request("a");
    assert_eq!(bench.cache.try_header(&aud), None);
    settle().await;
    assert!(bench.cache.try_header(&aud).is_some());
    let stats = bench.cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.errors), (1, 1, 1));
}
