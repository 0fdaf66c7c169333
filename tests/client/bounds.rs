//! The bounds of the cache, its warnings, and its shutdown.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tower_spiffe::SvidCache;
use tower_spiffe::client::AddJwtSvidLayer;
use tower_spiffe::clock::{Clock, UnixTime};
use tower_spiffe::token::{FetchSvidReason, TokenErrorReason};
use tracing::Level;

use crate::layer::fixed;
use crate::log::Log;
use crate::support::{Answer, Bench, millis, request, settle};

#[tokio::test(start_paused = true)]
async fn rule_11_unpinned_entries_above_the_limit_are_evicted() {
    let bench = Bench::built(
        |call| call.fresh(3000),
        |builder| builder.max_entries(10).rate(100_000),
    );
    let pins: Vec<_> = (0..100)
        .map(|n| bench.cache.pin(request(&format!("pinned-{n}"))))
        .collect();
    for pin in &pins {
        pin.header().await.unwrap();
    }
    assert_eq!(bench.cache.stats().entries, 100);
    drop(pins);
    for n in 0..100 {
        bench
            .cache
            .header(&request(&format!("aud-{n}")))
            .await
            .unwrap();
    }
    assert!(bench.cache.stats().entries <= 10);
    assert!(bench.cache.header(&request("aud-99")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn rule_11_pins_do_not_evict_others() {
    let bench = Bench::built(
        |call| call.fresh(3000),
        |builder| builder.max_entries(4).rate(100_000),
    );
    let pin = |n: usize| bench.cache.pin(request(&format!("pinned-{n}")));
    let pins: Vec<_> = (0..10).map(pin).collect();
    let again: Vec<_> = (0..10).map(pin).collect();
    for pin in &pins {
        pin.header().await.unwrap();
    }
    for n in 0..8 {
        let other = request(&format!("aud-{n}"));
        bench.cache.header(&other).await.unwrap();
    }
    // Ten pinned entries (pinned twice or not), and four others.
    assert_eq!(bench.cache.stats().entries, 14);
    drop(pins);
    bench.cache.header(&request("one-more")).await.unwrap();
    assert_eq!(bench.cache.stats().entries, 14);
    drop(again);
    for n in 0..20 {
        let other = request(&format!("later-{n}"));
        bench.cache.header(&other).await.unwrap();
    }
    assert!(bench.cache.stats().entries <= 4);
}

#[tokio::test(start_paused = true)]
async fn unused_pin_leaves_no_entry() {
    let bench = Bench::new();
    let audience = fixed().spiffe_id("spiffe://x/second".parse().unwrap());
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience);
    assert_eq!(bench.cache.snapshot().len(), 1);
    let other = bench.cache.pin(request("a"));
    let same = bench.cache.pin(request("a"));
    drop(other);
    assert_eq!(bench.cache.snapshot().len(), 2);
    drop(same);
    drop(layer);
    assert_eq!(bench.cache.snapshot().len(), 0);
    // An entry with a token is kept until it is evicted.
    let asked = bench.cache.pin(request("b"));
    asked.header().await.unwrap();
    drop(asked);
    assert_eq!(bench.cache.snapshot().len(), 1);
    // So is an entry whose fetch is running.
    bench.issuer.then(|call| call.fresh(300).after(millis(50)));
    assert!(bench.cache.pin(request("c")).try_header().is_none());
    assert_eq!(bench.cache.snapshot().len(), 2);
    assert!(bench.cache.header(&request("c")).await.is_ok());
    assert_eq!(bench.issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn rule_14_failing_audience_is_one_warning() {
    let log = Log::default();
    let _guard = log.begin(Level::TRACE);
    let bench = Bench::with(|call| match call.request.audiences().next().unwrap() {
        "bad" => Answer::Fail(FetchSvidReason::Unavailable),
        _ => call.fresh(300),
    });
    for n in 0..6 {
        bench.cache.header(&request("bad")).await.unwrap_err();
        let good = request(&format!("good-{n}"));
        bench.cache.header(&good).await.unwrap();
        tokio::time::sleep(Duration::from_secs(6)).await;
    }
    assert_eq!(
        log.levels("fetching a JWT-SVID failed"),
        ["WARN", "DEBUG", "DEBUG", "DEBUG", "DEBUG", "DEBUG"]
    );
}

/// Closes the cache while a request reads the time.
struct Closing {
    clock: Arc<dyn Clock>,
    cache: OnceLock<SvidCache>,
    now: AtomicBool,
}

impl Clock for Closing {
    fn now(&self) -> UnixTime {
        if self.now.swap(false, Ordering::SeqCst) {
            self.cache.get().unwrap().close();
        }
        self.clock.now()
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }
}

#[tokio::test(start_paused = true)]
async fn closed_cache_starts_no_fetch() {
    let bench = Bench::with(|call| call.fresh(300).after(millis(50)));
    let clock = Arc::new(Closing {
        clock: bench.clock.shared(),
        cache: OnceLock::new(),
        now: AtomicBool::new(false),
    });
    let cache = SvidCache::builder(bench.issuer.clone())
        .clock(clock.clone())
        .build();
    assert!(clock.cache.set(cache.clone()).is_ok());
    let aud = request("a");
    let pin = cache.pin(aud.clone());
    clock.now.store(true, Ordering::SeqCst);
    let error = pin.header().await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Closed);
    settle().await;
    assert_eq!(bench.issuer.calls(), 0);
    assert!(!cache.snapshot_of(&aud).unwrap().fetching);
}
