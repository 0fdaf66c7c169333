//! A service rejects a token.

use http::StatusCode;
use tower::ServiceExt;
use tower_spiffe::client::{AddJwtSvid, Audience, JwtSvidMiddleware, Plaintext};

use crate::net::Host;
use crate::support::{Answer, Bench, Token, millis, request, secs, settle};

/// A fetch that began before the rejection does not answer it.
#[tokio::test(start_paused = true)]
async fn rule_08_fetch_from_before_the_rejection_does_not_count() {
    let mut kept = None;
    let bench = Bench::with(move |call| {
        // The agent returns its cached token once more, slowly; then a new one.
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
    assert_eq!(bench.issuer.calls(), 2);
    tokio::time::sleep(millis(500)).await;
    assert!(bench.cache.report_refused(&aud, &first));
    tokio::time::sleep(millis(600)).await;
    // The second call returned the rejected token; the next request fetches again.
    assert_ne!(bench.cache.header(&aud).await.unwrap(), first);
    assert_eq!(bench.issuer.calls(), 3);
    // If a fetch after the rejection returns the same token, it is used.
    let current = bench.cache.header(&aud).await.unwrap();
    let text = current.to_str().unwrap()["Bearer ".len()..].to_owned();
    bench.issuer.then(move |_| Answer::Text(text.clone()));
    tokio::time::sleep(secs(11)).await;
    assert!(bench.cache.report_refused(&aud, &current));
    for _ in 0..80 {
        assert_eq!(bench.cache.header(&aud).await.unwrap(), current);
        tokio::time::sleep(millis(100)).await;
    }
    assert_eq!(bench.issuer.calls(), 4);
}

/// A followed redirect leads to a host that got no token, and responds with 401.
#[tokio::test]
async fn a_401_of_another_host_does_not_count() {
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

    let elsewhere = format!("{}/to?{}/reject", a.origin(), b.origin());
    let response = service.clone().oneshot(get(&elsewhere)).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let response = middleware.get(&elsewhere).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(bench.cache.stats().rejections, 0);

    // A 401 of the token's own origin counts, also after a redirect within it.
    let within = format!("{}/to?{}/reject", a.origin(), a.origin());
    service.oneshot(get(&within)).await.unwrap();
    assert_eq!(bench.cache.stats().rejections, 1);
    let bench = Bench::new();
    let tokens = JwtSvidMiddleware::new(bench.cache.clone(), [(a.origin(), "a")])
        .unwrap()
        .allow_plaintext(Plaintext::Loopback);
    let middleware = reqwest_middleware::ClientBuilder::new(client())
        .with(tokens)
        .build();
    middleware.get(a.origin() + "/reject").send().await.unwrap();
    assert_eq!(bench.cache.stats().rejections, 1);
}
