//! The sources of a `JwtSourceError` are typed, and repeat no text.

use std::error::Error;

use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::source::{JwtSourceError, JwtSourceErrorReason as Reason};
use tower_spiffe::testing::{AgentCall, Fault};
use tower_spiffe::token::{
    FetchSvidError, FetchSvidReason, GrpcCode, SvidRequestError, TokenError, TokenErrorReason,
};
use tower_spiffe::workload_api::{EndpointError, WorkloadApiError};
use tower_spiffe::{JwtSource, SvidCache};

use crate::support::World;

const AUD: &str = "reports";

/// Asserts that the cause is a `T`, and that no text of the chain contains another.
#[track_caller]
fn assert_cause<T: Error + 'static>(error: &JwtSourceError) {
    let source = error
        .source()
        .unwrap_or_else(|| panic!("no source: {error:?}"));
    assert!(source.downcast_ref::<T>().is_some(), "{source:?}");
    assert_eq!(format!("{error:#}"), format!("{error}: {source}"));
    assert_eq!(*error, error.clone());
    let mut texts = vec![error.to_string()];
    let mut next = Some(source);
    while let Some(cause) = next {
        texts.push(cause.to_string());
        next = cause.source();
    }
    for (at, text) in texts.iter().enumerate() {
        for other in texts.iter().skip(at + 1) {
            assert!(!text.contains(other) && !other.contains(text), "{texts:#?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn source_errors_keep_their_cause() {
    let error = JwtSource::builder()
        .endpoint("https://agent")
        .build_lazy()
        .unwrap_err();
    assert_cause::<EndpointError>(&error);

    let world = World::new().await;
    let source = world.source().await;
    let error = source.get_jwt_svid([""]).await.unwrap_err();
    assert_cause::<SvidRequestError>(&error);

    let fault = Fault::Refuse(GrpcCode::PermissionDenied);
    world.agent.fail_call(AgentCall::FetchJwtSvid, fault);
    let error = source.get_jwt_svid([AUD]).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Token(TokenErrorReason::Denied));
    assert_eq!(error.code(), Some(GrpcCode::PermissionDenied));
    assert_cause::<TokenError>(&error);
    let error = source.fetch_jwt_svid([AUD]).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Token(TokenErrorReason::Denied));
    assert_eq!(error.code(), Some(GrpcCode::PermissionDenied));
    // Inside the error that a gRPC peer gets.
    let status = error.source().unwrap();
    let status = status.downcast_ref::<tonic::Status>().unwrap();
    assert!(status.source().unwrap().is::<FetchSvidError>(), "{error:?}");

    world.agent.fail(Fault::Refuse(GrpcCode::Unimplemented));
    let lazy = world.builder().build_lazy().unwrap();
    let error = lazy.ready().await.unwrap_err();
    assert_cause::<WorkloadApiError>(&error);
    let error = lazy.bundle_set().unwrap_err();
    assert_cause::<BundlesUnavailable>(&error);
}

/// Reasons that the cache adds, unknown to a fetch.
#[tokio::test(start_paused = true)]
async fn token_reasons_stay_distinct() {
    let full = {
        let world = World::new().await;
        world.agent.fail_call(AgentCall::FetchJwtSvid, Fault::Hang);
        let source = world.builder().svid_cache(|cache| cache.max_entries(1));
        let source = source.build().await.unwrap();
        let cache = SvidCache::from(&source);
        let request = |n: usize| tower_spiffe::token::SvidRequest::new([format!("a{n}")]).unwrap();
        let mut full = None;
        for n in 0..100 {
            cache.try_header(&request(n));
            let waiting = source.get_jwt_svid([format!("b{n}")]);
            if let Ok(Err(error)) =
                tokio::time::timeout(std::time::Duration::from_millis(1), waiting).await
            {
                full = Some(error);
                break;
            }
        }
        full.unwrap()
    };
    assert_eq!(full.reason(), Reason::Token(TokenErrorReason::Full));
    assert!(full.is_retryable());
    assert_cause::<TokenError>(&full);
    let other = FetchSvidError::new(FetchSvidReason::Other, "no");
    let other = JwtSourceError::from(other);
    assert_eq!(other.reason(), Reason::Token(TokenErrorReason::Other));
}

#[tokio::test(start_paused = true)]
async fn token_error_source_repeats_no_text() {
    let world = World::new().await;
    let source = world.source().await;
    let fault = Fault::Refuse(GrpcCode::Unavailable);
    world.agent.fail_call(AgentCall::FetchJwtSvid, fault);
    let cache = SvidCache::from(&source);
    let request = tower_spiffe::token::SvidRequest::new([AUD]).unwrap();
    let error = cache.get(&request).await.unwrap_err();
    let fetch = error.fetch_error().unwrap().to_string();
    assert!(error.to_string().contains(&fetch), "{error}");
    let mut next = error.source();
    while let Some(cause) = next {
        assert!(!cause.to_string().contains(&fetch), "{cause}");
        next = cause.source();
    }
}
