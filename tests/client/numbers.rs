//! Numbers of the token lifetime, waits and backoff.

use std::time::Duration;

use tower_spiffe::token::TokenState;
use tower_spiffe::token::{FetchSvidReason, TokenErrorReason};

use crate::support::{Answer, Bench, Token, millis, request, secs, settle, timed};

fn state(bench: &Bench) -> TokenState {
    bench.cache.snapshot_of(&request("a")).unwrap().state
}

#[tokio::test(start_paused = true)]
async fn refresh_is_due_between_55_and_65_percent() {
    let mut points = Vec::new();
    for n in 0..200 {
        let bench = Bench::new();
        bench.cache.header(&request("a")).await.unwrap();
        let due = bench
            .cache
            .snapshot_of(&request("a"))
            .unwrap()
            .refresh_in
            .unwrap();
        assert!(
            due >= secs(165) - millis(1) && due <= secs(195),
            "{n}: {due:?}"
        );
        tokio::time::sleep(secs(10)).await;
        let later = bench
            .cache
            .snapshot_of(&request("a"))
            .unwrap()
            .refresh_in
            .unwrap();
        assert_eq!(due - later, secs(10), "drawn once");
        points.push(due);
    }
    points.sort();
    assert!(points[199] - points[0] > secs(20), "spread");
}

#[tokio::test(start_paused = true)]
async fn token_passes_every_state_in_order() {
    let bench = Bench::new();
    let aud = request("a");
    bench.cache.header(&aud).await.unwrap();
    bench
        .issuer
        .then(|_| Answer::Fail(FetchSvidReason::Unavailable));
    for (at, expected) in [
        (millis(164_900), TokenState::Fresh),
        (millis(195_100), TokenState::Due),
        (millis(269_900), TokenState::Due),
        (millis(270_100), TokenState::Critical),
        (millis(297_900), TokenState::Critical),
        (millis(298_100), TokenState::Expired),
    ] {
        bench.at(at).await;
        assert_eq!(state(&bench), expected, "{at:?}");
    }
    // Without requests there is no refresh; the next request recovers.
    assert_eq!(bench.issuer.calls(), 1);
    bench.issuer.then(|call| call.fresh(300));
    assert!(bench.cache.header(&aud).await.is_ok());
    assert_eq!(state(&bench), TokenState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn short_lifetime_has_smaller_margins() {
    // 20 s: soft in the last 2 s, hard in the last 0.4 s.
    let bench = Bench::with(|call| call.fresh(20));
    bench.cache.header(&request("a")).await.unwrap();
    for (at, expected) in [
        (millis(17_900), TokenState::Due),
        (millis(18_100), TokenState::Critical),
        (millis(19_500), TokenState::Critical),
        (millis(19_700), TokenState::Expired),
    ] {
        bench.at(at).await;
        assert_eq!(state(&bench), expected, "{at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn late_token_is_due_after_a_tenth() {
    // From the agent's cache, after 250 of its 300 s.
    let bench = Bench::with(|call| Answer::Token(Token::new(call.request, call.now - 250, 300)));
    bench.cache.header(&request("a")).await.unwrap();
    let due = bench
        .cache
        .snapshot_of(&request("a"))
        .unwrap()
        .refresh_in
        .unwrap();
    assert!(due > millis(4_900) && due <= secs(5), "{due:?}");
    // But not within a second.
    let bench = Bench::with(|call| Answer::Token(Token::new(call.request, call.now - 294, 300)));
    bench.cache.header(&request("a")).await.unwrap();
    let due = bench
        .cache
        .snapshot_of(&request("a"))
        .unwrap()
        .refresh_in
        .unwrap();
    assert!(due > millis(900) && due <= secs(1), "{due:?}");
}

#[tokio::test(start_paused = true)]
async fn without_valid_iat_lifetime_starts_at_receipt() {
    for iat in [None, Some(0), Some(-5), Some(i64::MAX)] {
        let bench = Bench::with(move |call| {
            Answer::Token(Token {
                iat,
                ..Token::new(call.request, call.now, 300)
            })
        });
        bench.cache.header(&request("a")).await.unwrap();
        let due = bench
            .cache
            .snapshot_of(&request("a"))
            .unwrap()
            .refresh_in
            .unwrap();
        assert!(due >= secs(164) && due <= secs(196), "{iat:?}: {due:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn clock_skew_does_not_extend_a_lifetime() {
    // The clock of the issuer is an hour ahead.
    let bench = Bench::with(|call| Answer::Token(Token::new(call.request, call.now + 3600, 300)));
    bench.cache.header(&request("a")).await.unwrap();
    let snapshot = bench.cache.snapshot_of(&request("a")).unwrap();
    assert!(snapshot.expires_in.unwrap() <= secs(300), "{snapshot:?}");
    assert!(snapshot.refresh_in.unwrap() <= secs(195), "{snapshot:?}");
}

#[tokio::test(start_paused = true)]
async fn due_token_is_sent_and_refreshed_once() {
    let bench = Bench::with(|call| {
        call.fresh(300).after(if call.number == 1 {
            Duration::ZERO
        } else {
            secs(10)
        })
    });
    let aud = request("a");
    let first = bench.cache.header(&aud).await.unwrap();
    bench.at(secs(196)).await;
    for _ in 0..100 {
        let (got, took) = timed(bench.cache.header(&aud)).await;
        assert_eq!((got.unwrap(), took), (first.clone(), Duration::ZERO));
    }
    settle().await;
    assert_eq!(bench.issuer.calls(), 2);
    bench.at(secs(207)).await;
    assert_ne!(bench.cache.header(&aud).await.unwrap(), first);
}

#[tokio::test(start_paused = true)]
async fn critical_token_causes_one_wait_per_fetch() {
    let bench = Bench::new();
    let aud = request("a");
    let first = bench.cache.header(&aud).await.unwrap();
    bench.issuer.then(|_| Answer::Hang);
    bench.at(secs(271)).await;
    let (got, took) = timed(bench.cache.header(&aud)).await;
    assert_eq!(got.unwrap(), first);
    assert!(took >= millis(249) && took <= millis(252), "{took:?}");
    // A request that starts 100 ms into a fetch waits 150 ms; later requests do not wait.
    let mut waited = 0;
    for _ in 0..200 {
        let (got, took) = timed(bench.cache.header(&aud)).await;
        assert_eq!(got.unwrap(), first);
        waited += u32::from(took > Duration::ZERO);
        tokio::time::sleep(millis(50)).await;
    }
    assert_eq!(waited, 0);
    assert_eq!(bench.issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn critical_token_causes_no_wait_in_backoff() {
    let bench = Bench::new();
    let aud = request("a");
    let first = bench.cache.header(&aud).await.unwrap();
    bench
        .issuer
        .then(|_| Answer::Fail(FetchSvidReason::Unavailable).after(millis(100)));
    bench.at(secs(271)).await;
    let (got, took) = timed(bench.cache.header(&aud)).await;
    assert_eq!((got.unwrap(), took >= millis(99)), (first.clone(), true));
    for _ in 0..7 {
        // In backoff: 800 ms at least.
        tokio::time::sleep(millis(100)).await;
        let (got, took) = timed(bench.cache.header(&aud)).await;
        assert_eq!((got.unwrap(), took), (first.clone(), Duration::ZERO));
    }
    bench.issuer.then(|call| call.fresh(300).after(millis(100)));
    tokio::time::sleep(secs(2)).await;
    assert_ne!(bench.cache.header(&aud).await.unwrap(), first);
}

#[tokio::test(start_paused = true)]
async fn caller_without_a_token_waits_5_s() {
    let bench = Bench::with(|_| Answer::Hang);
    let (got, took) = timed(bench.cache.header(&request("a"))).await;
    assert_eq!(got.unwrap_err().reason(), TokenErrorReason::Timeout);
    assert!(took >= secs(5) && took < millis(5010), "{took:?}");
    // The fetch continues until its own deadline.
    bench.at(millis(34_900)).await;
    assert_eq!(bench.issuer.under_way(|state| state.now), 1);
    bench.at(millis(35_100)).await;
    assert_eq!(bench.issuer.under_way(|state| state.now), 0);
}

#[tokio::test(start_paused = true)]
async fn response_after_30_s_is_used() {
    // SPIRE's agent does this while its server is unavailable.
    let bench = Bench::with(|call| call.fresh(300).after(secs(30)));
    assert!(bench.cache.header(&request("a")).await.is_err());
    bench.at(secs(31)).await;
    assert!(bench.cache.try_header(&request("a")).is_some());
    assert_eq!(bench.issuer.calls(), 1);
}

/// Returns the delays between fetches, with a request every 10 ms.
async fn delays(bench: &Bench, during: Duration) -> Vec<Duration> {
    let until = tokio::time::Instant::now() + during;
    while tokio::time::Instant::now() < until {
        let _ = bench.cache.try_header(&request("a"));
        tokio::time::sleep(millis(10)).await;
    }
    bench.issuer.under_way(|state| {
        state
            .began
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .collect()
    })
}

/// Asserts that delays grow from `first` by this factor, with 20 % jitter, up to `most`. A fetch may
/// be late by two requests, which come every 10 ms.
fn assert_grow(delays: &[Duration], first: Duration, factor: f64, most: Duration) {
    let late = millis(21);
    for (at, delay) in delays.iter().enumerate() {
        let base = first.mul_f64(factor.powi(at as i32)).min(most);
        let at_least = base.mul_f64(0.8).saturating_sub(millis(1));
        let at_most = base.mul_f64(1.2).min(most) + late;
        assert!(
            (at_least..=at_most).contains(delay),
            "{at}: {delay:?}, not {at_least:?} to {at_most:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn backoff_without_token_is_250_to_5000_ms() {
    let bench = Bench::with(|_| Answer::Fail(FetchSvidReason::Unacceptable));
    let all = delays(&bench, secs(60)).await;
    assert_grow(&all, millis(250), 2.0, secs(5));
    assert!(all.len() > 12);
}

#[tokio::test(start_paused = true)]
async fn denied_and_invalid_requests_back_off() {
    let bench = Bench::with(|_| Answer::Fail(FetchSvidReason::Denied));
    let all = delays(&bench, secs(100)).await;
    assert_grow(&all, secs(1), 2.0, secs(10));
    let bench = Bench::with(|_| Answer::Fail(FetchSvidReason::InvalidRequest));
    let all = delays(&bench, secs(200)).await;
    assert_eq!(all.len(), 3);
    assert!(
        all.iter()
            .all(|delay| *delay >= secs(60) && *delay < millis(60_021))
    );
}

#[tokio::test(start_paused = true)]
async fn backoff_with_token_is_1_to_30_s() {
    let bench = Bench::with(|call| match call.number {
        1 => call.fresh(3600),
        _ => Answer::Fail(FetchSvidReason::Other),
    });
    bench.cache.header(&request("a")).await.unwrap();
    bench.at(secs(2350)).await;
    let all = delays(&bench, secs(300)).await;
    assert_grow(&all[1..], secs(1), 1.6, secs(30));
    assert!(all.len() > 10);
}

#[tokio::test(start_paused = true)]
async fn repeated_token_is_kept_and_paced() {
    let mut kept = None;
    let bench = Bench::with(move |call| {
        let token = kept.get_or_insert_with(|| Token::new(call.request, call.now, 300));
        Answer::Token(token.clone())
    });
    let first = bench.cache.header(&request("a")).await.unwrap();
    bench.at(secs(195)).await;
    let all = delays(&bench, secs(70)).await;
    assert_grow(&all[1..], secs(5), 1.6, secs(30));
    let stats = bench.cache.stats();
    assert_eq!((stats.failures, stats.errors), (0, 0));
    assert_eq!(stats.unchanged, stats.fetches - 1);
    assert_eq!(bench.cache.try_header(&request("a")), Some(first));
    // An expired token has no delay.
    bench.issuer.then(|call| call.fresh(300));
    bench.at(millis(298_100)).await;
    assert!(bench.cache.header(&request("a")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn fetches_are_limited_to_16_and_12_background() {
    let slow = |call: &crate::support::Call<'_>| call.fresh(100).after(millis(10));
    let bench = Bench::built(slow, |builder| builder.rate(100_000));
    let all: Vec<_> = (0..100).map(|n| request(&format!("aud-{n}"))).collect();
    futures_util::future::join_all(all.iter().map(|aud| bench.cache.header(aud))).await;
    assert_eq!(bench.issuer.under_way(|state| state.most), 16);
    bench.issuer.then(|call| call.fresh(100).after(secs(1)));
    bench.at(secs(70)).await;
    for aud in &all {
        assert!(bench.cache.try_header(aud).is_some());
    }
    settle().await;
    assert_eq!(bench.issuer.under_way(|state| state.now), 12);
    // Requests that wait have reserved places.
    let (got, took) = timed(bench.cache.header(&request("urgent"))).await;
    assert!(got.is_ok() && took <= millis(1010), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn waiting_request_moves_its_fetch_forward() {
    let bench = Bench::built(|call| call.fresh(100), |builder| builder.rate(100_000));
    let all: Vec<_> = (0..40).map(|n| request(&format!("aud-{n}"))).collect();
    futures_util::future::join_all(all.iter().map(|aud| bench.cache.header(aud))).await;
    bench.issuer.then(|call| call.fresh(100).after(secs(2)));
    bench.at(secs(70)).await;
    for aud in &all {
        bench.cache.try_header(aud);
    }
    settle().await;
    let last = &all[39];
    assert!(bench.cache.snapshot_of(last).unwrap().fetching);
    // A service rejects it: now a request waits for it, although 12 fetches are queued first.
    let sent = bench.cache.header(last).await.unwrap();
    bench.cache.report_refused(last, &sent);
    let _ = bench.cache.header(last).await;
    settle().await;
    assert_eq!(bench.issuer.under_way(|state| state.now), 13);
}

#[tokio::test(start_paused = true)]
async fn fetches_are_limited_to_200_a_second() {
    let bench = Bench::built(|call| call.fresh(300), |builder| builder.max_entries(2000));
    let all: Vec<_> = (0..1000).map(|n| request(&format!("aud-{n}"))).collect();
    let (got, took) = timed(futures_util::future::join_all(
        all.iter().map(|aud| bench.cache.header(aud)),
    ))
    .await;
    assert!(got.iter().all(Result::is_ok));
    assert!(took > millis(4800) && took < millis(5000), "{took:?}");
    let began = bench.issuer.under_way(|state| state.began.clone());
    for (at, moment) in began.iter().enumerate() {
        let within = began[at..]
            .iter()
            .take_while(|other| **other < *moment + secs(1))
            .count();
        assert!(within <= 217, "{within} fetches in a second");
    }
}

#[tokio::test(start_paused = true)]
async fn outage_fails_no_request_for_103_s() {
    for round in 0..20 {
        let bench = Bench::new();
        let aud = request("a");
        bench.cache.header(&aud).await.unwrap();
        // Unavailable from the worst moment on: just before the refresh.
        let due = bench.cache.snapshot_of(&aud).unwrap().refresh_in.unwrap();
        bench.at(due - millis(1)).await;
        bench
            .issuer
            .then(|_| Answer::Fail(FetchSvidReason::Unavailable));
        let away = tokio::time::Instant::now();
        while bench.cache.header(&aud).await.is_ok() {
            tokio::time::sleep(millis(100)).await;
        }
        let lasted = away.elapsed();
        assert!(lasted >= secs(103) - millis(1), "{round}: {lasted:?}");
        // Unavailable longer, until every delay is at its maximum.
        tokio::time::sleep(secs(60 + round)).await;
        let _ = bench.cache.header(&aud).await;
        bench.issuer.then(|call| call.fresh(300));
        let (back, took) = timed(async {
            while bench.cache.header(&aud).await.is_err() {
                tokio::time::sleep(millis(100)).await;
            }
        })
        .await;
        let () = back;
        assert!(took <= secs(6), "{round}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn snapshot_has_the_state_of_each_entry() {
    let bench = Bench::new();
    let aud = request("a");
    bench.cache.header(&aud).await.unwrap();
    bench.issuer.then(|_| Answer::Fail(FetchSvidReason::Denied));
    bench.at(secs(200)).await;
    bench.cache.header(&aud).await.unwrap();
    settle().await;
    let snapshot = bench.cache.snapshot_of(&aud).unwrap();
    assert_eq!(snapshot.state, TokenState::Due);
    assert_eq!(snapshot.expires_in, Some(secs(100)));
    assert_eq!(
        snapshot.last_error.unwrap().reason(),
        TokenErrorReason::Denied
    );
    assert!(snapshot.next_try_in.unwrap() <= millis(1200));
    assert_eq!(
        (snapshot.fetches, snapshot.failures, snapshot.generation),
        (2, 1, 1)
    );
    assert_eq!(snapshot.key_id.as_deref(), Some("key-1"));
    assert!(bench.cache.snapshot_of(&request("unknown")).is_none());
    let stats = bench.cache.stats();
    assert_eq!(
        (stats.hits, stats.misses, stats.fetches, stats.entries),
        (1, 1, 2, 1)
    );
}
