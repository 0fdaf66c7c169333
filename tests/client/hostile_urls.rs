//! Similar URLs as `reqwest` parses them: the actual destination is compared.

use std::convert::Infallible;

use http::header::AUTHORIZATION;
use tower::{ServiceExt, service_fn};
use tower_spiffe::client::{AddJwtSvidLayer, Audience, Plaintext};

use crate::redirects::reqwest_get;
use crate::support::Bench;

/// Returns whether a request to this URL gets a token; `None` if it is not sent.
async fn signed(layer: AddJwtSvidLayer, url: &str) -> Option<bool> {
    let look = service_fn(|request: reqwest::Request| async move {
        let signed = request.headers().contains_key(AUTHORIZATION);
        let response = http::Response::builder().header("signed", signed.to_string());
        Ok::<_, Infallible>(reqwest::Response::from(response.body("").unwrap()))
    });
    let response = tower::Layer::layer(&layer, look).oneshot(reqwest_get(url.to_owned()));
    let response = response.await.ok()?;
    Some(response.headers()["signed"] == "true")
}

fn layer(bench: &Bench, origin: &str) -> AddJwtSvidLayer {
    let audience = Audience::fixed("a").for_origin(origin).unwrap();
    AddJwtSvidLayer::new(bench.cache.clone(), audience)
}

#[tokio::test(start_paused = true)]
async fn equivalent_urls_get_the_token() {
    let bench = Bench::new();
    for (origin, same) in [
        (
            "https://reports.example.org",
            &[
                "https://REPORTS.Example.org/x",
                "HTTPS://reports.example.org:443/x",
                "https://rep%6Frts.example.org/x",
                "https://reports\u{3002}example.org/x",
                "https:\\\\reports.example.org\\x",
                "https://reports.example.org\\@evil.test/",
            ][..],
        ),
        (
            "https://127.0.0.1:8443",
            &["https://127.1:8443/", "https://0x7f000001:8443/"],
        ),
        ("https://[::1]:8443", &["https://[0:0:0:0:0:0:0:1]:8443/"]),
        (
            "https://xn--bcher-kva.example",
            &["https://b\u{fc}cher.example/"],
        ),
    ] {
        for url in same {
            assert_eq!(
                signed(layer(&bench, origin), url).await,
                Some(true),
                "{url}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn similar_urls_get_no_token() {
    let bench = Bench::new();
    for (origin, others) in [
        (
            "https://reports.example.org",
            &[
                "http://reports.example.org/",
                "https://reports.example.org:8443/",
                "https://reports.example.org:0/",
                "https://reports.example.org./",
                "https://user@reports.example.org/",
                "https://:secret@reports.example.org/",
                "https://reports.example.org@evil.test/",
                "https://reports.example.org:443@evil.test/",
                "https://reports.example.org.evil.test/",
                "https://evil.test/reports.example.org",
                "https://evil.test\\@reports.example.org/",
                "https://evil.test#@reports.example.org/",
                "https://r\u{435}ports.example.org/",
                "https://reports.example.org%2eevil.test/",
                "https://reports-example.org/",
            ][..],
        ),
        (
            "https://127.0.0.1:8443",
            &[
                "https://127.0.0.1/",
                "https://localhost:8443/",
                "https://127.0.0.1.evil.test:8443/",
                "https://[::ffff:127.0.0.1]:8443/",
            ],
        ),
        (
            "https://[::1]:8443",
            &["https://[::]:8443/", "https://[::1]/"],
        ),
        ("https://b.example", &["https://b\u{fc}.example/"]),
    ] {
        for url in others {
            assert_eq!(
                signed(layer(&bench, origin), url).await,
                Some(false),
                "{url}"
            );
            let strict = layer(&bench, origin).strict();
            assert_eq!(signed(strict, url).await, None, "{url}");
        }
    }
    assert_eq!(bench.issuer.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn only_this_machine_is_loopback() {
    let bench = Bench::new();
    let any = Audience::fixed("a").any_origin().unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), any);
    let layer = layer.allow_plaintext(Plaintext::Loopback);
    for (url, expected) in [
        ("http://127.1/", Some(true)),
        ("http://2130706433/", Some(true)),
        ("http://[::1]/", Some(true)),
        ("http://LOCALHOST/", Some(true)),
        ("http://[::ffff:127.0.0.1]/", None),
        ("http://0/", None),
        ("http://127.0.0.1.evil.test/", None),
        ("http://localhost.evil.test/", None),
        // A separate origin that is not loopback.
        ("http://localhost./", None),
        // An ambiguous URL matches no origin, so it is sent without a token.
        ("http://127.0.0.1@evil.test/", Some(false)),
    ] {
        assert_eq!(signed(layer.clone(), url).await, expected, "{url}");
    }
}
