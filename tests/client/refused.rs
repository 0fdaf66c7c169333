//! What a service that refuses a token makes of it.

use http::StatusCode;
use tower::ServiceExt;
use tower_spiffe::client::{AddJwtSvid, Audience, JwtSvidMiddleware, Plaintext};

use crate::net::Host;
use crate::support::{Answer, Bench, Token, millis, request, secs, settle};

/// The fetch that was under way says nothing about a refusal that came after it began.
#[tokio::test(start_paused = true)]
async fn rule_08_a_fetch_that_began_before_the_refusal_is_no_answer_to_it() {
    let mut kept = None;
    let bench = Bench::with(move |call| {
        // The agent gives its cached token once more, slowly; then a new one.
        let again = kept.get_or_insert_with(|| Token::new(call.request, call.now, 300));
        match call.number {
            1 => Answer::Token(again.clone()),
            2 => Answer::Token(again.clone()).after(secs(1)),
            _ => call.fresh(300),
        }
    });
    let aud = request("a");
    let first = bench.cache.header(&aud).await.unwrap();
    bench.at(secs(200)).await;
    assert_eq!(bench.cache.try_header(&aud), Some(first.clone()));
    settle().await;
    assert_eq!(bench.desk.calls(), 2);
    tokio::time::sleep(millis(500)).await;
    assert!(bench.cache.report_refused(&aud, &first));
    tokio::time::sleep(millis(600)).await;
    // The second call has ended, with the refused token; the next request has the issuer asked.
    assert_ne!(bench.cache.header(&aud).await.unwrap(), first);
    assert_eq!(bench.desk.calls(), 3);
    // An issuer that is asked after the refusal, and stands by its token, is believed.
    let current = bench.cache.header(&aud).await.unwrap();
    let text = current.to_str().unwrap()["Bearer ".len()..].to_owned();
    bench.desk.then(move |_| Answer::Text(text.clone()));
    tokio::time::sleep(secs(11)).await;
    assert!(bench.cache.report_refused(&aud, &current));
    for _ in 0..80 {
        assert_eq!(bench.cache.header(&aud).await.unwrap(), current);
        tokio::time::sleep(millis(100)).await;
    }
    assert_eq!(bench.desk.calls(), 4);
}

/// A redirect that the client followed leads to somebody who got no token, and says so.
#[tokio::test]
async fn a_401_of_another_host_than_the_token_went_to_is_no_word_on_the_token() {
    let (a, b) = (Host::start(None).await, Host::start(None).await);
    let bench = Bench::new();
    let client = || reqwest::Client::builder().no_proxy().build().unwrap();
    let audience = Audience::fixed("a").for_origin(&a.origin()).unwrap();
    let service = AddJwtSvid::new(client(), bench.cache.clone(), audience)
        .allow_plaintext(Plaintext::Loopback);
    let tokens = JwtSvidMiddleware::new(bench.cache.clone(), [(a.origin(), "a")])
        .unwrap()
        .allow_plaintext(Plaintext::Loopback);
    let middleware = reqwest_middleware::ClientBuilder::new(client())
        .with(tokens)
        .build();
    let get = |url: &str| reqwest::Request::new(http::Method::GET, url.parse().unwrap());

    let led_away = format!("{}/to?{}/refuse", a.origin(), b.origin());
    let response = service.clone().oneshot(get(&led_away)).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let response = middleware.get(&led_away).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(bench.cache.stats().rejections, 0);

    // Its own word counts, by way of a redirect within the same origin too.
    let within = format!("{}/to?{}/refuse", a.origin(), a.origin());
    service.oneshot(get(&within)).await.unwrap();
    assert_eq!(bench.cache.stats().rejections, 1);
    let bench = Bench::new();
    let tokens = JwtSvidMiddleware::new(bench.cache.clone(), [(a.origin(), "a")])
        .unwrap()
        .allow_plaintext(Plaintext::Loopback);
    let middleware = reqwest_middleware::ClientBuilder::new(client())
        .with(tokens)
        .build();
    middleware.get(a.origin() + "/refuse").send().await.unwrap();
    assert_eq!(bench.cache.stats().rejections, 1);
}
