//! Where a request goes, where that can be read in more than one way; and whose header it has.

use http::header::{AUTHORIZATION, HeaderValue};
use http::{Method, Request};
use tower_spiffe::client::{AddJwtSvidLayer, Audience, OnExisting, Plaintext};
use tower_spiffe::token::TokenErrorReason;

use crate::layer::{fixed, sent, to};
use crate::support::Bench;

/// For requests that show no origin: they go to `https://reports:8443`.
fn promised() -> Audience {
    Audience::fixed("a")
        .assume_origin("https://reports:8443")
        .unwrap()
}

fn with_method(method: Method, uri: &str) -> Request<()> {
    let mut request = to(uri);
    *request.method_mut() = method;
    request
}

/// An authority without a scheme is dialled in the clear by some, and by TLS by others.
#[tokio::test(start_paused = true)]
async fn an_authority_without_a_scheme_is_not_what_was_promised() {
    let bench = Bench::new();
    let any = Audience::fixed("a").any_origin().unwrap();
    let any = any.assume_origin("https://reports:8443").unwrap();
    for audience in [promised(), any] {
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
    assert_eq!(bench.desk.calls(), 0);
}

/// CONNECT is read by a proxy, whatever its URI names.
#[tokio::test(start_paused = true)]
async fn a_request_for_a_tunnel_gets_no_token() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), promised());
    for uri in ["https://reports:8443/", "/x"] {
        let request = || with_method(Method::CONNECT, uri);
        let headers = sent(layer.clone(), request()).await.unwrap();
        assert!(headers.is_empty(), "{uri}");
        let strict = sent(layer.clone().strict(), request()).await;
        assert_eq!(strict, Err(TokenErrorReason::ForeignOrigin), "{uri}");
    }
    assert_eq!(bench.desk.calls(), 0);
}

fn with_their_own(uri: &str) -> Request<()> {
    let mut request = to(uri);
    let basic = HeaderValue::from_static("Basic dXNlcg==");
    request.headers_mut().insert(AUTHORIZATION, basic);
    request
}

#[tokio::test(start_paused = true)]
async fn the_header_of_a_request_to_somebody_else_is_no_concern_of_ours() {
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
async fn a_strict_layer_refuses_foreign_origins_whatever_header_a_request_has() {
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
    // Where a token may go, the header that is there is kept as ever.
    let kept = sent(
        layer.clone().strict(),
        with_their_own("https://reports:8443/x"),
    )
    .await;
    assert_eq!(kept.unwrap()[AUTHORIZATION], "Basic dXNlcg==");
    // And without `strict`, what needs no token of ours needs no leave either.
    for uri in ["http://reports/x", "/x"] {
        let kept = sent(layer.clone(), with_their_own(uri)).await;
        assert_eq!(kept.unwrap()[AUTHORIZATION], "Basic dXNlcg==", "{uri}");
    }
}
