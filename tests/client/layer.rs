//! The layer with a recording service: the headers it sets, and the requests it rejects.

use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_spiffe::SvidCache;
use tower_spiffe::client::{AddJwtSvid, AddJwtSvidLayer, Audience, OnExisting, Plaintext};
use tower_spiffe::token::{FetchSvidReason, TokenError, TokenErrorReason};

use crate::support::{Answer, Bench, millis, request, secs};

type Seen = Arc<Mutex<Vec<HeaderMap>>>;

/// Returns a service that records headers, and responds with this status.
fn recording(
    status: StatusCode,
) -> (
    Seen,
    impl Service<Request<()>, Response = Response<()>, Error = Infallible, Future: Send> + Clone + Send,
) {
    let seen = Seen::default();
    let kept = seen.clone();
    let service = service_fn(move |request: Request<()>| {
        kept.lock().unwrap().push(request.headers().clone());
        async move {
            let mut response = Response::new(());
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        }
    });
    (seen, service)
}

pub fn to(uri: &str) -> Request<()> {
    Request::get(uri).body(()).unwrap()
}

pub fn fixed() -> Audience {
    Audience::fixed("a")
        .for_origin("https://reports:8443")
        .unwrap()
}

/// Returns the headers that this layer sends, or the error.
pub async fn sent(
    layer: AddJwtSvidLayer,
    request: Request<()>,
) -> Result<HeaderMap, TokenErrorReason> {
    let (seen, inner) = recording(StatusCode::OK);
    match layer.layer(inner).oneshot(request).await {
        Ok(_) => Ok(seen.lock().unwrap().pop().unwrap()),
        Err(error) => {
            assert!(seen.lock().unwrap().is_empty(), "failed, but sent");
            Err(TokenError::find(&*error).unwrap().reason())
        }
    }
}

#[tokio::test(start_paused = true)]
async fn token_header_is_marked_sensitive() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), fixed());
    let headers = sent(layer, to("https://reports:8443/x")).await.unwrap();
    let value = &headers[AUTHORIZATION];
    assert_eq!(*value, bench.cache.header(&request("a")).await.unwrap());
    assert!(value.is_sensitive() && value.to_str().unwrap().starts_with("Bearer ey"));
    assert_eq!(headers.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn other_origins_get_no_token_and_are_counted() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), fixed());
    let others = [
        "https://elsewhere/x",
        "https://reports/x",
        "http://reports:8443/x",
        "https://user@reports:8443/x",
        "https://reports.:8443/x",
        "https://reports:8443@elsewhere/x",
    ];
    for other in others {
        let headers = sent(layer.clone(), to(other)).await.unwrap();
        assert!(headers.is_empty(), "{other}");
        let strict = sent(layer.clone().strict(), to(other)).await;
        assert_eq!(strict, Err(TokenErrorReason::ForeignOrigin), "{other}");
    }
    assert_eq!(bench.cache.stats().unmatched, 2 * others.len() as u64);
    assert_eq!(bench.issuer.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn request_without_origin_needs_an_assumed_origin() {
    let bench = Bench::new();
    let any = Audience::fixed("a").any_origin().unwrap();
    for audience in [fixed(), any] {
        let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience);
        for uri in ["/x", "*"] {
            let got = sent(layer.clone(), to(uri)).await;
            assert_eq!(got, Err(TokenErrorReason::NoOrigin), "{uri}");
        }
    }
    let promised = Audience::fixed("a")
        .assume_origin("https://reports:8443")
        .unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), promised);
    assert!(
        sent(layer.clone(), to("/x"))
            .await
            .unwrap()
            .contains_key(AUTHORIZATION)
    );
    // If a request has an origin, that origin is checked.
    assert!(
        sent(layer, to("https://elsewhere/x"))
            .await
            .unwrap()
            .is_empty()
    );
    // An assumed http origin does not allow plaintext.
    let promised = Audience::fixed("a")
        .assume_origin("http://reports")
        .unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), promised);
    assert_eq!(
        sent(layer, to("/x")).await,
        Err(TokenErrorReason::Plaintext)
    );
}

#[tokio::test(start_paused = true)]
async fn plaintext_must_be_allowed() {
    let bench = Bench::new();
    let any = Audience::fixed("a").any_origin().unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), any);
    let loopback = [
        "http://127.0.0.1:80/x",
        "http://[::1]/x",
        "http://localhost/x",
    ];
    let remote = [
        "http://reports/x",
        "http://127.1/x",
        "http://localhost.evil.test/x",
    ];
    for uri in loopback.iter().chain(&remote) {
        assert_eq!(
            sent(layer.clone(), to(uri)).await,
            Err(TokenErrorReason::Plaintext),
            "{uri}"
        );
    }
    let allowed = layer.clone().allow_plaintext(Plaintext::Loopback);
    for uri in loopback {
        assert!(
            sent(allowed.clone(), to(uri))
                .await
                .unwrap()
                .contains_key(AUTHORIZATION),
            "{uri}"
        );
    }
    for uri in remote {
        let got = sent(allowed.clone(), to(uri)).await;
        assert_eq!(got, Err(TokenErrorReason::Plaintext), "{uri}");
    }
    for plaintext in [Plaintext::Any, Plaintext::UnixSocket] {
        let allowed = layer.clone().allow_plaintext(plaintext);
        assert!(
            sent(allowed, to("http://reports/x"))
                .await
                .unwrap()
                .contains_key(AUTHORIZATION)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn existing_header_is_kept_replaced_or_an_error() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), fixed());
    let signed = || {
        let mut request = to("https://reports:8443/x");
        request
            .headers_mut()
            .insert(AUTHORIZATION, HeaderValue::from_static("Basic dXNlcg=="));
        request
            .headers_mut()
            .append(AUTHORIZATION, HeaderValue::from_static("Basic another"));
        request
    };
    let kept = sent(layer.clone(), signed()).await.unwrap();
    assert_eq!(kept.get_all(AUTHORIZATION).iter().count(), 2);
    assert_eq!(kept[AUTHORIZATION], "Basic dXNlcg==");
    let replaced = sent(layer.clone().on_existing(OnExisting::Replace), signed())
        .await
        .unwrap();
    assert_eq!(replaced.get_all(AUTHORIZATION).iter().count(), 1);
    assert!(replaced[AUTHORIZATION].is_sensitive());
    let error = sent(layer.clone().on_existing(OnExisting::Error), signed()).await;
    assert_eq!(error, Err(TokenErrorReason::HeaderPresent));
    // With another header, both are sent.
    let name = HeaderName::from_static("x-workload");
    let both = sent(layer.header(name.clone()), signed()).await.unwrap();
    assert!(both[name].to_str().unwrap().starts_with("Bearer "));
    assert_eq!(both[AUTHORIZATION], "Basic dXNlcg==");
}

#[tokio::test(start_paused = true)]
async fn each_origin_gets_its_own_token() {
    let bench = Bench::new();
    let map = Audience::map([("https://reports", "r"), ("https://ledger", "l")]).unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), map);
    for (uri, audience) in [("https://reports/x", "r"), ("https://ledger/x", "l")] {
        let headers = sent(layer.clone(), to(uri)).await.unwrap();
        assert_eq!(
            headers[AUTHORIZATION],
            bench.cache.header(&request(audience)).await.unwrap()
        );
    }
    let rule = Audience::from_origin(
        |origin| Some(origin.host().to_owned()),
        ["https://*.svc.test"],
    );
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), rule.unwrap());
    let headers = sent(layer.clone(), to("https://web.svc.test/x"))
        .await
        .unwrap();
    let web = bench.cache.header(&request("web.svc.test")).await.unwrap();
    assert_eq!(headers[AUTHORIZATION], web);
    assert!(
        sent(layer, to("https://web.test/x"))
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(start_paused = true)]
async fn audience_in_the_extensions_replaces_the_layers() {
    let bench = Bench::new();
    for own in [fixed(), Audience::per_request()] {
        let layer = AddJwtSvidLayer::new(bench.cache.clone(), own);
        let mut asked = to("https://ledger/x");
        asked
            .extensions_mut()
            .insert(Audience::fixed("l").for_origin("https://ledger").unwrap());
        let headers = sent(layer.clone(), asked).await.unwrap();
        assert_eq!(
            headers[AUTHORIZATION],
            bench.cache.header(&request("l")).await.unwrap()
        );
        // Its origins are checked like those of other audiences.
        let mut redirected = to("https://elsewhere/x");
        redirected
            .extensions_mut()
            .insert(Audience::fixed("l").for_origin("https://ledger").unwrap());
        assert!(sent(layer, redirected).await.unwrap().is_empty());
    }
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), Audience::per_request());
    assert!(
        sent(layer, to("https://reports:8443/x"))
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(start_paused = true)]
async fn tokens_are_requested_for_the_configured_identity() {
    let bench = Bench::new();
    let audience = fixed().spiffe_id("spiffe://x/second".parse().unwrap());
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience);
    sent(layer, to("https://reports:8443/x")).await.unwrap();
    let mut asked = bench.cache.snapshot();
    asked.retain(|snapshot| snapshot.generation > 0);
    assert_eq!(asked.len(), 1);
    assert_eq!(
        asked[0].spiffe_id.as_ref().unwrap().as_str(),
        "spiffe://x/second"
    );
}

#[tokio::test(start_paused = true)]
async fn token_is_refreshed_after_a_401() {
    for grpc in [false, true] {
        let bench = Bench::new();
        let first = bench.cache.header(&request("a")).await.unwrap();
        let inner = service_fn(move |request: Request<()>| {
            let rejected = request.headers()[AUTHORIZATION] == first;
            async move {
                let mut response = Response::new(());
                if rejected && grpc {
                    response
                        .headers_mut()
                        .insert("grpc-status", HeaderValue::from_static("16"));
                } else if rejected {
                    *response.status_mut() = StatusCode::UNAUTHORIZED;
                }
                Ok::<_, Infallible>(response)
            }
        });
        let client = AddJwtSvid::new(inner, bench.cache.clone(), fixed());
        let rejected = |response: &Response<()>| {
            response.status() == StatusCode::UNAUTHORIZED
                || response.headers().contains_key("grpc-status")
        };
        let response = client
            .clone()
            .oneshot(to("https://reports:8443/x"))
            .await
            .unwrap();
        assert!(
            rejected(&response),
            "the response is forwarded; the layer does not retry"
        );
        let response = client.oneshot(to("https://reports:8443/x")).await.unwrap();
        assert!(!rejected(&response), "the next request has the new token");
        assert_eq!(bench.issuer.calls(), 2);
        assert_eq!(bench.cache.stats().rejections, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn late_token_is_refreshed_after_a_401() {
    let bench = Bench::with(|call| call.fresh(300).after(millis(10)));
    let (_, inner) = recording(StatusCode::UNAUTHORIZED);
    let client = AddJwtSvid::new(inner, bench.cache.clone(), fixed());
    client.oneshot(to("https://reports:8443/x")).await.unwrap();
    assert_eq!(bench.cache.stats().rejections, 1);
}

#[derive(Debug, Clone, PartialEq)]
struct Broken;
impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("connection lost")
    }
}
impl std::error::Error for Broken {}

#[tokio::test(start_paused = true)]
async fn inner_error_is_unchanged_and_distinguishable() {
    let bench = Bench::new();
    let inner = service_fn(|_: Request<()>| async { Err::<Response<()>, _>(Broken) });
    let client = AddJwtSvid::new(inner, bench.cache.clone(), fixed());
    for _ in 0..2 {
        let error = client
            .clone()
            .oneshot(to("https://reports:8443/x"))
            .await
            .unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&Broken));
        assert!(TokenError::find(&*error).is_none());
    }
    bench.issuer.then(|_| Answer::Fail(FetchSvidReason::Denied));
    tokio::time::sleep(secs(400)).await;
    let error = client
        .oneshot(to("https://reports:8443/x"))
        .await
        .unwrap_err();
    let ours = TokenError::find(&*error).unwrap();
    assert_eq!(ours.reason(), TokenErrorReason::Denied);
    assert_eq!(
        ours.fetch_error().unwrap().reason(),
        FetchSvidReason::Denied
    );
    // It is found inside other errors.
    let wrapped = std::io::Error::other(error);
    assert!(TokenError::find(&wrapped).is_some());
}

#[tokio::test(start_paused = true)]
async fn error_converts_to_a_grpc_status() {
    for (reason, code) in [
        (FetchSvidReason::Denied, tonic::Code::Internal),
        (FetchSvidReason::Unavailable, tonic::Code::Unavailable),
        (FetchSvidReason::Timeout, tonic::Code::Unavailable),
        (FetchSvidReason::InvalidRequest, tonic::Code::Internal),
    ] {
        let bench = Bench::with(move |_| Answer::Fail(reason));
        let error = bench.cache.header(&request("a")).await.unwrap_err();
        let status = tonic::Status::from_error(error.into());
        assert_eq!(status.code(), code);
        assert!(!status.message().contains("\"a\""), "{status:?}");
        let ours = TokenError::find(&status).unwrap().to_string();
        assert!(ours.contains("\"a\""), "{ours}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_fail_at_once_after_shutdown() {
    let bench = Bench::with(|call| call.fresh(300).after(secs(3)));
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), fixed());
    let waiting = tokio::spawn(sent(layer.clone(), to("https://reports:8443/x")));
    tokio::time::sleep(millis(10)).await;
    bench.cache.close();
    let began = tokio::time::Instant::now();
    assert_eq!(waiting.await.unwrap(), Err(TokenErrorReason::Closed));
    assert!(began.elapsed() < millis(5));
    assert_eq!(
        sent(layer, to("https://reports:8443/x")).await,
        Err(TokenErrorReason::Closed)
    );
}

#[test]
fn types_are_clone_send_and_sync() {
    fn all<T: Clone + Send + Sync + 'static>() {}
    fn send<T: Send>(_: T) {}
    all::<AddJwtSvidLayer>();
    all::<AddJwtSvid<reqwest::Client>>();
    all::<Audience>();
    all::<SvidCache>();
    all::<TokenError>();
    all::<tower_spiffe::token::PinnedSvid>();
    all::<tower_spiffe::client::JwtSvidInterceptor>();
    all::<tower_spiffe::client::JwtSvidMiddleware>();
    let bench_free = |client: AddJwtSvid<reqwest::Client>, request: reqwest::Request| {
        send(client.oneshot(request));
    };
    let _ = bench_free;
}

#[tokio::test(start_paused = true)]
async fn debug_and_log_show_no_token() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), fixed());
    let (_, inner) = recording(StatusCode::OK);
    let client = layer.layer(inner);
    client.oneshot(to("https://reports:8443/x")).await.unwrap();
    let aud = request("a");
    let svid = bench.cache.get(&aud).await.unwrap();
    let header = bench.cache.header(&aud).await.unwrap();
    let pin = bench.cache.pin(aud.clone());
    let shown = format!(
        "{:?} {layer:?} {svid:?} {svid} {header:?} {pin:?} {:?} {:?}",
        bench.cache,
        bench.cache.snapshot(),
        bench.cache.stats(),
    );
    let secret = svid.token().split('.').nth(1).unwrap().to_owned();
    assert!(
        !shown.contains(&secret[..16]) && !shown.contains("eyJ"),
        "{shown}"
    );
}
