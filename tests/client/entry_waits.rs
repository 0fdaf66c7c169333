//! How long requests wait for an entry of the token cache, and the state that it shows.

use std::time::Duration;

use http::HeaderValue;
use tower_spiffe::JwtSvid;
use tower_spiffe::testing::internals;
use tower_spiffe::token::{FetchSvidReason, TokenState};
use tracing::Level;

use crate::log::Log;
use crate::support::{Answer, Bench, Call, Token, millis, request, secs, settle, timed};

fn text(header: &HeaderValue) -> String {
    header.to_str().unwrap()["Bearer ".len()..].to_owned()
}

fn kid(header: &HeaderValue) -> String {
    let svid = JwtSvid::parse_unverified(&text(header), "").unwrap();
    svid.key_id().unwrap().to_owned()
}

fn remove_key(bench: &Bench) {
    internals::remove_authorities(&bench.cache, &|_, key| key == "key-1");
}

fn state(bench: &Bench) -> TokenState {
    bench.cache.snapshot_of(&request("a")).unwrap().state
}

/// Returns how long a request waits for a hanging fetch after the token has expired and these
/// failures.
async fn wait_after(failures: &[FetchSvidReason]) -> Duration {
    let bench = Bench::with(|call| call.fresh(60));
    let aud = request("a");
    bench.cache.header(&aud).await.unwrap();
    bench.at(secs(61)).await;
    for reason in failures.iter().copied() {
        bench.issuer.then(move |_| Answer::Fail(reason));
        let error = bench.cache.header(&aud).await.unwrap_err();
        tokio::time::sleep(error.retry_after().unwrap()).await;
    }
    bench.issuer.then(|_| Answer::Hang);
    let (result, took) = timed(bench.cache.header(&aud)).await;
    assert!(result.is_err());
    assert_eq!(bench.issuer.calls(), failures.len() as u64 + 2);
    took
}

/// Only an issuer that does not respond makes requests fail fast; errors on this side tell nothing
/// about it.
#[tokio::test(start_paused = true)]
async fn e06_only_silence_shortens_the_wait() {
    use FetchSvidReason::{Closed, Denied, InvalidRequest, Panicked, Timeout, Unacceptable};
    let (short, long) = (millis(250), secs(5));
    for (failures, wait) in [
        (&[][..], long),
        (&[Timeout], short),
        (&[FetchSvidReason::Unavailable], short),
        (&[Denied], long),
        (&[Unacceptable], long),
        (&[Panicked], long),
        (&[Timeout, Denied], long),
        (&[Timeout, Unacceptable], long),
        (&[Timeout, Panicked], short),
        (&[Timeout, Closed], short),
        (&[Timeout, InvalidRequest], short),
        (&[Denied, Timeout], short),
    ] {
        assert_eq!(wait_after(failures).await, wait, "{failures:?}");
    }
}

/// The wait for another key begins with the request, not with a fetch in progress.
#[tokio::test(start_paused = true)]
async fn e09_wait_begins_with_the_request() {
    let bench = Bench::new();
    let aud = request("a");
    bench.cache.header(&aud).await.unwrap();
    bench.issuer.then(|call| {
        let mut token = Token::new(call.request, call.now, 300);
        token.kid = if call.number == 2 { "key-2" } else { "key-3" };
        let delay = if call.number == 2 { secs(1) } else { secs(0) };
        Answer::Token(token).after(delay)
    });
    bench.at(secs(200)).await;
    bench.cache.try_header(&aud).unwrap();
    bench.at(millis(200_900)).await;
    remove_key(&bench);
    let (sent, took) = timed(bench.cache.header(&aud)).await;
    assert_eq!((kid(&sent.unwrap()).as_str(), took), ("key-3", millis(100)));
}

/// Returns the waits of two requests after a removal during a fetch, which returns the same token
/// once more. The next fetch hangs.
async fn two_waits(is_rejected: bool) -> [Duration; 2] {
    let bench = Bench::new();
    let aud = request("a");
    let old = bench.cache.header(&aud).await.unwrap();
    let again = text(&old);
    bench.issuer.then(move |call| match call.number {
        2 => Answer::Text(again.clone()).after(millis(200)),
        _ => Answer::Hang,
    });
    bench.at(secs(200)).await;
    bench.cache.try_header(&aud).unwrap();
    settle().await;
    remove_key(&bench);
    if is_rejected {
        assert!(bench.cache.report_refused(&aud, &old));
    }
    let mut waits = [Duration::ZERO; 2];
    for wait in &mut waits {
        let (sent, took) = timed(bench.cache.header(&aud)).await;
        assert_eq!(sent.unwrap(), old);
        *wait = took;
    }
    waits
}

#[tokio::test(start_paused = true)]
async fn e09_rejected_token_waits_for_each_fetch() {
    assert_eq!(two_waits(false).await, [millis(250), secs(0)]);
    // The next fetch began 50 ms before the second request.
    assert_eq!(two_waits(true).await, [millis(250), millis(200)]);
}

/// A failed fetch ends the wait for a removed key, if it began after the removal.
#[tokio::test(start_paused = true)]
async fn e09_only_a_later_failure_ends_the_wait() {
    let bench = Bench::new();
    let aud = request("a");
    let old = bench.cache.header(&aud).await.unwrap();
    remove_key(&bench);
    assert_eq!(state(&bench), TokenState::Critical);
    let fail = |_: &Call<'_>| Answer::Fail(FetchSvidReason::Unavailable).after(millis(100));
    bench.issuer.then(fail);
    assert_eq!(bench.cache.header(&aud).await.unwrap(), old);
    assert_eq!(state(&bench), TokenState::Due);

    let bench = Bench::new();
    bench.cache.header(&aud).await.unwrap();
    bench.issuer.then(fail);
    bench.at(secs(200)).await;
    bench.cache.try_header(&aud).unwrap();
    settle().await;
    remove_key(&bench);
    bench.at(millis(200_500)).await;
    assert_eq!(state(&bench), TokenState::Critical);
}

#[tokio::test(start_paused = true)]
async fn e27_only_stalls_have_an_end() {
    for (reason, ends) in [(FetchSvidReason::Stale, 1), (FetchSvidReason::Denied, 0)] {
        let log = Log::default();
        let _guard = log.begin(Level::INFO);
        let bench = Bench::new();
        let aud = request("a");
        bench.cache.header(&aud).await.unwrap();
        bench.issuer.then(move |_| Answer::Fail(reason));
        bench.at(secs(200)).await;
        bench.cache.try_header(&aud).unwrap();
        bench.at(secs(201)).await;
        bench.issuer.then(|call| call.fresh(300));
        bench.at(secs(290)).await;
        bench.cache.header(&aud).await.unwrap();
        settle().await;
        assert_eq!(bench.issuer.calls(), 3);
        assert_eq!(log.lines_with("refreshes of JWT-SVIDs have stalled"), 0);
        let ended = log.lines_with("return newer tokens again");
        assert_eq!(ended, ends, "{reason:?}: {}", log.text());
    }
}
