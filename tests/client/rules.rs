//! The fourteen rules of the cache.

use std::task::Poll;
use std::time::Duration;

use tower_spiffe::token::TokenState;
use tower_spiffe::token::{FetchSvidReason, SvidRequest, TokenErrorReason};
use tower_spiffe::{SpiffeId, SvidCache};
use tracing::Level;

use crate::log::Log;
use tower_spiffe::testing::internals;

use crate::support::{Answer, Bench, Token, millis, request, secs, settle, timed};

// === 1: an error never replaces a token ===

#[tokio::test(start_paused = true)]
async fn rule_01_an_error_never_replaces_a_token() {
    let bench = Bench::new();
    let aud = request("a");
    let first = bench.cache.header(&aud).await.unwrap();
    bench
        .issuer
        .then(|_| Answer::Fail(FetchSvidReason::Unavailable));
    // Once a second, up to the hard margin at 298 of 300 s.
    for second in 1..298 {
        bench.at(secs(second)).await;
        assert_eq!(
            bench.cache.header(&aud).await.unwrap(),
            first,
            "at {second} s"
        );
    }
    assert!(bench.issuer.calls() > 3);
    bench.at(millis(298_100)).await;
    let error = bench.cache.header(&aud).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Unavailable);
}

// === 2: visible before the waiters wake ===

/// With several threads, a waiter can run between the two steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rule_02_new_token_is_visible_before_waiters_wake() {
    let bench = Bench::built(
        |call| call.fresh(300).after(millis(1)),
        |builder| builder.rate(100_000),
    );
    for round in 0..200 {
        let aud = request(&format!("aud-{round}"));
        let waiters = (0..8).map(|_| {
            let (cache, aud) = (bench.cache.clone(), aud.clone());
            tokio::spawn(async move {
                let got = cache.header(&aud).await.unwrap();
                // There is no await in between, so a woken waiter finds the token.
                assert_eq!(cache.try_header(&aud), Some(got));
            })
        });
        for waiter in waiters.collect::<Vec<_>>() {
            waiter.await.unwrap();
        }
    }
    assert_eq!(bench.issuer.calls(), 200);
}

// === 3: one fetch, one result ===

#[tokio::test(start_paused = true)]
async fn rule_03_concurrent_misses_share_one_fetch() {
    let bench = Bench::with(|call| call.fresh(300).after(millis(20)));
    let aud = request("a");
    let all = (0..1000).map(|_| bench.cache.header(&aud));
    let all = futures_util::future::join_all(all).await;
    let first = all[0].as_ref().unwrap();
    assert!(all.iter().all(|got| got.as_ref().unwrap() == first));
    assert_eq!(bench.issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn rule_03_all_waiters_share_the_error() {
    let bench = Bench::with(|_| Answer::Fail(FetchSvidReason::Denied).after(millis(20)));
    let aud = request("a");
    let all = futures_util::future::join_all((0..100).map(|_| bench.cache.header(&aud))).await;
    for got in all {
        let error = got.unwrap_err();
        assert_eq!(error.reason(), TokenErrorReason::Denied);
        assert!(error.retry_after().is_some());
    }
    assert_eq!(bench.issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn rule_03_order_of_audiences_does_not_matter() {
    let bench = Bench::new();
    let id: SpiffeId = "spiffe://x/web".parse().unwrap();
    let ab = SvidRequest::new(["a", "b"]).unwrap();
    let ba = SvidRequest::new(["b", "a", "b"]).unwrap();
    let joined = SvidRequest::new(["a,b"]).unwrap();
    let as_web = ab.clone().with_spiffe_id(id);
    let first = bench.cache.header(&ab).await.unwrap();
    assert_eq!(bench.cache.header(&ba).await.unwrap(), first);
    assert_ne!(bench.cache.header(&joined).await.unwrap(), first);
    assert_ne!(bench.cache.header(&as_web).await.unwrap(), first);
    assert_eq!(bench.issuer.calls(), 3);
}

// === 4: a caller that cancels ===

#[tokio::test(start_paused = true)]
async fn rule_04_cancelled_caller_does_not_cancel_the_fetch() {
    let bench = Bench::with(|call| call.fresh(300).after(secs(1)));
    let aud = request("a");
    // The leader and a follower give up after 100 ms.
    for _ in 0..2 {
        let cancelled = tokio::time::timeout(millis(100), bench.cache.header(&aud)).await;
        assert!(cancelled.is_err());
    }
    let (got, took) = timed(bench.cache.header(&aud)).await;
    assert!(got.is_ok() && took <= millis(810), "{took:?}");
    assert_eq!(bench.issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn rule_04_unpolled_leader_blocks_no_other_caller() {
    let bench = Bench::with(|call| call.fresh(300).after(millis(50)));
    let aud = request("a");
    let mut leader = Box::pin(bench.cache.header(&aud));
    assert!(futures_util::poll!(leader.as_mut()).is_pending());
    // The leader is kept without being polled; the others continue.
    let (got, took) = timed(bench.cache.header(&aud)).await;
    assert!(got.is_ok() && took <= millis(60));
    assert!(matches!(futures_util::poll!(leader), Poll::Ready(Ok(_))));
    assert_eq!(bench.issuer.calls(), 1);
}

// === 5: the lease ===

#[test]
fn rule_05_lost_fetch_is_replaced_after_its_lease() {
    let paused = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
    };
    let outer = paused().unwrap();
    outer.block_on(async {
        let bench = Bench::with(|call| call.fresh(300).after(millis(50)));
        let aud = request("a");
        bench.cache.header(&aud).await.unwrap();
        bench.at(secs(200)).await;
        // The background fetch is spawned on a runtime that ends first.
        let cache = bench.cache.clone();
        let (asked, aud_there) = (cache.clone(), aud.clone());
        std::thread::spawn(move || {
            let inner = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            inner.block_on(async { assert!(asked.try_header(&aud_there).is_some()) });
        })
        .join()
        .unwrap();
        assert!(cache.snapshot_of(&aud).unwrap().fetching);
        // Requests use the current token; after the lease, another fetch begins.
        for second in 201..297 {
            bench.at(secs(second)).await;
            assert!(cache.try_header(&aud).is_some(), "at {second} s");
        }
        assert_eq!(cache.stats().lost, 1);
        assert_eq!(cache.snapshot_of(&aud).unwrap().generation, 2);
        assert!(!bench.issuer.under_way(|state| state.doubled));
    });
}

#[tokio::test(start_paused = true)]
async fn rule_05_waiter_drives_a_lost_fetch() {
    let bench = Bench::with(|call| call.fresh(300).after(millis(50)));
    let aud = request("a");
    let (cache, aud_there) = (bench.cache.clone(), aud.clone());
    std::thread::spawn(move || {
        let inner = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        inner.block_on(async { assert!(cache.try_header(&aud_there).is_none()) });
    })
    .join()
    .unwrap();
    assert!(bench.cache.header(&aud).await.is_ok());
    assert_eq!(bench.issuer.calls(), 1);
}

/// The timers of an ended runtime panic if another runtime polls them.
#[test]
fn rule_05_waiter_survives_the_fetchs_runtime() {
    let threaded = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let ours = threaded();
    for times_in_fetcher in [false, true] {
        let theirs = threaded();
        let clock = tower_spiffe::testing::PausedClock::new(
            tower_spiffe::clock::UnixTime::from_secs(crate::support::START),
        );
        let issuer = crate::support::ScriptedIssuer::new(&clock, move |call| match call.number {
            1 if times_in_fetcher => Answer::Hang.after(secs(60)),
            1 => Answer::Hang,
            _ => call.fresh(300),
        });
        let cache = SvidCache::builder(issuer.clone())
            .clock(clock.shared())
            .build();
        let aud = request("a");
        theirs.block_on(async {
            assert!(cache.try_header(&aud).is_none());
            while issuer.calls() == 0 {
                tokio::time::sleep(millis(5)).await;
            }
        });
        let (asked, wanted) = (cache.clone(), aud.clone());
        let waiter = ours.spawn(async move { asked.header(&wanted).await });
        ours.block_on(async {
            while cache.stats().misses < 2 {
                tokio::time::sleep(millis(5)).await;
            }
        });
        drop(theirs);
        let waited = ours.block_on(waiter).unwrap();
        let now_there = ours.block_on(async { cache.header(&aud).await });
        assert_eq!(waited.unwrap(), now_there.unwrap());
        assert_eq!(cache.stats().lost, 1);
        assert_eq!(issuer.calls(), 2);
    }
}

// === 6: two clocks ===

#[tokio::test(start_paused = true)]
async fn rule_06_token_expires_by_the_wall_clock() {
    let bench = Bench::new();
    let aud = request("a");
    let old = bench.cache.header(&aud).await.unwrap();
    bench.clock.step_wall(299);
    assert_eq!(bench.cache.try_header(&aud), None);
    assert_ne!(bench.cache.header(&aud).await.unwrap(), old);
}

#[tokio::test(start_paused = true)]
async fn rule_06_token_expires_by_the_monotonic_clock() {
    let bench = Bench::new();
    let aud = request("a");
    let old = bench.cache.header(&aud).await.unwrap();
    bench
        .issuer
        .then(|_| Answer::Fail(FetchSvidReason::Unavailable));
    // The wall clock steps back an hour; this does not extend the token's lifetime.
    bench.clock.step_wall(-3600);
    bench.at(secs(297)).await;
    assert_eq!(bench.cache.try_header(&aud), Some(old));
    bench.at(millis(298_001)).await;
    assert_eq!(bench.cache.try_header(&aud), None);
}

// === 7: arrives expired ===

#[tokio::test(start_paused = true)]
async fn rule_07_token_that_arrives_expired_is_a_failure() {
    let bench = Bench::with(|call| Answer::Token(Token::new(call.request, call.now - 400, 300)));
    let aud = request("a");
    let error = bench.cache.header(&aud).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::StaleToken);
    // Delayed by 250 ms, growing to at most 5 s.
    for _ in 0..600 {
        tokio::time::sleep(millis(100)).await;
        let _ = bench.cache.header(&aud).await;
    }
    assert!(
        (12..=24).contains(&bench.issuer.calls()),
        "{}",
        bench.issuer.calls()
    );
}

// === 8: rejected by a service ===

#[tokio::test(start_paused = true)]
async fn rule_08_only_the_current_rejected_token_is_refreshed() {
    let bench = Bench::new();
    let aud = request("a");
    let first = bench.cache.header(&aud).await.unwrap();
    assert!(bench.cache.report_refused(&aud, &first));
    let second = bench.cache.header(&aud).await.unwrap();
    assert_ne!(first, second, "an outer retry gets the new token");
    tokio::time::sleep(secs(60)).await;
    // A late response to a request with the first token.
    assert!(!bench.cache.report_refused(&aud, &first));
    assert_eq!(bench.cache.header(&aud).await.unwrap(), second);
    assert_eq!(bench.issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn rule_08_at_most_one_forced_fetch_per_10_s() {
    let bench = Bench::new();
    let aud = request("a");
    for _ in 0..400 {
        let sent = bench.cache.header(&aud).await.unwrap();
        // A service that rejects every token.
        bench.cache.report_refused(&aud, &sent);
        tokio::time::sleep(millis(100)).await;
    }
    // In 40 s: the first, and one per 10 s.
    assert!(
        (4..=6).contains(&bench.issuer.calls()),
        "{}",
        bench.issuer.calls()
    );
}

// === 9: a key is removed ===

#[tokio::test(start_paused = true)]
async fn rule_09_key_is_removed_during_a_fetch() {
    let bench = Bench::with(|call| {
        let mut token = Token::new(call.request, call.now, 300);
        token.kid = if call.number == 1 { "old" } else { "new" };
        Answer::Token(token).after(secs(1))
    });
    let aud = request("a");
    assert_eq!(bench.cache.try_header(&aud), None);
    settle().await;
    internals::remove_authorities(&bench.cache, &|_, key| key == "old");
    for second in 2..9 {
        bench.at(secs(second)).await;
        assert!(bench.cache.try_header(&aud).is_some());
    }
    let state = bench.cache.snapshot_of(&aud).unwrap();
    assert_eq!(state.key_id.as_deref(), Some("new"));
    assert_eq!(bench.issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn rule_09_tokens_of_removed_keys_refresh_within_5_s() {
    let bench = Bench::with(|call| {
        let mut token = Token::new(call.request, call.now, 300);
        token.kid = if call.number <= 40 { "old" } else { "new" };
        Answer::Token(token)
    });
    let all: Vec<_> = (0..40).map(|n| request(&format!("aud-{n}"))).collect();
    for aud in &all {
        bench.cache.header(aud).await.unwrap();
    }
    internals::remove_authorities(&bench.cache, &|_, key| key == "another");
    internals::remove_authorities(&bench.cache, &|trust_domain, _| {
        trust_domain == "other.example"
    });
    tokio::time::sleep(secs(6)).await;
    for aud in &all {
        bench.cache.header(aud).await.unwrap();
    }
    assert_eq!(bench.issuer.calls(), 40);

    internals::remove_authorities(&bench.cache, &|trust_domain, key| {
        trust_domain == "x" && key == "old"
    });
    let refreshed = || {
        all.iter().filter(|aud| {
            bench.cache.try_header(aud);
            bench.cache.snapshot_of(aud).unwrap().key_id.as_deref() == Some("new")
        })
    };
    tokio::time::sleep(millis(2500)).await;
    let _ = refreshed().count();
    settle().await;
    let half = refreshed().count();
    assert!(
        (8..=32).contains(&half),
        "not spread over 5 s: {half} of 40 after 2.5 s"
    );
    tokio::time::sleep(millis(2600)).await;
    let _ = refreshed().count();
    tokio::time::sleep(millis(300)).await;
    assert_eq!(refreshed().count(), 40);
}

// === 10: idle ===

#[tokio::test(start_paused = true)]
async fn rule_10_unused_tokens_are_not_refreshed() {
    let bench = Bench::new();
    bench.cache.header(&request("a")).await.unwrap();
    tokio::time::sleep(secs(3600)).await;
    assert_eq!(bench.issuer.calls(), 1);
    // No task does it either.
    assert_eq!(
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks(),
        0
    );
}

#[tokio::test(start_paused = true)]
async fn rule_10_one_task_keeps_tokens_warm() {
    let bench = Bench::new();
    let all: Vec<_> = (0..50).map(|n| request(&format!("aud-{n}"))).collect();
    let warm = bench.cache.keep_warm(all.clone()).unwrap();
    tokio::time::sleep(secs(2)).await;
    assert_eq!(
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks(),
        1
    );
    for minute in 0..60 {
        tokio::time::sleep(secs(60)).await;
        for aud in &all {
            let snapshot = bench.cache.snapshot_of(aud).unwrap();
            assert!(
                matches!(snapshot.state, TokenState::Fresh | TokenState::Due) && snapshot.pinned,
                "{minute} {snapshot:?}"
            );
            assert!(snapshot.expires_in.unwrap() > secs(90), "{snapshot:?}");
        }
    }
    // An hour is 12 lifetimes of 300 s. Each token was refreshed about 20 times, at 60 % of its lifetime.
    let per_life = bench.issuer.calls() as f64 / 50.0 / (3602.0 / 300.0);
    assert!((1.5..=1.85).contains(&per_life), "{per_life}");
    drop(warm);
    tokio::time::sleep(secs(600)).await;
    let calls = bench.issuer.calls();
    tokio::time::sleep(secs(600)).await;
    assert_eq!(bench.issuer.calls(), calls);
}

// === 11: bounded ===

#[tokio::test(start_paused = true)]
async fn rule_11_least_recently_used_entry_is_evicted() {
    let bench = Bench::built(
        |call| call.fresh(3000),
        |builder| builder.max_entries(100).rate(10_000),
    );
    let pinned = bench.cache.pin(request("pinned"));
    pinned.header().await.unwrap();
    let hot: Vec<_> = (0..10).map(|n| request(&format!("hot-{n}"))).collect();
    for n in 0..1000 {
        for aud in &hot {
            bench.cache.header(aud).await.unwrap();
        }
        bench
            .cache
            .header(&request(&format!("cold-{n}")))
            .await
            .unwrap();
        tokio::time::sleep(millis(1500)).await;
        // So is the pinned one.
        assert!(bench.cache.stats().entries <= 101);
    }
    let kept = |aud: &SvidRequest| {
        bench
            .cache
            .snapshot_of(aud)
            .is_some_and(|s| s.generation > 0)
    };
    assert!(kept(pinned.request()));
    assert_eq!(hot.iter().filter(|aud| kept(aud)).count(), 10);
    assert!(bench.cache.stats().evicted >= 900);
}

#[tokio::test(start_paused = true)]
async fn rule_11_entry_with_a_fetch_is_not_evicted() {
    let bench = Bench::built(
        |call| call.fresh(300).after(secs(1)),
        |builder| builder.max_entries(4),
    );
    let flying: Vec<_> = (0..4).map(|n| request(&format!("flying-{n}"))).collect();
    for aud in &flying {
        assert!(bench.cache.try_header(aud).is_none());
    }
    settle().await;
    let error = bench.cache.header(&request("one-more")).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Full);
    assert!(error.is_retryable());
    tokio::time::sleep(secs(2)).await;
    assert!(bench.cache.header(&request("one-more")).await.is_ok());
    assert_eq!(bench.cache.stats().entries, 4);
    assert!(!bench.issuer.under_way(|state| state.doubled));
}

// === 12: the breaker ===

#[tokio::test(start_paused = true)]
async fn rule_12_three_failures_open_the_breaker() {
    let bench = Bench::built(
        // Not concurrently: a later call could start another fetch.
        |_| Answer::Fail(FetchSvidReason::Unavailable).after(millis(200)),
        |builder| builder.max_entries(10_000),
    );
    let all: Vec<_> = (0..10_000).map(|n| request(&format!("aud-{n}"))).collect();
    for aud in &all[..3] {
        bench.cache.header(aud).await.unwrap_err();
    }
    assert_eq!(bench.issuer.calls(), 3);
    let (got, took) = timed(futures_util::future::join_all(
        all.iter().map(|aud| bench.cache.header(aud)),
    ))
    .await;
    assert!(took < millis(5), "{took:?}: calls did not fail fast");
    for error in got.into_iter().map(Result::unwrap_err) {
        assert_eq!(error.reason(), TokenErrorReason::Unavailable);
        assert!(error.retry_after().unwrap() <= secs(5));
    }
    assert_eq!(bench.issuer.calls(), 3);
    assert!(bench.cache.stats().breaker_open);
    // A minute with ten requests per second and audience: one probe at a time, every 250 ms to 5 s.
    for _ in 0..120 {
        tokio::time::sleep(millis(500)).await;
        futures_util::future::join_all(all[..500].iter().map(|aud| bench.cache.header(aud))).await;
    }
    let probes = bench.issuer.calls() - 3;
    assert!((12..=25).contains(&probes), "{probes}");
    assert_eq!(bench.issuer.under_way(|state| state.most), 1);
    // The issuer is available again; the next probe closes the breaker for all audiences.
    bench.issuer.then(|call| call.fresh(300));
    tokio::time::sleep(millis(5001)).await;
    let _ = bench.cache.header(&all[0]).await;
    tokio::time::sleep(secs(5)).await;
    for aud in &all[..100] {
        assert!(bench.cache.header(aud).await.is_ok());
    }
    assert!(!bench.cache.stats().breaker_open);
}

#[tokio::test(start_paused = true)]
async fn rule_12_sixteen_hung_calls_do_not_block_others() {
    // The issuer hangs for some audiences, and responds for the others.
    let bench = Bench::with(|call| {
        if call.request.audiences().any(|it| it.starts_with("hung")) {
            Answer::Hang
        } else {
            call.fresh(300)
        }
    });
    for n in 0..16 {
        assert!(
            bench
                .cache
                .try_header(&request(&format!("hung-{n}")))
                .is_none()
        );
    }
    settle().await;
    assert_eq!(bench.issuer.calls(), 16);
    // All places are taken for 5 s at most; then one probe gets a response.
    bench.at(millis(5300)).await;
    let (got, took) = timed(bench.cache.header(&request("good-1"))).await;
    assert!(got.is_ok() && took < millis(50), "{took:?} {got:?}");
    let (got, took) = timed(bench.cache.header(&request("good-2"))).await;
    assert!(got.is_ok() && took < millis(50), "{took:?} {got:?}");
    // The hung calls end at their deadline.
    bench.at(secs(41)).await;
    assert_eq!(bench.issuer.under_way(|state| state.now), 0);
}

#[tokio::test(start_paused = true)]
async fn rule_12_hung_issuer_gets_one_probe_at_a_time() {
    let bench = Bench::built(
        |call| call.fresh(60),
        |builder| builder.max_entries(10_000).rate(100_000),
    );
    let all: Vec<_> = (0..10_000).map(|n| request(&format!("aud-{n}"))).collect();
    futures_util::future::join_all(all.iter().map(|aud| bench.cache.header(aud))).await;
    bench.issuer.then(|_| Answer::Hang);
    bench.at(secs(100)).await;
    let ask_all = || async {
        futures_util::future::join_all(all.iter().map(|aud| bench.cache.header(aud))).await
    };
    let (_, took) = timed(ask_all()).await;
    assert!(took <= millis(5100), "{took:?}");
    assert!(bench.cache.stats().breaker_open);
    // Calls from before the breaker opened end at their deadline. Then there is one at a time.
    bench.at(secs(150)).await;
    for _ in 0..60 {
        tokio::time::sleep(secs(1)).await;
        let (got, _) = timed(ask_all()).await;
        assert!(got.iter().all(Result::is_err));
        assert!(bench.issuer.under_way(|state| state.now) <= 1);
    }
    bench.issuer.then(|call| call.fresh(300));
    let mut recovered = false;
    for _ in 0..450 {
        tokio::time::sleep(millis(100)).await;
        recovered |= bench.cache.header(&all[7]).await.is_ok();
    }
    assert!(recovered);
}

#[tokio::test(start_paused = true)]
async fn rule_12_slow_issuer_succeeds() {
    let bench = Bench::with(|call| call.fresh(300).after(secs(12)));
    let all: Vec<_> = (0..8).map(|n| request(&format!("aud-{n}"))).collect();
    let mut served = false;
    for _ in 0..120 {
        for aud in &all {
            served |= bench.cache.try_header(aud).is_some();
        }
        tokio::time::sleep(secs(1)).await;
    }
    assert!(served && all.iter().all(|aud| bench.cache.try_header(aud).is_some()));
}

// === 13: a panic ===

#[tokio::test(start_paused = true)]
async fn rule_13_panic_in_a_source_is_an_error() {
    let bench = Bench::with(|_| Answer::Panic.after(millis(10)));
    let aud = request("a");
    let all = futures_util::future::join_all((0..10).map(|_| bench.cache.header(&aud))).await;
    for got in all {
        assert_eq!(got.unwrap_err().reason(), TokenErrorReason::Panicked);
    }
    bench.issuer.then(|call| call.fresh(300));
    tokio::time::sleep(secs(1)).await;
    assert!(bench.cache.header(&aud).await.is_ok());

    // A panic in `fetch_svid`, before it returns a future.
    bench.issuer.then(|_| panic!("before the future"));
    let got = bench.cache.header(&request("b")).await;
    assert_eq!(got.unwrap_err().reason(), TokenErrorReason::Panicked);
}

// === 14: the log ===

#[tokio::test(start_paused = true)]
async fn rule_14_repeated_failures_are_one_warning() {
    let log = Log::default();
    let _guard = log.begin(Level::TRACE);
    let bench = Bench::with(|call| match call.number {
        1..=4 => Answer::Fail(FetchSvidReason::Denied),
        5..=6 => Answer::Fail(FetchSvidReason::Unacceptable),
        7 => call.fresh(300),
        _ => Answer::Fail(FetchSvidReason::Denied),
    });
    let aud = request("a");
    while bench.cache.header(&aud).await.is_err() {
        tokio::time::sleep(millis(500)).await;
    }
    let levels = |log: &Log| log.levels("fetching a JWT-SVID failed");
    assert_eq!(
        levels(&log),
        ["WARN", "DEBUG", "DEBUG", "DEBUG", "WARN", "DEBUG"]
    );
    // After a success, the next failure is a warning again.
    tokio::time::sleep(secs(250)).await;
    let _ = bench.cache.header(&aud).await;
    settle().await;
    assert_eq!(levels(&log).last().unwrap(), "WARN");
    assert_eq!(bench.cache.stats().failures, 7);

    // One warning for failures that affect all audiences.
    let before = levels(&log).len();
    bench
        .issuer
        .then(|_| Answer::Fail(FetchSvidReason::Unavailable));
    for n in 0..3 {
        bench
            .cache
            .header(&request(&format!("aud-{n}")))
            .await
            .unwrap_err();
    }
    assert_eq!(levels(&log)[before..], ["WARN", "DEBUG", "DEBUG"]);
    assert!(!log.text().contains("eyJ"), "a token is in the log");
}

/// Without a runtime, cached tokens are available; only a fetch needs a runtime.
#[test]
fn fetch_without_a_runtime_is_a_clear_error() {
    let clock =
        tower_spiffe::testing::PausedClock::new(tower_spiffe::clock::UnixTime::from_secs(0));
    let issuer = crate::support::ScriptedIssuer::new(&clock, |call| call.fresh(300));
    let cache = SvidCache::new(issuer);
    assert_eq!(cache.try_header(&request("a")), None);
    let waker = std::task::Waker::noop();
    let future = std::pin::pin!(async { cache.header(&request("a")).await });
    match future.poll(&mut std::task::Context::from_waker(waker)) {
        Poll::Ready(Err(error)) => assert_eq!(error.reason(), TokenErrorReason::NoRuntime),
        other => panic!("{other:?}"),
    }
    let _ = Duration::ZERO;
}
