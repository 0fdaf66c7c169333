//! The gRPC status for a peer from a [`TokenError`]: a code and a fixed text.

use http::{Request, Response};
use tonic::service::Interceptor;
use tonic::{Code, Status};
use tower::buffer::Buffer;
use tower::{ServiceExt, service_fn};
use tower_spiffe::client::{
    AddJwtSvid, Audience, JwtSvidInterceptor, JwtSvidMiddleware, OnExisting,
};
use tower_spiffe::source::JwtSourceError;
use tower_spiffe::testing::{AgentCall, Fault};
use tower_spiffe::token::{FetchSvidReason, GrpcCode, TokenError, TokenErrorReason};
use tower_spiffe::{JwtSource, SvidCache};

use crate::agent;
use crate::support::{Answer, Bench, millis, request};

/// Returns the error of a fetch that fails for this reason.
async fn failed(reason: FetchSvidReason) -> TokenError {
    let bench = Bench::with(move |_| Answer::Fail(reason));
    bench
        .cache
        .header(&request("internal/ledger"))
        .await
        .unwrap_err()
}

/// Returns the status that `?` returns in a handler.
#[allow(clippy::result_large_err, reason = "as in a tonic handler")]
fn handler(error: TokenError) -> Result<Response<()>, Status> {
    Err(error)?;
    Ok(Response::new(()))
}

/// Returns the statuses of all conversions.
fn statuses(error: &TokenError) -> Vec<Status> {
    let boxed = || -> Box<dyn std::error::Error + Send + Sync> { Box::new(error.clone()) };
    vec![
        handler(error.clone()).unwrap_err(),
        error.to_status(),
        Status::from(error.clone()),
        Status::from_error(boxed()),
        Status::from_error(Box::new(std::io::Error::other(boxed()))),
        Status::from_error(Box::new(std::io::Error::other(std::io::Error::other(
            boxed(),
        )))),
        Status::from_error(Box::new(reqwest_middleware::Error::middleware(
            error.clone(),
        ))),
        Status::from_error(Box::new(std::io::Error::other(
            reqwest_middleware::Error::middleware(error.clone()),
        ))),
    ]
}

/// Asserts the code, the same text from all conversions, and that only the sources have details.
fn assert_status(error: &TokenError, code: Code) -> String {
    let mut text = None;
    for status in statuses(error) {
        assert_eq!(status.code(), code, "{error}");
        for secret in ["ledger", "unix:", "/", "scripted", "agent", "spiffe"] {
            assert!(!status.message().contains(secret), "{status:?}");
        }
        assert!(status.metadata().is_empty() && status.details().is_empty());
        let ours = TokenError::find(&status).unwrap();
        assert_eq!(ours.to_string(), error.to_string());
        let message = status.message().to_owned();
        assert_eq!(text.get_or_insert(message.clone()), &message);
    }
    text.unwrap()
}

#[tokio::test(start_paused = true)]
async fn e07_each_class_has_one_fixed_text() {
    use FetchSvidReason as R;
    let mut texts = std::collections::BTreeMap::new();
    for (reason, code) in [
        (R::Unavailable, Code::Unavailable),
        (R::Timeout, Code::Unavailable),
        (R::Unacceptable, Code::Unavailable),
        (R::Expired, Code::Unavailable),
        (R::Panicked, Code::Unavailable),
        (R::Closed, Code::Unavailable),
        (R::Other, Code::Unavailable),
        (R::Denied, Code::Internal),
        (R::InvalidRequest, Code::Internal),
    ] {
        let error = failed(reason).await;
        let text = assert_status(&error, code);
        let known = texts.entry(code as i32).or_insert_with(|| text.clone());
        assert_eq!(*known, text, "{reason:?}");
        let fetch = error.fetch_error().unwrap();
        assert_eq!(fetch.reason(), reason);
    }
    assert_eq!(texts.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn e07_settings_errors_are_internal() {
    let bench = Bench::new();
    let audience = Audience::fixed("ledger")
        .for_origin("http://ledger")
        .unwrap();
    let call = |uri: &str| {
        let inner =
            service_fn(|_: Request<()>| async { Ok::<_, std::io::Error>(Response::new(())) });
        let client = AddJwtSvid::new(inner, bench.cache.clone(), audience.clone())
            .on_existing(OnExisting::Error)
            .strict();
        let mut request = Request::get(uri).body(()).unwrap();
        let theirs = http::HeaderValue::from_static("Bearer end-user");
        if uri.starts_with("http://ledger/kept") {
            request.headers_mut().insert("authorization", theirs);
        }
        client
            .allow_plaintext(match uri {
                "http://ledger/kept" => tower_spiffe::client::Plaintext::Any,
                _ => tower_spiffe::client::Plaintext::Loopback,
            })
            .oneshot(request)
    };
    for (uri, reason) in [
        ("/x", TokenErrorReason::NoOrigin),
        ("https://internal-ledger/x", TokenErrorReason::ForeignOrigin),
        ("http://ledger/x", TokenErrorReason::Plaintext),
        ("http://ledger/kept", TokenErrorReason::HeaderPresent),
    ] {
        let error = call(uri).await.unwrap_err();
        let ours = TokenError::find(&*error).unwrap().clone();
        assert_eq!(ours.reason(), reason);
        assert_status(&ours, Code::Internal);
    }
}

/// Returns the status of a handler that calls the ledger while the agent has this fault.
async fn through_a_handler(fault: Fault) -> Status {
    let agent = agent::start("x").await;
    let source = agent.source().await.unwrap();
    agent.fail_call(AgentCall::FetchJwtSvid, fault);
    let audience = Audience::fixed("spiffe://x/internal/ledger").assume_origin("https://ledger");
    let channel = tonic::transport::Endpoint::from_static("https://ledger").connect_lazy();
    let client = AddJwtSvid::new(channel, source, audience.unwrap());
    // Buffered, like shared clients.
    let client = Buffer::new(client, 8);
    let mut grpc = tonic::client::Grpc::new(client);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/a.B/C");
    let codec = tonic_prost::ProstCodec::<String, String>::default();
    let call = grpc.unary(tonic::Request::new(String::new()), path, codec);
    call.await.unwrap_err()
}

#[tokio::test]
async fn e07_handlers_never_forward_agent_details() {
    for (code, expected) in [
        (GrpcCode::PermissionDenied, Code::Internal),
        (GrpcCode::InvalidArgument, Code::Internal),
        (GrpcCode::Unimplemented, Code::Internal),
        (GrpcCode::Unavailable, Code::Unavailable),
        (GrpcCode::Unauthenticated, Code::Unavailable),
        (GrpcCode::ResourceExhausted, Code::Unavailable),
    ] {
        let status = through_a_handler(Fault::Refuse(code)).await;
        assert_eq!(status.code(), expected, "{status:?}");
        for secret in ["unix:", "ledger", "agent", "spiffe"] {
            assert!(!status.message().contains(secret), "{status:?}");
        }
        // The details are available in this process.
        let ours = TokenError::find(&status).unwrap().to_string();
        assert!(ours.contains("internal/ledger"), "{ours}");
    }
}

#[tokio::test]
async fn e07_interceptor_and_middleware_use_the_same_texts() {
    let bench = Bench::with(|_| Answer::Fail(FetchSvidReason::Denied));
    let denied = failed(FetchSvidReason::Denied).await;
    let text = assert_status(&denied, Code::Internal);

    let audience = Audience::fixed("ledger")
        .assume_origin("http://ledger")
        .unwrap();
    let mut interceptor = JwtSvidInterceptor::new(bench.cache.clone(), audience);
    let status = interceptor.call(tonic::Request::new(())).unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Internal, &*text));
    assert!(TokenError::find(&status).is_some());

    let tokens = JwtSvidMiddleware::new(bench.cache.clone(), [("https://ledger", "ledger")]);
    let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new())
        .with(tokens.unwrap())
        .build();
    let error = client.get("https://ledger/x").send().await.unwrap_err();
    let status = Status::from_error(error.into());
    assert_eq!((status.code(), status.message()), (Code::Internal, &*text));
}

#[tokio::test]
async fn e07_source_errors_convert_to_fixed_texts() {
    async fn handler(source: &JwtSource) -> Result<(), Status> {
        source.get_jwt_svid(["spiffe://x/internal/ledger"]).await?;
        Ok(())
    }
    for (code, expected) in [
        (GrpcCode::PermissionDenied, Code::Internal),
        (GrpcCode::Unavailable, Code::Unavailable),
    ] {
        let agent = agent::start("x").await;
        let source = agent.source().await.unwrap();
        agent.fail_call(AgentCall::FetchJwtSvid, Fault::Refuse(code));
        let status = handler(&source).await.unwrap_err();
        assert_eq!(status.code(), expected, "{status:?}");
        for endpoint in ["unix:", "tcp:"] {
            assert!(!status.message().contains(endpoint), "{status:?}");
        }
        assert!(!status.message().contains("ledger"), "{status:?}");
        let ours = std::error::Error::source(&status).unwrap();
        assert!(ours.downcast_ref::<JwtSourceError>().is_some());
        // The same as a type-erased error.
        let audience = ["spiffe://x/internal/ledger"];
        let error = source.fetch_jwt_svid(audience).await.unwrap_err();
        let status = Status::from_error(error.into());
        assert_eq!(status.code(), expected, "{status:?}");
        for endpoint in ["unix:", "tcp:"] {
            assert!(!status.message().contains(endpoint), "{status:?}");
        }
        assert!(!status.message().contains("ledger"), "{status:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn e07_full_cache_is_not_the_callers_quota() {
    let bench = Bench::built(|_| Answer::Hang, |builder| builder.max_entries(1));
    let cache: SvidCache = bench.cache.clone();
    let first = tokio::spawn({
        let cache = cache.clone();
        async move { cache.header(&request("a")).await }
    });
    tokio::time::sleep(millis(10)).await;
    let mut full = None;
    for n in 0..100 {
        let got = tokio::time::timeout(millis(1), cache.header(&request(&format!("b{n}")))).await;
        if let Ok(Err(error)) = got {
            full = Some(error);
            break;
        }
    }
    let full = full.unwrap();
    assert_eq!(full.reason(), TokenErrorReason::Full);
    assert_eq!(full.to_status().code(), Code::Unavailable);
    first.abort();
}
