//! Allocations per request of the client layer, and the memory of the cache per audience.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use allocation_counter::measure;
use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::{Request, Response};
use tokio::runtime::Runtime;
use tower::{Service, service_fn};
use tower_spiffe::SvidCache;
use tower_spiffe::client::{AddJwtSvid, Audience};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::oauth::{AccessTokens, SubjectToken};
use tower_spiffe::token::SvidRequest;
use tower_spiffe_test_support::fetch::DayIssuer;

const MANY: usize = 10_000;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn cache() -> SvidCache {
    let builder = SvidCache::builder(DayIssuer).max_entries(2 * MANY);
    builder.rate(1_000_000).build()
}

fn audience(n: usize) -> String {
    format!("spiffe://example.org/ns/default/sa/service-{n:05}")
}

fn request(n: usize) -> SvidRequest {
    SvidRequest::new([audience(n)]).unwrap()
}

fn origin(n: usize) -> String {
    format!("https://service-{n:05}.example.org:8443")
}

/// Returns the request in its response.
#[derive(Clone)]
struct Inner;

impl Service<Request<()>> for Inner {
    type Response = Response<Request<()>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        ready(Ok(Response::new(request)))
    }
}

/// Polls a future that is ready.
fn now<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("a cached token is ready"),
    }
}

/// Returns a request to this URI with a header, so that the header map has allocated.
fn outgoing(uri: String) -> Request<()> {
    let mut request = Request::get(uri).body(()).unwrap();
    let any = HeaderValue::from_static("*/*");
    request.headers_mut().insert("accept", any);
    request
}

/// Returns the allocations of many requests to these origins, after one uncounted request to each.
fn calls_through_the_layer(audience: Audience, origins: usize) -> u64 {
    let cache = cache();
    let mut client = AddJwtSvid::new(Inner, cache.clone(), audience);
    let mut requests: Vec<_> = (0..origins).map(|n| outgoing(origin(n) + "/x")).collect();
    runtime().block_on(async {
        for request in &requests {
            client.call(request.clone()).await.unwrap();
        }
    });
    let mut lap = |requests: &mut Vec<Request<()>>| {
        for request in requests {
            let sent = client.call(std::mem::take(request));
            *request = now(sent).unwrap().into_body();
            assert!(request.headers_mut().remove(AUTHORIZATION).is_some());
        }
    };
    // A thread makes its own copy of a frequent token at the eighth use.
    for _ in 0..20 {
        lap(&mut requests);
    }
    let before = cache.stats();
    let count = measure(|| {
        for _ in 0..3 {
            lap(&mut requests);
        }
    });
    let after = cache.stats();
    assert_eq!(after.hits - before.hits, 3 * origins as u64);
    assert_eq!(after.fetches, origins as u64);
    count.count_total
}

#[test]
fn layer_with_cached_token_allocates_nothing() {
    let fixed = Audience::fixed(audience(0)).for_origin(&origin(0)).unwrap();
    assert_eq!(calls_through_the_layer(fixed, 1), 0);

    let map = Audience::map((0..MANY).map(|n| (origin(n), audience(n)))).unwrap();
    assert_eq!(calls_through_the_layer(map, MANY), 0);

    let rule = Audience::from_origin(
        |origin| Some(format!("spiffe://{}", origin.host())),
        ["https://*.example.org:8443"],
    );
    assert_eq!(calls_through_the_layer(rule.unwrap(), MANY), 0);
}

#[test]
fn e01_host_header_allocates_nothing() {
    let audience = Audience::fixed("a").for_origin("https://reports:8443");
    let cache = cache();
    let svid = SvidRequest::new(["a"]).unwrap();
    runtime().block_on(cache.header(&svid)).unwrap();
    let mut client = AddJwtSvid::new(Inner, cache.clone(), audience.unwrap());
    for (host, signed) in [
        ("reports:8443", true),
        ("REPORTS:8443", true),
        ("evil.test", false),
    ] {
        let mut request = outgoing("https://reports:8443/x".to_owned());
        let header = HeaderValue::from_static(host);
        request.headers_mut().insert(HOST, header);
        let mut lap = || {
            let sent = client.call(std::mem::take(&mut request));
            request = now(sent).unwrap().into_body();
            let token = request.headers_mut().remove(AUTHORIZATION);
            assert_eq!(token.is_some(), signed);
        };
        // A thread makes its own copy of a frequent token at the eighth use.
        for _ in 0..20 {
            lap();
        }
        assert_eq!(measure(lap).count_total, 0, "{host}");
    }
}

/// Returns a cache of access tokens; its server responds at once.
fn access_tokens() -> SvidCache {
    let endpoint = service_fn(async |_: Request<Vec<u8>>| {
        let json = r#"{"access_token":"abc","token_type":"Bearer","expires_in":86400}"#;
        Ok::<_, Infallible>(Response::new(json.to_owned()))
    });
    let tokens = AccessTokens::builder(cache())
        .issuer("https://as.example.org")
        .token_endpoint("https://as.example.org/token")
        .token_exchange()
        .http_client(endpoint);
    tokens.build().unwrap().into()
}

#[test]
fn x01_cached_access_token_allocates_nothing() {
    let cache = access_tokens();
    let end = UnixTime::now().saturating_add(Duration::from_secs(3_600));
    let subject = SubjectToken::new("xyz", end).unwrap();
    let plain = Audience::fixed("a").for_origin("https://reports").unwrap();
    let marked = plain.clone().on_behalf_of_caller();
    for (audience, subject) in [(plain, None), (marked, Some(subject))] {
        let mut client = AddJwtSvid::new(Inner, cache.clone(), audience);
        let mut request = outgoing("https://reports/x".to_owned());
        *request.extensions_mut() = subject_in_extensions(subject);
        runtime()
            .block_on(async { client.call(request.clone()).await })
            .unwrap();
        let mut lap = || {
            let sent = client.call(std::mem::take(&mut request));
            request = now(sent).unwrap().into_body();
            assert!(request.headers_mut().remove(AUTHORIZATION).is_some());
        };
        // A thread makes its own copy of a frequent token at the eighth use.
        for _ in 0..20 {
            lap();
        }
        assert_eq!(measure(lap).count_total, 0);
    }
    assert_eq!(cache.stats().fetches, 2);
}

fn subject_in_extensions(subject: Option<SubjectToken>) -> http::Extensions {
    let mut extensions = http::Extensions::new();
    if let Some(subject) = subject {
        extensions.insert(subject);
    }
    extensions
}

#[test]
fn cached_token_allocates_nothing() {
    let cache = cache();
    let requests: Vec<_> = (0..MANY).map(request).collect();
    let pinned = cache.pin(request(7));
    runtime().block_on(async {
        for request in &requests {
            cache.header(request).await.unwrap();
        }
    });
    let lap = || {
        for request in &requests {
            assert!(cache.try_header(request).is_some());
            assert!(now(cache.header(request)).is_ok());
        }
    };
    let hot = || {
        for _ in 0..1000 {
            assert!(pinned.try_header().is_some());
            assert!(cache.try_header(&requests[7]).is_some());
        }
    };
    lap();
    assert_eq!(measure(lap).count_total, 0, "among {MANY}");
    hot();
    assert_eq!(measure(hot).count_total, 0, "the same one repeatedly");
    assert_eq!(cache.stats().fetches, MANY as u64);
}

#[test]
fn audience_takes_its_token_and_600_bytes() {
    let (runtime, cache) = (runtime(), cache());
    // The first audience allocates what all audiences share.
    let first = runtime.block_on(cache.header(&request(MANY))).unwrap();
    let count = measure(|| {
        runtime.block_on(async {
            for n in 0..MANY {
                cache.header(&request(n)).await.unwrap();
            }
            // Let the tasks of the fetches end.
            while runtime.metrics().num_alive_tasks() > 0 {
                tokio::task::yield_now().await;
            }
        });
    });
    assert_eq!(cache.stats().entries, MANY + 1);
    let many = MANY as i64;
    let token = first.len() - "Bearer ".len();
    let bytes = count.bytes_current / many - token as i64;
    let allocations = count.count_current / many;
    assert!(bytes <= 600 && allocations <= 7, "{bytes} in {allocations}");
}
