//! Single-use audiences: one token per request.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::token::{FetchSvidReason, SvidRequest, TokenErrorReason};
use tower_spiffe::token_file::TokenFile;
use tower_spiffe::{AddJwtSvidLayer, Audience};
use tracing::Level;

use crate::log::Log;
use crate::support::{Answer, Bench, START, Token, millis, request, secs, settle, timed};

fn single() -> SvidRequest {
    request("a").single_use()
}

/// Sends this many requests at once; returns the headers and the errors.
async fn send(bench: &Bench, count: usize) -> (Vec<String>, Vec<TokenErrorReason>) {
    let sent: Vec<_> = (0..count)
        .map(|_| {
            let cache = bench.cache.clone();
            tokio::spawn(async move { cache.header(&single()).await })
        })
        .collect();
    let (mut tokens, mut errors) = (Vec::new(), Vec::new());
    for sent in sent {
        match sent.await.unwrap() {
            Ok(header) => tokens.push(header.to_str().unwrap().to_owned()),
            Err(error) => {
                assert!(!format!("{error} {error:?}").contains("eyJ"));
                errors.push(error.reason());
            }
        }
    }
    (tokens, errors)
}

#[tokio::test(start_paused = true)]
async fn t05_each_request_has_a_token_of_its_own() {
    let bench = Bench::with(|call| call.fresh(300).after(millis(10)));
    let (tokens, errors) = send(&bench, 100).await;
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), 100);
    assert_eq!(bench.issuer.calls(), 100);
    assert!(bench.issuer.under_way(|calls| calls.most <= 16));
    // Without the mark, the audience has a shared token.
    let shared = bench.cache.header(&request("a")).await.unwrap();
    assert_eq!(bench.cache.header(&request("a")).await.unwrap(), shared);
    assert_eq!(bench.issuer.calls(), 101);
}

#[tokio::test(start_paused = true)]
async fn t05_layer_sends_distinct_tokens() {
    let bench = Bench::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn({
        let seen = seen.clone();
        move |request: Request<()>| {
            let header = request.headers()[AUTHORIZATION].clone();
            assert!(header.is_sensitive());
            seen.lock().unwrap().push(header);
            // After a rejection, there is no cached token to refresh.
            let response = Response::builder().status(StatusCode::UNAUTHORIZED);
            async move { Ok::<_, Infallible>(response.body(()).unwrap()) }
        }
    });
    let fixed = || Audience::fixed("a");
    let audiences = [
        Audience::from_request(request("a").single_use())
            .for_origin("https://x")
            .unwrap(),
        fixed().for_origin("https://x").unwrap().single_use(),
        Audience::from_origin(|_| Some("a".to_owned()), ["https://x"])
            .unwrap()
            .single_use(),
        Audience::map([("https://x", "a")]).unwrap().single_use(),
        Audience::per_request().single_use(),
    ];
    for (at, audience) in audiences.into_iter().enumerate() {
        let client = AddJwtSvidLayer::new(bench.cache.clone(), audience).layer(service.clone());
        for n in 0..20 {
            let mut request = Request::get("https://x/").body(()).unwrap();
            // The layer's mark applies to an audience in a request too.
            if at == 4 || n % 2 == 0 {
                let own = fixed().for_origin("https://x").unwrap();
                request.extensions_mut().insert(own);
            }
            client.clone().oneshot(request).await.unwrap();
        }
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 100);
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), 100);
    assert_eq!(bench.cache.stats().rejections, 0);
}

#[tokio::test(start_paused = true)]
async fn t05_same_token_twice_is_a_clear_error() {
    let (bench, log) = (Bench::new(), Log::default());
    let _listening = log.begin(Level::WARN);
    let token = Token::new(&single(), START, 300);
    let again = token.clone();
    bench.issuer.then(move |_| Answer::Token(again.clone()));
    let (tokens, errors) = send(&bench, 10).await;
    assert_eq!((tokens.len(), errors.len()), (1, 9));
    assert!(
        errors
            .iter()
            .all(|error| *error == TokenErrorReason::Unacceptable)
    );
    bench.at(secs(20)).await;
    let error = bench.cache.header(&single()).await.unwrap_err();
    assert!(error.to_string().contains("same token twice"), "{error}");
    assert!(
        error.to_string().contains("jwt_svid_include_jti"),
        "{error}"
    );
    assert_eq!(log.lines_with("fetching a JWT-SVID failed"), 1);
    // An earlier token is noticed too.
    let mut number = 0;
    bench.issuer.then(move |call| {
        number += 1;
        match number {
            1 | 2 => call.fresh(300),
            _ => Answer::Token(token.clone()),
        }
    });
    bench.at(secs(40)).await;
    assert!(bench.cache.get(&single()).await.is_ok());
    assert!(bench.cache.get(&single()).await.is_ok());
    let error = bench.cache.get(&single()).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Unacceptable);
}

#[tokio::test(start_paused = true)]
async fn t05_failures_are_paced_as_for_any_audience() {
    let bench = Bench::with(|_| Answer::Fail(FetchSvidReason::Denied));
    let mut errors = 0;
    for _ in 0..600 {
        let error = bench.cache.header(&single()).await.unwrap_err();
        assert_eq!(error.reason(), TokenErrorReason::Denied);
        assert!(error.retry_after().is_some());
        errors += 1;
        tokio::time::sleep(millis(100)).await;
    }
    // Delays of 1, 2, 4, 8, 10, 10, … s.
    assert!(
        (8..=12).contains(&bench.issuer.calls()),
        "{}",
        bench.issuer.calls()
    );
    assert_eq!(bench.cache.stats().errors, errors);
    bench.issuer.then(|call| call.fresh(300));
    tokio::time::sleep(secs(11)).await;
    let (tokens, errors) = send(&bench, 20).await;
    assert_eq!((tokens.len(), errors.len()), (20, 0));
    let state = bench.cache.snapshot_of(&single()).unwrap();
    assert!(
        state.last_error.is_none() && state.fetches > 20,
        "{state:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn t05_first_failure_is_a_warning() {
    for reason in [FetchSvidReason::Unavailable, FetchSvidReason::Denied] {
        let log = Log::default();
        let _listening = log.begin(Level::WARN);
        let bench = Bench::with(move |_| Answer::Fail(reason));
        for second in 0..30 {
            bench.at(secs(second)).await;
            bench.cache.header(&single()).await.unwrap_err();
        }
        let warnings = log.lines_with("fetching a JWT-SVID failed");
        assert_eq!(warnings, 1, "{reason:?}: {}", log.text());
    }
}

#[tokio::test(start_paused = true)]
async fn t05_each_stall_is_logged_once_until_recovery() {
    let log = Log::default();
    let _listening = log.begin(Level::INFO);
    let bench = Bench::built(|call| call.fresh(300), |cache| cache.max_wait(secs(10)));
    for stalls in 1..=3 {
        bench.issuer.then(|call| call.fresh(300).after(secs(20)));
        bench.cache.header(&single()).await.unwrap_err();
        bench.issuer.then(|call| call.fresh(300));
        tokio::time::sleep(secs(10)).await;
        bench.cache.header(&single()).await.unwrap();
        let lines = ["have stalled", "return newer tokens again"].map(|it| log.lines_with(it));
        assert_eq!(lines, [stalls, stalls], "{}", log.text());
    }
}

#[tokio::test(start_paused = true)]
async fn t05_waits_end_at_their_deadline() {
    let bench = Bench::with(|_| Answer::Hang);
    let (outcome, took) = timed(bench.cache.header(&single())).await;
    assert_eq!(outcome.unwrap_err().reason(), TokenErrorReason::Timeout);
    assert_eq!(took, secs(5));
    // No request waits for it, and no other request may use it.
    settle().await;
    assert_eq!(bench.issuer.under_way(|calls| calls.now), 0);
    let bench = Bench::with(|call| call.fresh(300).after(secs(2)));
    let (outcome, took) = timed(bench.cache.header(&single())).await;
    assert!(outcome.is_ok());
    assert_eq!(took, secs(2));
}

#[tokio::test(start_paused = true)]
async fn t05_silent_issuer_opens_the_breaker() {
    let bench = Bench::with(|_| Answer::Fail(FetchSvidReason::Unavailable));
    for _ in 0..100 {
        send(&bench, 5).await;
        tokio::time::sleep(millis(300)).await;
    }
    assert!(bench.cache.stats().breaker_open);
    // The first five at once, then at most one per 5 s.
    assert!(bench.issuer.calls() <= 20, "{}", bench.issuer.calls());
    bench.issuer.then(|call| call.fresh(300));
    tokio::time::sleep(secs(6)).await;
    assert!(bench.cache.header(&single()).await.is_ok());
    let (tokens, _) = send(&bench, 10).await;
    assert_eq!(tokens.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn t05_cancelled_requests_end_their_fetch() {
    let bench = Bench::with(|_| Answer::Hang);
    {
        let cache = bench.cache.clone();
        let wait = tokio::spawn(async move { cache.header(&single()).await });
        settle().await;
        assert_eq!(bench.issuer.under_way(|calls| calls.now), 1);
        wait.abort();
        settle().await;
    }
    assert_eq!(bench.issuer.under_way(|calls| calls.now), 0);
}

#[tokio::test(start_paused = true)]
async fn t05_no_token_is_prefetched() {
    let bench = Bench::new();
    let pin = bench.cache.pin(single());
    let _warm = bench.cache.keep_warm([single()]).unwrap();
    bench.at(secs(1000)).await;
    assert!(pin.try_get().is_none() && pin.try_header().is_none());
    assert!(bench.cache.try_header(&single()).is_none());
    let file = TokenFile::builder(&bench.cache, single(), "token");
    assert!(file.start().is_err());
    settle().await;
    assert_eq!(bench.issuer.calls(), 0);
    let (one, other) = (pin.get().await.unwrap(), pin.get().await.unwrap());
    assert_ne!(one.token(), other.token());
}

#[tokio::test(start_paused = true)]
async fn t05_shutdown_fails_waiting_requests() {
    let bench = Bench::with(|_| Answer::Hang);
    let cache = bench.cache.clone();
    let wait = tokio::spawn(async move { cache.header(&single()).await });
    settle().await;
    bench.cache.close();
    let error = bench.cache.header(&single()).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Closed);
    let (waited, took) = timed(wait).await;
    assert_eq!(
        waited.unwrap().unwrap_err().reason(),
        TokenErrorReason::Closed
    );
    assert!(took <= secs(5), "{took:?}");
}
