//! The identity of requested tokens: a layer's identity applies to audiences in requests too.

use http::Request;
use http::header::AUTHORIZATION;
use tower_spiffe::SpiffeId;
use tower_spiffe::client::{AddJwtSvidLayer, Audience, JwtSvidMiddleware};
use tower_spiffe::token::SvidRequest;

use crate::layer::{fixed, sent, to};
use crate::support::Bench;

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn ledger() -> Audience {
    Audience::fixed("l").for_origin("https://ledger").unwrap()
}

/// Returns a request to the ledger with its own audience.
fn asking(audience: Audience) -> Request<()> {
    let mut request = to("https://ledger/x");
    request.extensions_mut().insert(audience);
    request
}

/// Returns the requests that the issuer received.
fn asked(bench: &Bench) -> Vec<SvidRequest> {
    let mut all = bench.cache.snapshot();
    all.retain(|snapshot| snapshot.generation > 0);
    all.into_iter().map(|snapshot| snapshot.request).collect()
}

fn l() -> SvidRequest {
    SvidRequest::new(["l"]).unwrap()
}

#[tokio::test(start_paused = true)]
async fn layers_id_applies_to_audiences_in_requests() {
    let second = id("spiffe://x/second");
    let rules = [
        Audience::per_request(),
        fixed(),
        Audience::from_origin(|_| Some("o".to_owned()), ["https://other"]).unwrap(),
    ];
    for own in rules {
        let bench = Bench::new();
        let layer = AddJwtSvidLayer::new(bench.cache.clone(), own.spiffe_id(second.clone()));
        let headers = sent(layer, asking(ledger())).await.unwrap();
        assert!(headers.contains_key(AUTHORIZATION));
        assert_eq!(asked(&bench), [l().with_spiffe_id(second.clone())]);
    }
}

#[tokio::test(start_paused = true)]
async fn layers_hint_applies_to_audiences_in_requests() {
    let bench = Bench::new();
    let audience = Audience::per_request().hint("internal").unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience);
    let headers = sent(layer, asking(ledger())).await.unwrap();
    assert!(headers.contains_key(AUTHORIZATION));
    assert_eq!(asked(&bench), [l().with_hint("internal").unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn layers_hint_applies_to_its_audience() {
    let bench = Bench::new();
    let audience = fixed().hint("internal").unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience);
    let headers = sent(layer, to("https://reports:8443/x")).await.unwrap();
    assert!(headers.contains_key(AUTHORIZATION));
    let a = SvidRequest::new(["a"]).unwrap();
    assert_eq!(asked(&bench), [a.with_hint("internal").unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn identity_of_a_request_has_priority() {
    let (first, second) = (id("spiffe://x/first"), id("spiffe://x/second"));
    let own = || Audience::fixed("l").for_origin("https://ledger").unwrap();
    let own_id = own().spiffe_id(first.clone());
    let own_hint = own().hint("internal").unwrap();
    for (own, expected) in [
        (own_id, l().with_spiffe_id(first)),
        (own_hint, l().with_hint("internal").unwrap()),
    ] {
        let bench = Bench::new();
        let audience = Audience::per_request().spiffe_id(second.clone());
        let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience);
        let headers = sent(layer, asking(own)).await.unwrap();
        assert!(headers.contains_key(AUTHORIZATION));
        assert_eq!(asked(&bench), [expected]);
    }
}

#[tokio::test]
async fn middleware_uses_the_identity_of_its_audience() {
    let bench = Bench::new();
    let host = crate::net::Host::start(None).await;
    let second = id("spiffe://x/second");
    let audience = Audience::per_request().spiffe_id(second.clone());
    let tokens = JwtSvidMiddleware::with_audience(bench.cache.clone(), audience)
        .allow_plaintext(tower_spiffe::client::Plaintext::Loopback);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let client = reqwest_middleware::ClientBuilder::new(client)
        .with(tokens)
        .build();
    let own = Audience::fixed("l").for_origin(&host.origin()).unwrap();
    client
        .get(host.origin())
        .with_extension(own)
        .send()
        .await
        .unwrap();
    assert!(host.saw_a_token());
    assert_eq!(asked(&bench), [l().with_spiffe_id(second)]);
}
