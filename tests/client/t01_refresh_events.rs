//! Refresh events on a pinned token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use futures_util::StreamExt as _;
use tower_spiffe::clock::{Clock as _, UnixTime};
use tower_spiffe::testing::{FakeAgent, PausedClock};
use tower_spiffe::token::{FetchSvidReason, PinnedSvid, TokenErrorReason};
use tower_spiffe::{JwtSource, JwtSvid, SvidCache};

use crate::support::{Answer, Bench, START, millis, request, secs, settle, timed};

fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn is_waiting(pin: &PinnedSvid) -> bool {
    poll_once(pin.changed()).is_pending()
}

#[tokio::test(start_paused = true)]
async fn t01_rotation_is_reported_once_each() {
    let bench = Bench::new();
    let pin = bench.cache.pin(request("a"));
    assert!(is_waiting(&pin), "there is no token yet");
    let _warm = bench.cache.keep_warm([request("a")]).unwrap();
    let mut seen: Vec<JwtSvid> = Vec::new();
    for _ in 0..10 {
        let token = pin.changed().await.unwrap();
        assert!(seen.iter().all(|old| old.token() != token.token()));
        if let Some(previous) = seen.last() {
            // Due at 55 to 65 % of 300 s; the warm task checks every 50 ms. Counted from the `iat`,
            // which is a whole second.
            let now = bench.clock.now();
            let age = now.saturating_since(previous.issued_at().unwrap());
            assert!(age >= secs(165) && age <= secs(196), "{age:?}");
        }
        assert!(is_waiting(&pin), "one event per token");
        seen.push(token);
    }
    assert_eq!(bench.issuer.calls(), 10);
}

#[tokio::test(start_paused = true)]
async fn t01_get_and_try_get_count_as_seen() {
    let bench = Bench::new();
    let pin = bench.cache.pin(request("a"));
    let other = pin.clone();
    let first = pin.get().await.unwrap();
    assert!(is_waiting(&pin));
    // Each clone has its own position.
    assert_eq!(other.changed().await.unwrap().token(), first.token());
    bench.at(secs(200)).await;
    assert!(pin.try_get().is_some());
    settle().await;
    let second = other.try_get().unwrap();
    assert_ne!(second.token(), first.token());
    assert!(is_waiting(&other));
    assert_eq!(pin.changed().await.unwrap().token(), second.token());
}

#[tokio::test(start_paused = true)]
async fn t01_slow_receivers_get_the_latest() {
    let bench = Bench::new();
    let pin = bench.cache.pin(request("a"));
    let mut tokens = pin.updates();
    let _warm = bench.cache.keep_warm([request("a")]).unwrap();
    let first = tokens.next().await.unwrap();
    bench.at(secs(3600)).await;
    assert!(bench.issuer.calls() > 10);
    let now = pin.try_get().unwrap();
    assert_eq!(tokens.next().await.unwrap().token(), now.token());
    assert_ne!(first.token(), now.token());
    assert!(poll_once(tokens.next()).is_pending());
}

#[tokio::test(start_paused = true)]
async fn t01_every_waiter_is_woken() {
    let bench = Bench::new();
    let pin = bench.cache.pin(request("a"));
    let waits: Vec<_> = (0..50)
        .map(|_| {
            let pin = pin.clone();
            tokio::spawn(async move { pin.changed().await.map(|svid| svid.token().to_owned()) })
        })
        .collect();
    settle().await;
    assert!(bench.issuer.calls() == 0, "a subscriber starts no fetch");
    let token = pin.get().await.unwrap();
    for wait in waits {
        assert_eq!(wait.await.unwrap().unwrap(), token.token());
    }
}

#[tokio::test(start_paused = true)]
async fn t01_outage_is_not_an_event() {
    let bench = Bench::new();
    let pin = bench.cache.pin(request("a"));
    let _warm = bench.cache.keep_warm([request("a")]).unwrap();
    let first = pin.changed().await.unwrap();
    bench
        .issuer
        .then(|_| Answer::Fail(FetchSvidReason::Unavailable));
    bench.at(secs(290)).await;
    assert!(is_waiting(&pin));
    assert_eq!(pin.try_get().unwrap().token(), first.token());
    assert_eq!(pin.expires_at(), Some(UnixTime::from_secs(START + 300)));
    assert_eq!(pin.expires_in(), Some(secs(10)));
    // A token is not sent in its last 2 s.
    bench.at(secs(299)).await;
    assert!(pin.try_get().is_none());
    assert_eq!((pin.expires_at(), pin.expires_in()), (None, None));
    assert!(is_waiting(&pin));
    bench.at(secs(900)).await;
    assert!(is_waiting(&pin));
    bench.issuer.then(|call| call.fresh(300));
    let (second, took) = timed(pin.changed()).await;
    assert_ne!(second.unwrap().token(), first.token());
    assert!(took <= secs(6), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn t01_same_token_again_is_not_an_event() {
    let bench = Bench::new();
    let token = crate::support::Token::new(&request("a"), START, 300);
    bench.issuer.then(move |_| Answer::Token(token.clone()));
    let pin = bench.cache.pin(request("a"));
    let _warm = bench.cache.keep_warm([request("a")]).unwrap();
    pin.changed().await.unwrap();
    bench.at(secs(290)).await;
    assert!(bench.issuer.calls() > 3);
    assert!(is_waiting(&pin));
}

#[tokio::test(start_paused = true)]
async fn t01_expired_tokens_are_not_events() {
    let bench = Bench::new();
    let pin = bench.cache.pin(request("a"));
    bench.cache.get(&request("a")).await.unwrap();
    bench.at(secs(300)).await;
    assert!(is_waiting(&pin));
    assert!(poll_once(pin.updates().next()).is_pending());
}

#[tokio::test(start_paused = true)]
async fn t01_revoked_signing_key_brings_a_new_token() {
    let clock = PausedClock::new(UnixTime::from_secs(START));
    let agent = FakeAgent::builder("example.org")
        .clock(clock.shared())
        .start_in_memory()
        .await
        .unwrap();
    let source = JwtSource::builder()
        .connector(agent.connector())
        .clock(clock.shared())
        .build()
        .await
        .unwrap();
    let cache = SvidCache::from(&source);
    let pin = cache.pin(request("spiffe://example.org/db"));
    let _warm = cache
        .keep_warm([request("spiffe://example.org/db")])
        .unwrap();
    let first = pin.changed().await.unwrap();
    let revoked = agent.issuer().signing_key_id();
    assert_eq!(first.key_id(), Some(&*revoked));
    agent.rotate().await;
    agent.taint(&revoked);
    assert!(agent.issuer().revoke(&revoked));
    agent.send_again();
    let (second, took) = timed(pin.changed()).await;
    let second = second.unwrap();
    assert_ne!(second.key_id(), first.key_id());
    assert!(took <= secs(6), "{took:?}");
    source.shutdown().await;
    let closed = pin.changed().await.unwrap_err();
    assert_eq!(closed.reason(), TokenErrorReason::Closed);
}

#[tokio::test(start_paused = true)]
async fn t01_shutdown_wakes_waiters_and_ends_streams() {
    let bench = Bench::with(|_| Answer::Hang);
    let pin = bench.cache.pin(request("a"));
    let (waiting, mut tokens) = (pin.clone(), pin.updates());
    let waiting = tokio::spawn(async move { waiting.changed().await });
    let ended = tokio::spawn(async move { tokens.next().await.is_none() });
    tokio::time::sleep(millis(10)).await;
    bench.cache.close();
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Closed);
    assert!(ended.await.unwrap());
    assert!(pin.updates().next().await.is_none());
    assert!(pin.try_get().is_none() && pin.expires_at().is_none());
}

#[tokio::test(start_paused = true)]
async fn t01_closed_cache_hides_a_live_token() {
    let bench = Bench::new();
    let pin = bench.cache.pin(request("a"));
    pin.get().await.unwrap();
    bench.cache.close();
    assert!(pin.try_get().is_none() && pin.expires_in().is_none());
    assert!(pin.changed().await.is_err());
}

/// Without a runtime, another thread wakes the waits.
#[test]
fn t01_waits_work_outside_of_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let cache = {
        let _inside = runtime.enter();
        SvidCache::new(tower_spiffe_test_support::fetch::DayIssuer)
    };
    let pin = cache.pin(request("a"));
    assert!(is_waiting(&pin));
    let (waiting, mut tokens) = (pin.clone(), pin.updates());
    let wait = std::thread::spawn(move || futures_executor(waiting.changed()).unwrap());
    let next = std::thread::spawn(move || futures_executor(tokens.next()).unwrap());
    // Starts a fetch on the cache's own runtime.
    assert!(pin.try_get().is_none());
    let token = runtime.block_on(pin.get()).unwrap();
    assert_eq!(wait.join().unwrap().token(), token.token());
    assert_eq!(next.join().unwrap().token(), token.token());
    drop(runtime);
    assert_eq!(pin.try_get().unwrap().token(), token.token());
}

#[test]
fn t01_try_get_without_any_runtime_is_none() {
    let cache = SvidCache::new(tower_spiffe_test_support::fetch::DayIssuer);
    let pin = cache.pin(request("a"));
    assert!(pin.try_get().is_none());
    assert!(is_waiting(&pin));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let token = runtime.block_on(pin.get()).unwrap();
    assert_eq!(pin.try_get().unwrap().token(), token.token());
}

#[tokio::test(start_paused = true)]
async fn t01_debug_shows_no_token() {
    let bench = Bench::new();
    let pin = bench.cache.pin(request("a"));
    let token = pin.get().await.unwrap();
    let shown = format!("{pin:?} {:?}", pin.updates());
    for part in token.token().split('.') {
        assert!(!shown.contains(part), "{shown}");
    }
}

/// Runs a future on this thread.
fn futures_executor<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn t01_waiters_are_polled_for_events_only() {
    let bench = Bench::new();
    let pin = bench.cache.pin(request("a"));
    let polls = Arc::new(AtomicU64::new(0));
    let (mut tokens, counted) = (pin.updates(), polls.clone());
    let task = tokio::spawn(async move {
        std::future::poll_fn(|cx| {
            counted.fetch_add(1, Ordering::SeqCst);
            while let Poll::Ready(token) = tokens.poll_next_unpin(cx) {
                if token.is_none() {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        })
        .await;
    });
    let _warm = bench.cache.keep_warm([request("a")]).unwrap();
    for second in 0..1800 {
        bench.at(secs(second)).await;
        pin.get().await.unwrap();
    }
    // One poll at the start, and one per token.
    assert_eq!(polls.load(Ordering::SeqCst), 1 + bench.issuer.calls());
    bench.cache.close();
    task.await.unwrap();
}
