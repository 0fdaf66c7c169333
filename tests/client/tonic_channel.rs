//! A tonic channel with the client layer, to a gRPC server with the server layer.

use std::pin::Pin;
#[cfg(unix)]
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request as HttpRequest;
use axum::response::IntoResponse;
use axum::routing::post;
use futures_util::{Stream, StreamExt, stream};
#[cfg(unix)]
use hyper_util::rt::TokioIo;
#[cfg(unix)]
use tokio::net::UnixListener;
use tonic::codegen::http::uri::PathAndQuery;
#[cfg(unix)]
use tonic::transport::Uri;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::util::BoxCloneSyncService;
use tower::{Layer, service_fn};
use tower_spiffe::client::{
    AddJwtSvid, Audience, BoxError, JwtSvidInterceptor, OnExisting, Plaintext,
};
use tower_spiffe::server::{Allow, GrpcPolicy, ValidateJwtSvidLayer};
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault};
use tower_spiffe::token::SvidRequest;
use tower_spiffe::{JwtSource, SvidCache, Validator, VerifiedSvid};
#[cfg(unix)]
use tower_spiffe_test_support::temp::TempDir;

use crate::agent;
use crate::net::{App, Ca, Host};
use crate::support::{Answer, Bench, millis};

const AUDIENCE: &str = "spiffe://x/echo";

type Texts = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

/// Returns the verified caller, followed by the message.
fn heard<T>(request: &Request<T>) -> Result<String, Status> {
    VerifiedSvid::from_request(request).map(|caller| caller.spiffe_id().to_string())
}

async fn unary(request: HttpRequest) -> axum::response::Response {
    let say = service_fn(|request: Request<String>| async move {
        let caller = heard(&request)?;
        Ok::<_, Status>(Response::new(format!("{caller}: {}", request.into_inner())))
    });
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
    grpc.unary(say, request)
        .await
        .map(axum::body::Body::new)
        .into_response()
}

async fn streaming(request: HttpRequest) -> axum::response::Response {
    let say = service_fn(|request: Request<tonic::Streaming<String>>| async move {
        let caller = heard(&request)?;
        let said = request.into_inner();
        let answers = said.map(move |text| Ok(format!("{caller}: {}", text?)));
        Ok::<_, Status>(Response::new(Box::pin(answers) as Texts))
    });
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
    grpc.streaming(say, request)
        .await
        .map(axum::body::Body::new)
        .into_response()
}

fn app(source: &JwtSource) -> App {
    let validator = Validator::builder(source.clone())
        .audience(AUDIENCE)
        .build()
        .unwrap();
    let policy = GrpcPolicy::deny_by_default()
        .method("/echo.Echo/Say", Allow::trust_domain("x").unwrap())
        .method("/echo.Echo/Talk", Allow::trust_domain("x").unwrap())
        .build()
        .unwrap();
    let router = axum::Router::new()
        .route("/echo.Echo/Say", post(unary))
        .route("/echo.Echo/Talk", post(streaming));
    BoxCloneSyncService::new(ValidateJwtSvidLayer::required(validator, policy).layer(router))
}

async fn deployment() -> (FakeAgent, JwtSource, App) {
    let agent = agent::start("x").await;
    let source = agent.source().await.unwrap();
    let app = app(&source);
    (agent, source, app)
}

/// Makes one unary and one streaming call.
async fn both_work<S, B>(service: S)
where
    S: tonic::client::GrpcService<tonic::body::Body, ResponseBody = B> + Clone,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    assert_eq!(
        say(service.clone(), "hello").await.unwrap(),
        "spiffe://x/workload: hello"
    );
    let mut grpc = tonic::client::Grpc::new(service);
    grpc.ready().await.map_err(Into::into).unwrap();
    let words = stream::iter(["one", "two", "three"].map(str::to_owned));
    let path = PathAndQuery::from_static("/echo.Echo/Talk");
    let codec = ProstCodec::<String, String>::default();
    let answers = grpc
        .streaming(Request::new(words), path, codec)
        .await
        .unwrap()
        .into_inner();
    let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    assert_eq!(answers[2], "spiffe://x/workload: three");
    assert_eq!(answers.len(), 3);
}

async fn say<S, B>(service: S, text: &str) -> Result<String, Status>
where
    S: tonic::client::GrpcService<tonic::body::Body, ResponseBody = B>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let mut grpc = tonic::client::Grpc::new(service);
    grpc.ready()
        .await
        .map_err(|error| Status::from_error(error.into()))?;
    let path = PathAndQuery::from_static("/echo.Echo/Say");
    let codec = ProstCodec::<String, String>::default();
    Ok(grpc
        .unary(Request::new(text.to_owned()), path, codec)
        .await?
        .into_inner())
}

#[tokio::test]
async fn channel_signs_over_plaintext() {
    let (_agent, source, app) = deployment().await;
    let host = Host::serve(None, app).await;
    let channel = Endpoint::new(host.origin())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let audience = || {
        Audience::fixed(AUDIENCE)
            .assume_origin(&host.origin())
            .unwrap()
    };
    let client = AddJwtSvid::new(channel.clone(), source.clone(), audience());
    both_work(client.clone().allow_plaintext(Plaintext::Loopback)).await;
    // Plaintext is not allowed here, so no call is sent.
    let status = say(client, "hello").await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(
        say(channel, "hello").await.unwrap_err().code(),
        Code::Unauthenticated
    );
}

#[tokio::test]
async fn channel_signs_over_tls() {
    let ca = Ca::new();
    let (_agent, source, app) = deployment().await;
    let host = Host::serve(Some(&ca), app).await;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca.pem()));
    let endpoint = Endpoint::new(host.origin())
        .unwrap()
        .tls_config(tls)
        .unwrap();
    let channel = endpoint.connect().await.unwrap();
    let audience = Audience::fixed(AUDIENCE)
        .assume_origin(&host.origin())
        .unwrap();
    both_work(AddJwtSvid::new(channel, source, audience)).await;
}

#[cfg(unix)]
#[tokio::test]
async fn channel_signs_over_a_unix_socket() {
    let (_agent, source, app) = deployment().await;
    let directory = TempDir::new();
    let path = Arc::new(directory.join("echo.sock"));
    let listener = UnixListener::bind(&*path).unwrap();
    let router = axum::Router::new().fallback_service(app);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let at = path.clone();
    let connect = move |_: Uri| {
        let at = at.clone();
        async move {
            tokio::net::UnixStream::connect(&*at)
                .await
                .map(TokioIo::new)
        }
    };
    let channel =
        Endpoint::from_static("http://echo").connect_with_connector_lazy(service_fn(connect));
    let audience = Audience::fixed(AUDIENCE)
        .assume_origin("http://echo")
        .unwrap();
    let client = AddJwtSvid::new(channel, source, audience);
    both_work(client.allow_plaintext(Plaintext::UnixSocket)).await;
}

#[tokio::test]
async fn balanced_channel_signs() {
    let (_agent, source, app) = deployment().await;
    let hosts = [
        Host::serve(None, app.clone()).await,
        Host::serve(None, app).await,
    ];
    let channel = Channel::balance_list(
        hosts
            .iter()
            .map(|host| Endpoint::new(host.origin_at("127.0.0.1")).unwrap()),
    );
    // One audience for all servers: the assumed origin is the name of the service.
    let audience = Audience::fixed(AUDIENCE)
        .assume_origin("http://localhost")
        .unwrap();
    let client = AddJwtSvid::new(channel, source, audience).allow_plaintext(Plaintext::Loopback);
    for _ in 0..20 {
        both_work(client.clone()).await;
    }
    assert!(hosts.iter().all(|host| !host.seen().is_empty()));
}

#[tokio::test]
async fn balanced_channel_and_interceptor_sign_over_tls() {
    let ca = Ca::new();
    let (_agent, source, app) = deployment().await;
    let hosts = [
        Host::serve(Some(&ca), app.clone()).await,
        Host::serve(Some(&ca), app).await,
    ];
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca.pem()));
    let channel = Channel::balance_list(hosts.iter().map(|host| {
        let endpoint = Endpoint::new(host.origin()).unwrap();
        endpoint.tls_config(tls.clone()).unwrap()
    }));
    let audience = || {
        Audience::fixed(AUDIENCE)
            .assume_origin("https://localhost")
            .unwrap()
    };
    let client = AddJwtSvid::new(channel.clone(), source.clone(), audience());
    for _ in 0..20 {
        both_work(client.clone()).await;
    }
    // The token is cached now, so the interceptor has one.
    let interceptor = JwtSvidInterceptor::new(source, audience());
    let client = tonic::service::interceptor::InterceptedService::new(channel, interceptor);
    for _ in 0..20 {
        both_work(client.clone()).await;
    }
    for host in hosts {
        let seen = host.seen();
        assert!(!seen.is_empty() && seen.iter().all(|seen| seen.tls));
    }
}

#[tokio::test]
async fn interceptor_uses_cached_tokens() {
    let (_agent, source, app) = deployment().await;
    let host = Host::serve(None, app).await;
    let channel = Endpoint::new(host.origin())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let audience = Audience::fixed(AUDIENCE)
        .assume_origin(&host.origin())
        .unwrap();
    let cache = SvidCache::from(source);
    let interceptor =
        JwtSvidInterceptor::new(cache.clone(), audience).allow_plaintext(Plaintext::Loopback);
    let client = tonic::service::interceptor::InterceptedService::new(channel, interceptor);
    // Without a cached token the interceptor fails, because it cannot wait.
    let status = say(client.clone(), "hello").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let _warm = cache
        .keep_warm([SvidRequest::new([AUDIENCE]).unwrap()])
        .unwrap();
    for _ in 0..100 {
        if say(client.clone(), "hello").await.is_ok() {
            break;
        }
        tokio::time::sleep(millis(20)).await;
    }
    assert_eq!(
        say(client, "hello").await.unwrap(),
        "spiffe://x/workload: hello"
    );
}

#[tokio::test]
async fn interceptor_has_the_options_of_the_layer() {
    use tonic::service::Interceptor;
    let bench = Bench::new();
    let audience = Audience::fixed(AUDIENCE).assume_origin("https://echo");
    let cache = bench.cache.clone();
    let audience = audience.unwrap().spiffe_id("spiffe://x/b".parse().unwrap());
    let as_b = JwtSvidInterceptor::new(cache, audience);
    let asked = SvidRequest::new([AUDIENCE]).unwrap();
    let asked = asked.with_spiffe_id("spiffe://x/b".parse().unwrap());
    let header = bench.cache.header(&asked).await.unwrap();
    let request = || {
        let mut request = Request::new(());
        let end_user = "Bearer end-user".parse().unwrap();
        request.metadata_mut().insert("authorization", end_user);
        request
    };

    let name = http::HeaderName::from_static("x-workload");
    let sent = as_b.clone().header(name).call(request()).unwrap();
    let sent = sent.metadata();
    assert_eq!(sent.get("authorization").unwrap(), "Bearer end-user");
    assert_eq!(
        sent.get("x-workload").unwrap().as_bytes(),
        header.as_bytes()
    );

    let mut replacing = as_b.clone().on_existing(OnExisting::Replace);
    let sent = replacing.call(request()).unwrap();
    let sent = sent.metadata().get("authorization").unwrap();
    assert_eq!(sent.as_bytes(), header.as_bytes());

    let mut strict = as_b.on_existing(OnExisting::Error);
    assert!(strict.call(request()).is_err());
}

#[tokio::test]
async fn issuer_errors_become_statuses() {
    let agent = agent::start("x").await;
    let source = agent.source().await.unwrap();
    let host = Host::serve(None, app(&source)).await;
    let channel = Endpoint::new(host.origin())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let audience = Audience::fixed(AUDIENCE)
        .assume_origin(&host.origin())
        .unwrap();
    let client = AddJwtSvid::new(channel, source, audience).allow_plaintext(Plaintext::Loopback);
    let denied = Fault::Refuse(tower_spiffe::token::GrpcCode::PermissionDenied);
    agent.fail_call(AgentCall::FetchJwtSvid, denied);
    let status = say(client.clone(), "hello").await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    agent.recover();
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert!(say(client, "hello").await.is_ok());
}

#[tokio::test]
async fn token_is_refreshed_after_unauthenticated() {
    // The server trusts another agent, and rejects these tokens.
    let (_other, _source, app) = deployment().await;
    let host = Host::serve(None, app).await;
    let bench =
        Bench::with(|call| Answer::Token(crate::support::Token::new(call.request, call.now, 300)));
    let channel = Endpoint::new(host.origin())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let audience = Audience::fixed(AUDIENCE)
        .assume_origin(&host.origin())
        .unwrap();
    let client = AddJwtSvid::new(channel, bench.cache.clone(), audience);
    let status = say(client.allow_plaintext(Plaintext::Loopback), "hello")
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(bench.cache.stats().rejections, 1);
}
