//! The options of the layer, on the middleware and on the interceptor.

use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use tonic::service::Interceptor;
use tonic::{Code, Request};
use tower_spiffe::client::{
    Audience, JwtSvidInterceptor, JwtSvidMiddleware, OnExisting, Plaintext,
};
use tower_spiffe::token::{TokenError, TokenErrorReason};

use crate::net::Host;
use crate::support::{Bench, request};

const THEIRS: HeaderValue = HeaderValue::from_static("Bearer end-user");
const WORKLOAD: HeaderName = HeaderName::from_static("x-workload");

fn client(tokens: JwtSvidMiddleware) -> reqwest_middleware::ClientWithMiddleware {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    reqwest_middleware::ClientBuilder::new(client)
        .with(tokens.allow_plaintext(Plaintext::Loopback))
        .build()
}

#[tokio::test]
async fn middleware_keeps_the_end_users_token() {
    let (bench, host) = (Bench::new(), Host::start(None).await);
    let tokens = JwtSvidMiddleware::new(bench.cache.clone(), [(host.origin(), "a")]).unwrap();
    let signed = |tokens: JwtSvidMiddleware| {
        let request = client(tokens).get(host.origin());
        request.header(AUTHORIZATION, THEIRS).send()
    };
    signed(tokens.clone().header(WORKLOAD)).await.unwrap();
    let seen = host.seen().pop().unwrap();
    assert_eq!(seen.authorization.as_deref(), Some("Bearer end-user"));
    assert!(seen.workload.unwrap().starts_with("Bearer ey"));

    // In the same header: kept, replaced, or an error.
    signed(tokens.clone()).await.unwrap();
    let seen = host.seen().pop().unwrap();
    assert_eq!(seen.authorization.as_deref(), Some("Bearer end-user"));
    let replace = tokens.clone().on_existing(OnExisting::Replace);
    signed(replace).await.unwrap();
    let seen = host.seen().pop().unwrap();
    assert!(seen.authorization.unwrap().starts_with("Bearer ey"));
    let error_on_existing = tokens.clone().on_existing(OnExisting::Error);
    let error = signed(error_on_existing).await.unwrap_err();
    let reason = TokenError::find(&error).unwrap().reason();
    assert_eq!(reason, TokenErrorReason::HeaderPresent);

    // A strict middleware rejects other origins.
    let strict = client(tokens.strict());
    let elsewhere = strict.get(host.origin_at("127.0.0.1"));
    let error = elsewhere.send().await.unwrap_err();
    let reason = TokenError::find(&error).unwrap().reason();
    assert_eq!(reason, TokenErrorReason::ForeignOrigin);
    assert_eq!(host.seen().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn interceptor_keeps_the_end_users_token() {
    let bench = Bench::new();
    let token = bench.cache.header(&request("a")).await.unwrap();
    let audience = || {
        Audience::fixed("a")
            .assume_origin("https://reports")
            .unwrap()
    };
    let interceptor = || JwtSvidInterceptor::new(bench.cache.clone(), audience());
    let call = |mut interceptor: JwtSvidInterceptor| {
        let mut request = Request::new(());
        let theirs = "Bearer end-user".parse().unwrap();
        request.metadata_mut().insert("authorization", theirs);
        let headers = interceptor.call(request)?.into_parts().0.into_headers();
        let both = [AUTHORIZATION, WORKLOAD].map(|name| headers.get(name).cloned());
        Ok::<_, tonic::Status>(both)
    };
    let theirs = Some(THEIRS);
    assert_eq!(
        call(interceptor().header(WORKLOAD)).unwrap(),
        [theirs.clone(), Some(token.clone())]
    );
    assert_eq!(call(interceptor()).unwrap(), [theirs, None]);
    assert_eq!(
        call(interceptor().on_existing(OnExisting::Replace)).unwrap(),
        [Some(token), None]
    );
    let error = call(interceptor().on_existing(OnExisting::Error)).unwrap_err();
    assert_eq!(error.code(), Code::Internal);

    // Without an audience, a call is sent without a token, or fails if strict.
    let none = Audience::per_request()
        .assume_origin("https://reports")
        .unwrap();
    let none = || JwtSvidInterceptor::new(bench.cache.clone(), none.clone());
    assert_eq!(call(none().header(WORKLOAD)).unwrap(), [Some(THEIRS), None]);
    let error = call(none().strict()).unwrap_err();
    assert_eq!(error.code(), Code::Internal);
}
