//! An agent without its server returns old tokens: reported by the error, the metric and the log.

use tower_spiffe::clock::Clock as _;
use tower_spiffe::source::{JwtSourceError, JwtSourceErrorReason};
use tower_spiffe::token::TokenErrorReason;
use tracing::Level;

use crate::log::Log;
use crate::support::{Answer, Bench, START, Token, request, secs, settle};

#[tokio::test(start_paused = true)]
async fn e27_repeated_token_names_the_server() {
    let bench = Bench::new();
    let aud = request("a");
    // Without `iat`, only a comparison with the last token shows that it is old.
    let mut token = Token::new(&aud, START, 60);
    token.iat = None;
    bench.issuer.then(move |_| Answer::Token(token.clone()));
    bench.cache.header(&aud).await.unwrap();
    bench.at(secs(90)).await;
    let error = bench.cache.header(&aud).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::StaleToken);
    assert_eq!(error.reason().as_str(), "stale-token");
    let text = error.to_string();
    assert!(text.contains("the agent returned an old token"), "{text}");
    assert!(
        text.contains("its server is probably unreachable"),
        "{text}"
    );
    assert!(!text.contains("clock") && error.is_retryable(), "{text}");
    let source = JwtSourceError::from(error);
    assert_eq!(
        source.reason(),
        JwtSourceErrorReason::Token(TokenErrorReason::StaleToken)
    );
}

#[tokio::test(start_paused = true)]
async fn e27_token_from_a_lifetime_ago_names_the_server() {
    let bench = Bench::with(|call| Answer::Token(Token::new(call.request, call.now - 300, 300)));
    let error = bench.cache.header(&request("a")).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::StaleToken);
    assert!(
        error.to_string().contains("issued 300 s ago for 300 s"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn e27_other_expired_tokens_are_clock_skew() {
    for (iat, exp) in [
        (None, START - 10),
        (Some(START + 5), START - 10),
        (Some(START - 298), START + 1),
    ] {
        let bench = Bench::with(move |call| {
            let mut token = Token::new(call.request, START, 300);
            (token.iat, token.exp) = (iat, Some(exp));
            Answer::Token(token)
        });
        let error = bench.cache.header(&request("a")).await.unwrap_err();
        assert_eq!(error.reason(), TokenErrorReason::ClockSkew, "{iat:?}");
        assert!(error.to_string().contains("clock"), "{error}");
    }
}

const STALLED: &str = "have stalled";
const AGAIN: &str = "return newer tokens again";

#[tokio::test(start_paused = true)]
async fn e27_refreshes_without_newer_tokens_are_logged_once() {
    let log = Log::default();
    let _log = log.begin(Level::INFO);
    let bench = Bench::new();
    let same = Token::new(&request("a"), START, 300);
    bench.issuer.then(move |_| Answer::Token(same.clone()));
    for second in 0..280 {
        bench.at(secs(second)).await;
        bench.cache.header(&request("a")).await.unwrap();
    }
    assert_eq!(log.lines_with(STALLED), 1, "{}", log.text());
    assert_eq!(log.lines_with(AGAIN), 0);
    bench.issuer.then(|call| call.fresh(300));
    for second in 280..460 {
        bench.at(secs(second)).await;
        let _ = bench.cache.header(&request("a")).await;
    }
    assert_eq!(log.lines_with(STALLED), 1, "{}", log.text());
    assert_eq!(log.lines_with(AGAIN), 1, "{}", log.text());
    assert!(!log.text().contains("eyJ"));
}

#[tokio::test(start_paused = true)]
async fn e27_slow_refreshes_are_logged_once_for_all() {
    let log = Log::default();
    let _log = log.begin(Level::INFO);
    let bench = Bench::new();
    let all: Vec<_> = ["a", "b", "c"].map(request).into();
    for aud in &all {
        bench.cache.header(aud).await.unwrap();
    }
    bench.issuer.then(|call| call.fresh(300).after(secs(6)));
    bench.at(secs(200)).await;
    for aud in &all {
        bench.cache.try_header(aud).unwrap();
    }
    bench.at(secs(204)).await;
    assert_eq!(log.lines_with(STALLED), 0);
    bench.at(secs(210)).await;
    assert_eq!(log.lines_with(STALLED), 1, "{}", log.text());
    // A newer token that is late does not end the stall.
    assert_eq!(log.lines_with(AGAIN), 0, "{}", log.text());
    bench.issuer.then(|call| call.fresh(300));
    bench.at(secs(410)).await;
    for aud in &all {
        bench.cache.try_header(aud).unwrap();
    }
    settle().await;
    assert_eq!(
        (log.lines_with(STALLED), log.lines_with(AGAIN)),
        (1, 1),
        "{}",
        log.text()
    );
}

#[tokio::test(start_paused = true)]
async fn e27_evicted_audience_does_not_hide_a_stall() {
    let log = Log::default();
    let _log = log.begin(Level::INFO);
    let bench = Bench::built(|call| call.fresh(300), |builder| builder.max_entries(1));
    for (at, aud) in ["a", "b"].map(request).iter().enumerate() {
        let same = Token::new(aud, bench.clock.now().secs(), 300);
        bench.issuer.then(move |_| Answer::Token(same.clone()));
        for _ in 0..250 {
            bench.cache.header(aud).await.unwrap();
            tokio::time::sleep(secs(1)).await;
        }
        assert_eq!(bench.cache.stats().entries, 1);
        assert_eq!(log.lines_with(STALLED), at + 1, "{}", log.text());
    }
}

/// A rejected token is refreshed early. The same token again is not reported as a stall.
#[tokio::test(start_paused = true)]
async fn e27_early_refresh_of_the_newest_token_is_quiet() {
    let log = Log::default();
    let _log = log.begin(Level::INFO);
    let bench = Bench::new();
    let aud = request("a");
    let same = Token::new(&aud, START, 300);
    bench.issuer.then(move |_| Answer::Token(same.clone()));
    let sent = bench.cache.header(&aud).await.unwrap();
    assert!(bench.cache.report_refused(&aud, &sent));
    bench.cache.header(&aud).await.unwrap();
    assert_eq!(bench.cache.stats().unchanged, 1);
    assert_eq!(log.lines_with(STALLED), 0, "{}", log.text());
}
