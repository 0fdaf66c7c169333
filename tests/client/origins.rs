//! Where a request goes, where that can be read in more than one way.

use http::{Method, Request};
use tower_spiffe::TokenErrorReason;
use tower_spiffe::client::{AddJwtSvidLayer, Audience, Plaintext};

use crate::layer::{sent, to};
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
