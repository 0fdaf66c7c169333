//! Ambiguous destinations of requests, and existing headers.

use http::header::{AUTHORIZATION, HeaderValue};
use http::{Method, Request};
use tower_spiffe::client::{AddJwtSvidLayer, Audience, OnExisting, Plaintext};
use tower_spiffe::token::TokenErrorReason;

use crate::layer::{fixed, sent, to};
use crate::support::Bench;

/// For requests without an origin, which go to `https://reports:8443`.
fn assumed() -> Audience {
    Audience::fixed("a")
        .assume_origin("https://reports:8443")
        .unwrap()
}

fn with_method(method: Method, uri: &str) -> Request<()> {
    let mut request = to(uri);
    *request.method_mut() = method;
    request
}

/// Clients disagree on an authority without a scheme: some use plaintext, others TLS.
#[tokio::test(start_paused = true)]
async fn authority_without_a_scheme_gets_no_token() {
    let bench = Bench::new();
    let any = Audience::fixed("a").any_origin().unwrap();
    let any = any.assume_origin("https://reports:8443").unwrap();
    for audience in [assumed(), any] {
        let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience);
        let layer = layer.allow_plaintext(Plaintext::Any);
        for uri in ["evil.test:3128", "evil.test:443", "reports:8443", "reports"] {
            for method in [Method::CONNECT, Method::GET] {
                let request = || with_method(method.clone(), uri);
                let headers = sent(layer.clone(), request()).await.unwrap();
                assert!(headers.is_empty(), "{method} {uri}");
                let strict = sent(layer.clone().strict(), request()).await;
                assert_eq!(strict, Err(TokenErrorReason::ForeignOrigin), "{uri}");
            }
        }
    }
    assert_eq!(bench.issuer.calls(), 0);
}

/// A proxy reads CONNECT, for any URI.
#[tokio::test(start_paused = true)]
async fn connect_requests_get_no_token() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), assumed());
    for uri in ["https://reports:8443/", "/x"] {
        let request = || with_method(Method::CONNECT, uri);
        let headers = sent(layer.clone(), request()).await.unwrap();
        assert!(headers.is_empty(), "{uri}");
        let strict = sent(layer.clone().strict(), request()).await;
        assert_eq!(strict, Err(TokenErrorReason::ForeignOrigin), "{uri}");
    }
    assert_eq!(bench.issuer.calls(), 0);
}

fn with_their_own(uri: &str) -> Request<()> {
    let mut request = to(uri);
    let basic = HeaderValue::from_static("Basic dXNlcg==");
    request.headers_mut().insert(AUTHORIZATION, basic);
    request
}

#[tokio::test(start_paused = true)]
async fn headers_for_other_origins_are_unchanged() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), fixed());
    for on_existing in [OnExisting::Keep, OnExisting::Replace, OnExisting::Error] {
        let layer = layer.clone().on_existing(on_existing);
        let headers = sent(layer, with_their_own("https://elsewhere/x")).await;
        assert_eq!(headers.unwrap()[AUTHORIZATION], "Basic dXNlcg==");
    }
    assert_eq!(bench.cache.stats().unmatched, 3);
    let own = layer.on_existing(OnExisting::Error);
    assert_eq!(
        sent(own, with_their_own("https://reports:8443/x")).await,
        Err(TokenErrorReason::HeaderPresent)
    );
}

#[tokio::test(start_paused = true)]
async fn strict_layer_rejects_foreign_origins_with_any_header() {
    let bench = Bench::new();
    let both = Audience::fixed("a")
        .for_origins(["https://reports:8443", "http://reports"])
        .unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), both);
    for on_existing in [OnExisting::Keep, OnExisting::Replace, OnExisting::Error] {
        let strict = layer.clone().on_existing(on_existing).strict();
        for (uri, reason) in [
            ("https://elsewhere/x", TokenErrorReason::ForeignOrigin),
            (
                "https://user@reports:8443/x",
                TokenErrorReason::ForeignOrigin,
            ),
            ("http://reports/x", TokenErrorReason::Plaintext),
            ("/x", TokenErrorReason::NoOrigin),
        ] {
            let got = sent(strict.clone(), with_their_own(uri)).await;
            assert_eq!(got, Err(reason), "{on_existing:?} {uri}");
        }
    }
    // If a token may be sent, the existing header is kept.
    let kept = sent(
        layer.clone().strict(),
        with_their_own("https://reports:8443/x"),
    )
    .await;
    assert_eq!(kept.unwrap()[AUTHORIZATION], "Basic dXNlcg==");
    // Without `strict`, requests that need no token are always allowed.
    for uri in ["http://reports/x", "/x"] {
        let kept = sent(layer.clone(), with_their_own(uri)).await;
        assert_eq!(kept.unwrap()[AUTHORIZATION], "Basic dXNlcg==", "{uri}");
    }
}
