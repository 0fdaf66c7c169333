//! Proxies route by the `Host` header, so it must match the origin that the token is for.

use std::convert::Infallible;

use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::{Request, Response, Version};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tonic::service::Interceptor;
use tonic::transport::Endpoint;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_spiffe::client::{
    AddJwtSvid, AddJwtSvidLayer, Audience, JwtSvidInterceptor, JwtSvidMiddleware, OnExisting,
    Plaintext,
};
use tower_spiffe::token::{TokenError, TokenErrorReason};
use tracing::Level;

use crate::layer::{fixed, sent, to};
use crate::log::Log;
use crate::net::{Ca, Host};
use crate::redirects::{reqwest_get, trusting};
use crate::support::Bench;

/// A request to this URI with these `Host` headers.
fn with_hosts(uri: &str, hosts: &[&[u8]]) -> Request<()> {
    let mut request = to(uri);
    for host in hosts {
        let host = HeaderValue::from_bytes(host).unwrap();
        request.headers_mut().append(HOST, host);
    }
    request
}

/// Asserts whether this request gets a token. If not, a strict layer must return an error.
async fn assert_signed(layer: &AddJwtSvidLayer, uri: &str, hosts: &[&[u8]], signed: bool) {
    let shown: Vec<_> = hosts.iter().map(|host| host.escape_ascii()).collect();
    let headers = sent(layer.clone(), with_hosts(uri, hosts)).await.unwrap();
    let has = headers.contains_key(AUTHORIZATION);
    assert_eq!(has, signed, "{uri} with Host {shown:?}");
    assert_eq!(headers.get_all(HOST).iter().count(), hosts.len());
    let strict = sent(layer.clone().strict(), with_hosts(uri, hosts)).await;
    let expected = Err(TokenErrorReason::ForeignOrigin);
    assert_eq!(
        strict.map(drop),
        if signed { Ok(()) } else { expected },
        "{uri} with Host {shown:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn e01_host_header_must_match_the_uri() {
    let bench = Bench::new();
    let bound = |origin: &str| {
        let audience = Audience::fixed("a").for_origin(origin).unwrap();
        AddJwtSvidLayer::new(bench.cache.clone(), audience)
    };
    let cases: [(&str, &[&str], &[&str]); 6] = [
        (
            "https://reports.example.org",
            &[
                "reports.example.org",
                "REPORTS.Example.org",
                "reports.example.org:443",
                "reports.example.org:0443",
            ],
            &[
                "",
                " ",
                "evil.test",
                "reports.example.org.",
                "reports.example.org:",
                "reports.example.org:80",
                "reports.example.org:8443",
                "reports.example.org:65979",
                "reports.example.org:+443",
                "reports.example.org:443:443",
                "reports.example.org ",
                "reports.example.org, evil.test",
                "reports.example.org/",
                "reports.example.org.evil.test",
                "xreports.example.org",
                "reports.example.or",
                "user@reports.example.org",
                "reports.example.org@evil.test",
                "reports%2eexample.org",
                "https://reports.example.org",
                "*.example.org",
                "*",
            ],
        ),
        (
            "https://reports:8443",
            &["reports:8443", "Reports:8443"],
            &["reports", "reports:443", "reports:8443.", "evil.test:8443"],
        ),
        (
            "https://reports.example.org.",
            &["reports.example.org.", "reports.example.org.:443"],
            &["reports.example.org", "reports.example.org.."],
        ),
        (
            "https://[2001:db8::A]:8443",
            &["[2001:db8::a]:8443", "[2001:DB8::A]:8443"],
            &[
                "[2001:db8::a]",
                "2001:db8::a:8443",
                "[2001:db8:0::a]:8443",
                "[2001:db8::a%eth0]:8443",
                "[::1]:8443",
            ],
        ),
        (
            "https://127.0.0.1",
            &["127.0.0.1", "127.0.0.1:443"],
            &["127.1", "2130706433", "127.0.0.1.", "localhost", "0x7f.1"],
        ),
        (
            "https://xn--bcher-kva.example",
            &["XN--bcher-kva.example"],
            &["b\u{fc}cher.example"],
        ),
    ];
    for (origin, same, others) in cases {
        let layer = bound(origin);
        let uri = format!("{origin}/x");
        assert_signed(&layer, &uri, &[], true).await;
        for host in same {
            assert_signed(&layer, &uri, &[host.as_bytes()], true).await;
        }
        for host in others {
            assert_signed(&layer, &uri, &[host.as_bytes()], false).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn e01_plaintext_default_port_is_80() {
    let bench = Bench::new();
    let audience = Audience::fixed("a").for_origin("http://localhost").unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience);
    let layer = layer.allow_plaintext(Plaintext::Loopback);
    for (host, signed) in [
        ("localhost", true),
        ("localhost:80", true),
        ("localhost:443", false),
        ("127.0.0.1", false),
    ] {
        assert_signed(&layer, "http://localhost/x", &[host.as_bytes()], signed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn e01_every_host_value_must_match() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), fixed());
    let own = b"reports:8443";
    let uri = "https://reports:8443/x";
    assert_signed(&layer, uri, &[own, own], true).await;
    assert_signed(&layer, uri, &[own, b"Reports:8443"], true).await;
    for other in [&b"evil.test"[..], b"", b"reports:8443\xff", b"\xfc"] {
        assert_signed(&layer, uri, &[other], false).await;
        assert_signed(&layer, uri, &[own, other], false).await;
        assert_signed(&layer, uri, &[other, own], false).await;
    }
}

/// With many headers, another lookup is used.
#[tokio::test(start_paused = true)]
async fn e01_host_is_found_among_many_headers() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), fixed());
    for (host, signed) in [("reports:8443", true), ("evil.test", false)] {
        let mut request = to("https://reports:8443/x");
        for n in 0..20 {
            let name = http::HeaderName::try_from(format!("x-{n}")).unwrap();
            request
                .headers_mut()
                .insert(name, HeaderValue::from_static("1"));
        }
        let value = HeaderValue::from_static(host);
        request.headers_mut().insert(HOST, value);
        let headers = sent(layer.clone(), request).await.unwrap();
        assert_eq!(headers.contains_key(AUTHORIZATION), signed, "{host}");
    }
}

/// The check applies to every kind of audience.
#[tokio::test(start_paused = true)]
async fn e01_host_must_match_for_every_audience() {
    let bench = Bench::new();
    let any = Audience::fixed("a").any_origin().unwrap();
    let rule =
        Audience::from_origin(|o| Some(o.host().to_owned()), ["https://reports:8443"]).unwrap();
    let many = (0..20).map(|n| (format!("https://reports:{}", 8443 + n), "a"));
    let many = Audience::map(many).unwrap();
    for audience in [fixed(), any, rule, many] {
        let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience.clone());
        let per_request =
            AddJwtSvidLayer::new(bench.cache.clone(), Audience::per_request()).strict();
        for (host, signed) in [("Reports:8443", true), ("evil.test:8443", false)] {
            let uri = "https://reports:8443/x";
            assert_signed(&layer, uri, &[host.as_bytes()], signed).await;
            let mut request = with_hosts(uri, &[host.as_bytes()]);
            request.extensions_mut().insert(audience.clone());
            let got = sent(per_request.clone(), request).await;
            assert_eq!(got.is_ok(), signed, "{host}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn e01_host_must_match_the_assumed_origin() {
    let bench = Bench::new();
    let assumed = Audience::fixed("a")
        .assume_origin("https://reports:8443")
        .unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), assumed);
    assert_signed(&layer, "/x", &[], true).await;
    assert_signed(&layer, "/x", &[b"Reports:8443"], true).await;
    for host in ["evil.test", "reports", "reports:443", "reports.:8443"] {
        assert_signed(&layer, "/x", &[host.as_bytes()], false).await;
    }
    // A `Host` header alone is not an origin.
    let bound = AddJwtSvidLayer::new(bench.cache.clone(), fixed());
    let got = sent(bound, with_hosts("/x", &[b"reports:8443"])).await;
    assert_eq!(got, Err(TokenErrorReason::NoOrigin));
    // An audience in the request has its own origin.
    let mut request = with_hosts("/x", &[b"ledger"]);
    let own = Audience::fixed("b")
        .assume_origin("https://ledger")
        .unwrap();
    request.extensions_mut().insert(own);
    let headers = sent(layer.strict(), request).await.unwrap();
    assert!(headers.contains_key(AUTHORIZATION));
}

#[tokio::test(start_paused = true)]
async fn e01_forwarded_headers_are_not_read() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), fixed()).strict();
    let mut request = to("https://reports:8443/x");
    for (name, value) in [
        ("x-forwarded-host", "evil.test"),
        ("forwarded", "host=evil.test"),
    ] {
        request
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    let headers = sent(layer, request).await.unwrap();
    assert!(headers.contains_key(AUTHORIZATION));
}

#[tokio::test(start_paused = true)]
async fn e01_existing_credential_stays_on_host_mismatch() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), fixed());
    for on_existing in [OnExisting::Keep, OnExisting::Replace, OnExisting::Error] {
        let layer = layer.clone().on_existing(on_existing);
        let request = || {
            let mut request = with_hosts("https://reports:8443/x", &[b"evil.test"]);
            let basic = HeaderValue::from_static("Basic dXNlcg==");
            request.headers_mut().insert(AUTHORIZATION, basic);
            request
        };
        let headers = sent(layer.clone(), request()).await.unwrap();
        assert_eq!(headers[AUTHORIZATION], "Basic dXNlcg==");
        let strict = sent(layer.strict(), request()).await;
        assert_eq!(strict, Err(TokenErrorReason::ForeignOrigin));
    }
    assert_eq!(bench.cache.stats().unmatched, 6);
    assert_eq!(bench.issuer.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn e01_messages_name_origin_and_host() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), fixed());
    let long = format!("evil\u{fc}\".{}", "x".repeat(500));
    for strict in [false, true] {
        let log = Log::default();
        let _guard = log.begin(Level::DEBUG);
        let layer = match strict {
            true => layer.clone().strict(),
            false => layer.clone(),
        };
        let client = tower::Layer::layer(
            &layer,
            service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(())) }),
        );
        let request = with_hosts("https://reports:8443/x", &[long.as_bytes()]);
        let got = client.oneshot(request).await;
        assert_eq!(log.lines_with("origin=https://reports:8443"), 1);
        assert_eq!(log.lines_with("host=evil\\xc3\\xbc\\\".xxx"), 1, "{strict}");
        assert!(log.text().len() < 500);
        if let Err(error) = got {
            assert!(strict);
            let message = TokenError::find(&*error).unwrap().to_string();
            assert!(message.starts_with(
                "no token may go to https://reports:8443: the request has the Host header \
                 \"evil\\xc3\\xbc\\\".xxx"
            ));
            assert!(message.len() < 500, "{message}");
        }
    }
}

/// A proxy forwards the inbound headers, so the caller controls `Host`.
#[tokio::test]
async fn e01_hyper_sends_no_token_to_another_host() {
    let ca = Ca::new();
    let bench = Bench::new();
    let host = Host::start(Some(&ca)).await;
    let audience = Audience::fixed("a").for_origin(&host.origin()).unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience);
    let connector = || {
        hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(ca.client())
            .https_only()
    };
    let one = connector().enable_http1().build();
    let two = connector().enable_http2().build();
    for (connector, version) in [(one, Version::HTTP_11), (two, Version::HTTP_2)] {
        let client = Client::builder(TokioExecutor::new()).build::<_, Empty<&[u8]>>(connector);
        let client = ServiceBuilder::new().layer(layer.clone()).service(client);
        let right = format!("LOCALHOST:{}", host.address.port());
        for (header, signed) in [
            (None, true),
            (Some(right.as_str()), true),
            (Some("evil-tenant.example"), false),
        ] {
            let mut request = Request::get(host.origin() + "/x");
            if let Some(header) = header {
                request = request.header(HOST, header);
            }
            let request = request.body(Empty::new()).unwrap();
            client.clone().oneshot(request).await.unwrap();
            let seen = host.seen().pop().unwrap();
            assert_eq!(seen.version, version);
            assert_eq!(seen.authorization.is_some(), signed, "{header:?}");
        }
    }
}

#[tokio::test]
async fn e01_reqwest_sends_no_token_to_another_host() {
    let ca = Ca::new();
    let bench = Bench::new();
    let host = Host::start(Some(&ca)).await;
    let audience = || Audience::fixed("a").for_origin(&host.origin()).unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience());
    let service = ServiceBuilder::new()
        .layer(layer)
        .service(trusting(&ca).build().unwrap());
    let middleware = JwtSvidMiddleware::with_audience(bench.cache.clone(), audience());
    let strict = middleware.clone().strict();
    let with = |middleware| {
        reqwest_middleware::ClientBuilder::new(trusting(&ca).build().unwrap())
            .with(middleware)
            .build()
    };
    let right = host.origin().replace("https://localhost", "Localhost");
    for (header, signed) in [(right.as_str(), true), ("evil-tenant.example", false)] {
        let mut request = reqwest_get(host.origin() + "/x");
        let value = HeaderValue::from_str(header).unwrap();
        request.headers_mut().insert(HOST, value);
        let again = request.try_clone().unwrap();
        let third = request.try_clone().unwrap();

        service.clone().oneshot(request).await.unwrap();
        let seen = host.seen().pop().unwrap();
        assert_eq!(seen.authorization.is_some(), signed, "{header}");

        with(middleware.clone()).execute(again).await.unwrap();
        let seen = host.seen().pop().unwrap();
        assert_eq!(seen.authorization.is_some(), signed, "{header}");

        match with(strict.clone()).execute(third).await {
            Ok(_) => assert!(signed, "{header}"),
            Err(error) => {
                assert!(!signed, "{error}");
                let reason = TokenError::find(&error).unwrap().reason();
                assert_eq!(reason, TokenErrorReason::ForeignOrigin);
            }
        }
    }
}

/// Metadata may be copied from another call, including `host`.
#[tokio::test]
async fn e01_tonic_sends_no_token_to_another_host() {
    let bench = Bench::new();
    let host = Host::start(None).await;
    let channel = Endpoint::new(host.origin()).unwrap().connect_lazy();
    let audience = Audience::fixed("a").assume_origin(&host.origin()).unwrap();
    let client = AddJwtSvid::new(channel, bench.cache.clone(), audience.clone());
    let client = client.allow_plaintext(Plaintext::Loopback);
    let right = host.origin().replace("http://", "");
    for (header, signed) in [(right.as_str(), true), ("evil-tenant.example", false)] {
        let mut request = tonic::Request::new(String::new());
        request
            .metadata_mut()
            .insert("host", header.parse().unwrap());
        let mut grpc = tonic::client::Grpc::new(client.clone());
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/a.B/C");
        let codec = tonic_prost::ProstCodec::<String, String>::default();
        // The host does not speak gRPC, but records the request.
        let _ = grpc.unary(request, path, codec).await;
        let seen = host.seen().pop().unwrap();
        assert_eq!(
            (seen.version, seen.path.as_str()),
            (Version::HTTP_2, "/a.B/C")
        );
        assert_eq!(seen.authorization.is_some(), signed, "{header}");

        let mut request = tonic::Request::new(());
        request
            .metadata_mut()
            .insert("host", header.parse().unwrap());
        let interceptor = JwtSvidInterceptor::new(bench.cache.clone(), audience.clone());
        let mut interceptor = interceptor.allow_plaintext(Plaintext::Loopback);
        let sent = interceptor.call(request).unwrap();
        assert_eq!(sent.metadata().contains_key("authorization"), signed);
    }
}
