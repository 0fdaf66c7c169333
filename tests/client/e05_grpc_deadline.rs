//! `grpc-timeout` bounds the wait for a token.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Request, Response};
use tonic::Code;
use tonic::service::Interceptor;
use tonic::transport::Endpoint;
use tower::limit::ConcurrencyLimitLayer;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_spiffe::client::{
    AddJwtSvid, AddJwtSvidLayer, Audience, JwtSvidInterceptor, JwtSvidMiddleware, Plaintext,
};
use tower_spiffe::token::{TokenError, TokenErrorReason};

use crate::layer::{fixed, sent, to};
use crate::net::Host;
use crate::support::{Answer, Bench, millis, request, secs, timed};

const TIMEOUT: &str = "grpc-timeout";

/// A request of this content type with this `grpc-timeout`.
fn call(content_type: &'static str, timeout: &'static str) -> Request<()> {
    let mut request = to("https://reports:8443/a.B/C");
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(TIMEOUT, HeaderValue::from_static(timeout));
    request
}

fn layer(bench: &Bench) -> AddJwtSvidLayer {
    AddJwtSvidLayer::new(bench.cache.clone(), fixed())
}

fn seconds_of(headers: &HeaderMap) -> f64 {
    let text = headers[TIMEOUT].to_str().unwrap();
    let (value, unit) = text.split_at(text.len() - 1);
    assert!(value.len() <= 8, "{text}");
    let unit = match unit {
        "S" => 1.0,
        "m" => 1e-3,
        "u" => 1e-6,
        "n" => 1e-9,
        _ => panic!("{text}"),
    };
    value.parse::<f64>().unwrap() * unit
}

#[tokio::test(start_paused = true)]
async fn e05_grpc_timeout_bounds_the_wait() {
    for (kind, timeout, expected) in [
        ("application/grpc", "300m", millis(300)),
        ("application/grpc", "3S", secs(3)),
        ("application/grpc+proto", "250000u", millis(250)),
        ("application/grpc;x=y", "20000000n", millis(20)),
        ("application/grpc-web+proto", "300m", millis(300)),
        ("application/grpc", "0m", Duration::ZERO),
    ] {
        let bench = Bench::with(|_| Answer::Hang);
        let (got, took) = timed(sent(layer(&bench), call(kind, timeout))).await;
        assert_eq!(got, Err(TokenErrorReason::DeadlineExceeded), "{timeout}");
        // The timer wheel rounds up to the next millisecond.
        assert!(took >= expected && took <= expected + millis(2), "{took:?}");
        assert_eq!(bench.cache.stats().errors, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn e05_later_deadlines_leave_the_cache_timeout() {
    for timeout in ["6S", "1M", "99999999H"] {
        let bench = Bench::with(|_| Answer::Hang);
        let request = call("application/grpc", timeout);
        let (got, took) = timed(sent(layer(&bench), request)).await;
        assert_eq!(got, Err(TokenErrorReason::Timeout), "{timeout}");
        assert!(took >= secs(5) && took < millis(5010), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn e05_malformed_or_foreign_timeouts_are_ignored() {
    for (kind, timeout) in [
        ("application/grpc", ""),
        ("application/grpc", "300"),
        ("application/grpc", "300s"),
        ("application/grpc", "300ms"),
        ("application/grpc", "-300m"),
        ("application/grpc", "000000300m"),
        ("application/grpc", "0.3S"),
        ("application/json", "300m"),
        ("application/grpcx", "300m"),
    ] {
        let bench = Bench::with(|_| Answer::Hang);
        let (got, took) = timed(sent(layer(&bench), call(kind, timeout))).await;
        assert_eq!(got, Err(TokenErrorReason::Timeout), "{kind} {timeout}");
        assert!(took >= secs(5), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn e05_cached_tokens_ignore_the_deadline() {
    let bench = Bench::new();
    bench.cache.header(&request("a")).await.unwrap();
    for timeout in ["0n", "1n", "300m"] {
        let request = call("application/grpc", timeout);
        let (headers, took) = timed(sent(layer(&bench), request)).await;
        let headers = headers.unwrap();
        assert!(headers.contains_key(AUTHORIZATION));
        assert_eq!(headers[TIMEOUT], timeout);
        assert_eq!(took, Duration::ZERO);
    }
}

/// In the last 10 % of its lifetime, a token is sent after a wait of at most 250 ms for the next one.
#[tokio::test(start_paused = true)]
async fn e05_old_token_is_sent_before_the_deadline() {
    for (timeout, wait) in [
        ("100m", millis(50)),
        ("400m", millis(200)),
        ("2S", millis(250)),
    ] {
        let bench = Bench::new();
        let header = bench.cache.header(&request("a")).await.unwrap();
        bench.at(secs(290)).await;
        bench.issuer.then(|_| Answer::Hang);
        let request = call("application/grpc", timeout);
        let (headers, took) = timed(sent(layer(&bench), request)).await;
        let headers = headers.unwrap();
        assert_eq!(headers[AUTHORIZATION], header, "{timeout}");
        assert!(
            took >= wait && took <= wait + millis(2),
            "{timeout} {took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn e05_the_rest_of_the_deadline_is_sent() {
    for (timeout, expected) in [
        ("300m", 0.2),
        ("90S", 89.9),
        ("110S", 109.9),
        ("30H", 107_999.0),
    ] {
        let bench = Bench::with(|call| call.fresh(300).after(millis(100)));
        let headers = sent(layer(&bench), call("application/grpc", timeout)).await;
        let left = seconds_of(&headers.unwrap());
        assert!((left - expected).abs() < 0.95, "{timeout}: {left}");
        assert!(left < expected + 0.01 && left > 0.0, "{timeout}: {left}");
    }
    // Requests that are not gRPC keep the header.
    let bench = Bench::with(|call| call.fresh(300).after(millis(100)));
    let headers = sent(layer(&bench), call("text/plain", "300m")).await;
    assert_eq!(headers.unwrap()[TIMEOUT], "300m");
}

/// The wait for a token released the service, so the call may wait for the service again.
#[tokio::test(start_paused = true)]
async fn e05_expired_call_does_not_reach_the_service() {
    let bench = Bench::with(|call| call.fresh(300).after(millis(100)));
    let arrived: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = arrived.clone();
    let inner = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(move |request: Request<()>| {
            seen.lock().unwrap().push(request.uri().path().to_owned());
            async {
                tokio::time::sleep(secs(1)).await;
                Ok::<_, Infallible>(Response::new(()))
            }
        }));
    let client = layer(&bench).layer(inner.clone());
    let waiting = tokio::spawn(client.oneshot(call("application/grpc", "300m")));
    tokio::time::sleep(millis(10)).await;
    inner
        .oneshot(to("https://reports:8443/long"))
        .await
        .unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    let reason = TokenError::find(&*error).unwrap().reason();
    assert_eq!(reason, TokenErrorReason::DeadlineExceeded);
    assert_eq!(*arrived.lock().unwrap(), ["/long"]);
}

#[tokio::test(start_paused = true)]
async fn e05_failed_fetches_keep_their_reason() {
    use tower_spiffe::token::FetchSvidReason;
    let bench = Bench::with(|_| Answer::Fail(FetchSvidReason::Denied).after(millis(100)));
    let got = sent(layer(&bench), call("application/grpc", "300m")).await;
    assert_eq!(got, Err(TokenErrorReason::Denied));
}

#[tokio::test(start_paused = true)]
async fn e05_tonic_call_ends_with_deadline_exceeded() {
    let bench = Bench::with(|_| Answer::Hang);
    let channel = Endpoint::from_static("https://ledger").connect_lazy();
    let audience = Audience::fixed("ledger").assume_origin("https://ledger");
    let client = AddJwtSvid::new(channel, bench.cache.clone(), audience.unwrap());
    let mut grpc = tonic::client::Grpc::new(client);
    grpc.ready().await.unwrap();
    let mut request = tonic::Request::new(String::new());
    request.set_timeout(millis(300));
    let path = http::uri::PathAndQuery::from_static("/a.B/C");
    let codec = tonic_prost::ProstCodec::<String, String>::default();
    let (got, took) = timed(grpc.unary(request, path, codec)).await;
    let status = got.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(took >= millis(300) && took <= millis(302), "{took:?}");
    let ours = TokenError::find(&status).unwrap();
    assert_eq!(ours.reason(), TokenErrorReason::DeadlineExceeded);
    assert!(ours.is_retryable());
}

/// An interceptor never waits, so a deadline does not change its result.
#[tokio::test(start_paused = true)]
async fn e05_interceptor_does_not_wait() {
    let bench = Bench::with(|_| Answer::Hang);
    let audience = Audience::fixed("a").assume_origin("https://reports");
    let mut interceptor = JwtSvidInterceptor::new(bench.cache.clone(), audience.unwrap());
    let mut request = tonic::Request::new(());
    request.set_timeout(millis(300));
    let status = interceptor.call(request).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn e05_reqwest_clients_keep_the_deadline() {
    let bench = Bench::with(|_| Answer::Hang);
    let url: reqwest::Url = "https://reports:8443/a.B/C".parse().unwrap();
    let mut request = reqwest::Request::new(http::Method::POST, url);
    *request.headers_mut() = call("application/grpc", "300m").headers().clone();
    let again = request.try_clone().unwrap();

    let service = layer(&bench).layer(reqwest::Client::new());
    let (got, took) = timed(service.oneshot(request)).await;
    let error = got.unwrap_err();
    let reason = TokenError::find(&*error).unwrap().reason();
    assert_eq!(reason, TokenErrorReason::DeadlineExceeded);
    assert!(took >= millis(300) && took <= millis(302), "{took:?}");

    let middleware = JwtSvidMiddleware::with_audience(bench.cache.clone(), fixed());
    let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new())
        .with(middleware)
        .build();
    let (got, took) = timed(client.execute(again)).await;
    let error = got.unwrap_err();
    let reason = TokenError::find(&error).unwrap().reason();
    assert_eq!(reason, TokenErrorReason::DeadlineExceeded);
    assert!(took >= millis(300) && took <= millis(302), "{took:?}");
}

#[tokio::test]
async fn e05_reqwest_middleware_sends_the_rest() {
    let bench = Bench::with(|call| call.fresh(300).after(millis(50)));
    let host = Host::start(None).await;
    let audience = Audience::fixed("a").for_origin(&host.origin()).unwrap();
    let middleware = JwtSvidMiddleware::with_audience(bench.cache.clone(), audience)
        .allow_plaintext(Plaintext::Loopback);
    let sent: Arc<Mutex<HeaderMap>> = Arc::default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let client = reqwest_middleware::ClientBuilder::new(client)
        .with(middleware)
        .with(Keep(sent.clone()))
        .build();
    let headers = call("application/grpc", "90S").headers().clone();
    let request = client.post(host.origin()).headers(headers);
    request.send().await.unwrap();
    assert!(host.saw_a_token());
    let left = seconds_of(&sent.lock().unwrap());
    assert!(left < 89.951 && left > 0.0, "{left}");
}

/// Records the headers of outgoing requests.
struct Keep(Arc<Mutex<HeaderMap>>);

#[async_trait::async_trait]
impl reqwest_middleware::Middleware for Keep {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut http::Extensions,
        next: reqwest_middleware::Next<'_>,
    ) -> reqwest_middleware::Result<reqwest::Response> {
        *self.0.lock().unwrap() = request.headers().clone();
        next.run(request, extensions).await
    }
}
