//! Signs the unary and streaming calls of a tonic client: `cargo run --example client_tonic`.
//!
//! Uses the agent at `SPIFFE_ENDPOINT_SOCKET`, or starts its own (`testing::FakeAgent`). Calls a service
//! of its own. In production the source is `JwtSource::new().await?`, and `tonic-prost-build`
//! generates client and server; here they are written by hand, at the end of this file.

#![allow(clippy::print_stdout, reason = "the output is for users")]

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Request, Response, Status};
use tower_spiffe::client::JwtSvidInterceptor;
use tower_spiffe::client::Plaintext;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::token::SvidRequest;
use tower_spiffe::{AddJwtSvid, Allow, Audience, JwtSource, SvidCache};
use tower_spiffe::{GrpcPolicy, ValidateJwtSvidLayer, Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (source, _agent) = source().await?;
    let me = source.get_jwt_svid([REPORTS]).await?.spiffe_id().clone();
    let origin = serve(&source, me.trust_domain_name()).await?;
    // TLS, Unix sockets, load balancing, proxies and timeouts are configured on the channel. It
    // follows no redirects, and reconnects with the same token.
    let channel = Endpoint::try_from(origin.clone())?.connect().await?;

    // The layer cannot see where a channel connects to, so `assume_origin` names it. Retries go
    // outside, so that a retry after UNAUTHENTICATED gets a new token. HTTP/2 does not add sensitive
    // headers to its compression table.
    let audience = Audience::fixed(REPORTS).assume_origin(&origin)?;
    let signed = AddJwtSvid::new(channel.clone(), source.clone(), audience.clone());
    // Not needed for `https://`.
    let mut reports = by_hand::Client::new(signed.allow_plaintext(Plaintext::Loopback));

    let report = reports.get("march").await?;
    println!("Get -> {report}");
    expect(report == format!("march for {me}"))?;
    // A stream is signed when it starts, and may last longer than the token.
    let months = reports.list("2026").await?;
    println!("List -> {months:?}");
    expect(months == ["january", "february", "march"])?;

    let status = by_hand::Client::new(channel.clone()).get("march").await;
    let code = status.map_or_else(|status| status.code(), |_| Code::Ok);
    println!("Get without the layer -> {code:?}");
    expect(code == Code::Unauthenticated)?;

    // An interceptor, for clients that need one. It uses the cached token (`try_header`) and cannot wait
    // for a token. `keep_warm` keeps the token in the cache until `_warm` is dropped.
    let cache = SvidCache::from(&source);
    let _warm = cache.keep_warm([SvidRequest::new([REPORTS])?])?;
    let interceptor = JwtSvidInterceptor::new(source, audience);
    let interceptor = interceptor.allow_plaintext(Plaintext::Loopback);
    let mut reports = by_hand::Client::new(InterceptedService::new(channel, interceptor));
    let report = reports.get("april").await?;
    println!("Get with the interceptor -> {report}");
    expect(report == format!("april for {me}"))
}

fn expect(is_expected: bool) -> Result<(), Error> {
    is_expected
        .then_some(())
        .ok_or_else(|| "unexpected result".into())
}

async fn source() -> Result<(JwtSource, Option<FakeAgent>), Error> {
    if std::env::var_os("SPIFFE_ENDPOINT_SOCKET").is_some() {
        return Ok((JwtSource::new().await?, None));
    }
    let agent = FakeAgent::start("example.org").await?;
    Ok((agent.source().await?, Some(agent)))
}

/// Serves the reports to callers of a trust domain. Returns the origin.
async fn serve(source: &JwtSource, callers: &str) -> Result<String, Error> {
    let validator = Validator::builder(source.clone())
        .audience(REPORTS)
        .build()?;
    let callers = Allow::trust_domain(callers)?;
    let policy = GrpcPolicy::deny_by_default()
        .method("/r.Reports/Get", callers.clone())
        .method("/r.Reports/List", callers)
        .build()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    let server = Server::builder()
        .layer(ValidateJwtSvidLayer::required(validator, policy))
        .add_service(by_hand::Reports);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Ok(origin)
}

async fn get(request: Request<String>) -> Result<Response<String>, Status> {
    let caller = VerifiedSvid::from_request(&request)?
        .spiffe_id()
        .to_string();
    Ok(Response::new(format!("{} for {caller}", request.get_ref())))
}

async fn list(_: Request<String>) -> Result<Response<by_hand::Months>, Status> {
    let months = ["january", "february", "march"].map(|month| Ok(month.to_owned()));
    Ok(Response::new(tokio_stream::iter(months)))
}

/// The code that `tonic-prost-build` would generate from a `.proto` file.
mod by_hand {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tonic::body::Body;
    use tonic::client::GrpcService;
    use tonic::codegen::http::uri::PathAndQuery;
    use tonic::server::NamedService;
    use tonic::{Request, Status};
    use tonic_prost::ProstCodec;
    use tower::service_fn;

    pub(super) type Months = tokio_stream::Iter<std::array::IntoIter<Result<String, Status>, 3>>;

    pub(super) struct Client<S>(tonic::client::Grpc<S>);

    impl<S, B> Client<S>
    where
        S: GrpcService<Body, ResponseBody = B>,
        S::Error: Into<super::Error>,
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<super::Error>,
    {
        pub(super) fn new(service: S) -> Self {
            Self(tonic::client::Grpc::new(service))
        }

        async fn ready(&mut self) -> Result<(), Status> {
            let ready = self.0.ready().await;
            ready.map_err(|error| Status::from_error(error.into()))
        }

        pub(super) async fn get(&mut self, month: &str) -> Result<String, Status> {
            self.ready().await?;
            let request = Request::new(month.to_owned());
            let path = PathAndQuery::from_static("/r.Reports/Get");
            let codec = ProstCodec::<String, String>::default();
            Ok(self.0.unary(request, path, codec).await?.into_inner())
        }

        pub(super) async fn list(&mut self, year: &str) -> Result<Vec<String>, Status> {
            self.ready().await?;
            let request = Request::new(year.to_owned());
            let path = PathAndQuery::from_static("/r.Reports/List");
            let codec = ProstCodec::<String, String>::default();
            let mut months = self.0.server_streaming(request, path, codec).await?;
            let mut all = Vec::new();
            while let Some(month) = months.get_mut().message().await? {
                all.push(month);
            }
            Ok(all)
        }
    }

    #[derive(Clone)]
    pub(super) struct Reports;

    impl NamedService for Reports {
        const NAME: &'static str = "r.Reports";
    }

    impl tower::Service<http::Request<Body>> for Reports {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            Box::pin(async move {
                let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
                Ok(match request.uri().path() {
                    "/r.Reports/Get" => grpc.unary(service_fn(super::get), request).await,
                    "/r.Reports/List" => {
                        let list = service_fn(super::list);
                        grpc.server_streaming(list, request).await
                    }
                    _ => Status::unimplemented("unknown method").into_http(),
                })
            })
        }
    }
}
