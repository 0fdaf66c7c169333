//! Absolute host names end with a dot. They are separate origins.

use std::convert::Infallible;

use http::header::AUTHORIZATION;
use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::client::{AddJwtSvidLayer, Audience, Origin, OriginError, Plaintext};
use tower_spiffe::token::{TokenError, TokenErrorReason};
use tracing::Level;

use crate::layer::{sent, to};
use crate::log::Log;
use crate::redirects::reqwest_get;
use crate::support::Bench;

const ABSOLUTE: &str = "https://reports.svc.cluster.local.";
const RELATIVE: &str = "https://reports.svc.cluster.local";

#[tokio::test(start_paused = true)]
async fn e04_absolute_name_is_its_own_origin() {
    let bench = Bench::new();
    for (bound, other) in [(ABSOLUTE, RELATIVE), (RELATIVE, ABSOLUTE)] {
        let audience = Audience::fixed("a").for_origin(bound).unwrap();
        let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience).strict();
        for uri in [
            format!("{bound}/x"),
            format!("{bound}:443/x"),
            format!("{}/x", bound.replace("svc", "SVC")),
        ] {
            let headers = sent(layer.clone(), to(&uri)).await.unwrap();
            assert!(headers.contains_key(AUTHORIZATION), "{uri}");
        }
        for uri in [
            format!("{other}/x"),
            format!("{bound}./x"),
            format!("{bound}:8443/x"),
            format!("{bound}evil.test/x"),
        ] {
            let got = sent(layer.clone(), to(&uri)).await;
            assert_eq!(got, Err(TokenErrorReason::ForeignOrigin), "{uri}");
        }
    }
    // Both may be bound, to different audiences.
    assert!(Audience::map([(ABSOLUTE, "a"), (RELATIVE, "b")]).is_ok());
}

#[tokio::test(start_paused = true)]
async fn e04_absolute_names_work_in_every_binding() {
    let bench = Bench::new();
    let any = Audience::fixed("a").any_origin().unwrap();
    let assumed = Audience::fixed("a").assume_origin(ABSOLUTE).unwrap();
    let rule = Audience::from_origin(|origin| Some(origin.host().to_owned()), [ABSOLUTE]).unwrap();
    let uri = format!("{ABSOLUTE}/x");
    for (audience, uri) in [(any, uri.as_str()), (assumed, "/x"), (rule, uri.as_str())] {
        let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience).strict();
        let headers = sent(layer, to(uri)).await.unwrap();
        assert!(headers.contains_key(AUTHORIZATION), "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn e04_reqwest_signs_absolute_names() {
    let bench = Bench::new();
    let audience = Audience::fixed("a").for_origin(ABSOLUTE).unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience);
    let look = service_fn(|request: reqwest::Request| async move {
        let signed = request.headers().contains_key(AUTHORIZATION);
        let response = Response::builder().header("signed", signed.to_string());
        Ok::<_, Infallible>(reqwest::Response::from(response.body("").unwrap()))
    });
    for (url, signed) in [(ABSOLUTE, "true"), (RELATIVE, "false")] {
        let client = layer.layer(look);
        let response = client.oneshot(reqwest_get(url.to_owned())).await.unwrap();
        assert_eq!(response.headers()["signed"], signed, "{url}");
    }
}

#[test]
fn e04_only_one_dot_after_a_name() {
    for good in [ABSOLUTE, "https://reports.", "https://reports.:8443"] {
        let origin: Origin = good.parse().unwrap();
        assert_eq!(origin.to_string(), good);
    }
    for bad in [
        "https://.",
        "https://..",
        "https://reports..",
        "https://.reports.",
        "https://reports..local.",
        "https://127.0.0.1.",
        "https://127.1.",
        "https://0x7f.0.0.0x1.",
        "https://2130706433.",
        "https://[::1].",
    ] {
        let error = bad.parse::<Origin>().unwrap_err();
        use OriginError::{Host, Malformed, Port};
        assert!(matches!(error, Host | Malformed | Port), "{bad}: {error:?}");
    }
    let longest = format!("https://{}.", "a.".repeat(127) + "b");
    assert!(longest.parse::<Origin>().is_err());
    let message = OriginError::Host.to_string();
    assert!(message.contains("may end with one dot"), "{message}");
}

/// A DNS server may resolve `localhost.`.
#[tokio::test(start_paused = true)]
async fn e04_absolute_localhost_is_not_loopback() {
    let bench = Bench::new();
    let any = Audience::fixed("a").any_origin().unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), any);
    let layer = layer.allow_plaintext(Plaintext::Loopback);
    let got = sent(layer, to("http://localhost./x")).await;
    assert_eq!(got, Err(TokenErrorReason::Plaintext));
}

#[tokio::test(start_paused = true)]
async fn e04_messages_name_the_dot() {
    const NOTE: &str = "its host ends with a dot";
    let bench = Bench::new();
    let audience = Audience::fixed("a").for_origin(RELATIVE).unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience);
    let client = layer
        .clone()
        .strict()
        .layer(service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(()))
        }));
    for (uri, named) in [(ABSOLUTE, true), ("https://elsewhere", false)] {
        let log = Log::default();
        let _guard = log.begin(Level::DEBUG);
        sent(layer.clone(), to(uri)).await.unwrap();
        assert_eq!(log.lines_with(NOTE), usize::from(named), "{}", log.text());
        assert_eq!(log.lines_with(&format!("origin={uri}")), 1);
        let error = client.clone().oneshot(to(uri)).await.unwrap_err();
        let message = TokenError::find(&*error).unwrap().to_string();
        assert!(message.contains(uri), "{message}");
        assert_eq!(message.contains(NOTE), named, "{message}");
    }
}
