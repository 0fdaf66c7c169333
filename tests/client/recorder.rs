//! A metrics recorder and a log subscriber may call the cache.

use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use tower_spiffe::SvidCache;
use tower_spiffe::metrics::{MetricsRecorder, SvidCacheEvent};
use tower_spiffe::token::FetchSvidReason;

use crate::support::{Answer, Bench, millis, request, secs, settle};

/// Reads the cache in every callback.
#[derive(Default)]
struct Reader {
    cache: OnceLock<SvidCache>,
    events: Mutex<Vec<&'static str>>,
}

impl Reader {
    fn look(&self, events: &'static str) {
        self.events.lock().unwrap().push(events);
        let cache = self.cache.get().unwrap();
        assert!(cache.snapshot().len() <= 1);
        assert!(cache.snapshot_of(&request("b")).is_none());
        let _ = (cache.snapshot_of(&request("a")), cache.stats());
    }
}

impl MetricsRecorder for Reader {
    fn record_svid_cache(&self, event: SvidCacheEvent) {
        self.look(event.as_str());
    }

    fn record_svid_fetch(&self, outcome: &'static str, _: Duration) {
        self.look(outcome);
    }
}

/// Does the same as a subscriber of the log.
struct LogReader(Arc<Reader>);

impl std::io::Write for LogReader {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.look("log");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs `play` on paused time in a thread, so that a deadlock fails the test.
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
fn recorder_and_log_may_read_the_cache() {
    on_a_thread(async || {
        let reader = Arc::new(Reader::default());
        let log = reader.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || LogReader(log.clone()))
            .finish();
        let recorder: Arc<dyn MetricsRecorder> = reader.clone();
        let bench = Bench::built(|call| call.fresh(300), |builder| builder.metrics(recorder));
        assert!(reader.cache.set(bench.cache.clone()).is_ok());
        let _guard = crate::log::listen(subscriber);
        let aud = request("a");
        bench.cache.header(&aud).await.unwrap();
        bench.cache.header(&aud).await.unwrap();
        // A refresh that fails, then one that succeeds.
        bench.at(secs(200)).await;
        bench.issuer.then(|_| Answer::Fail(FetchSvidReason::Denied));
        bench.cache.header(&aud).await.unwrap();
        settle().await;
        bench.issuer.then(|call| call.fresh(300));
        tokio::time::sleep(millis(1300)).await;
        bench.cache.try_header(&aud).unwrap();
        settle().await;
        // A service rejects the token. Then the issuer is unavailable until the token is late, then expired.
        let sent = bench.cache.header(&aud).await.unwrap();
        assert!(bench.cache.report_refused(&aud, &sent));
        let unavailable = FetchSvidReason::Unavailable;
        bench.issuer.then(move |_| Answer::Fail(unavailable));
        for _ in 0..400 {
            let _ = bench.cache.header(&aud).await;
            tokio::time::sleep(secs(1)).await;
        }
        let events = reader.events.lock().unwrap().clone();
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
            assert!(events.contains(&word), "{word}: {events:?}");
        }
    });
}

/// A request that cannot wait is sent without a token, and counted as an error.
#[tokio::test(start_paused = true)]
async fn request_without_a_token_is_counted() {
    let bench = Bench::new();
    let aud = request("a");
    assert_eq!(bench.cache.try_header(&aud), None);
    settle().await;
    assert!(bench.cache.try_header(&aud).is_some());
    let stats = bench.cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.errors), (1, 1, 1));
}
