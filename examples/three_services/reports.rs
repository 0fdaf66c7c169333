//! The second service, a tonic service, and its client. Only `edge` may call it; it calls `ledger`
//! with reqwest.
//!
//! Written by hand; `tonic-prost-build` would generate service and client from a `.proto` file.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use reqwest_middleware::ClientWithMiddleware;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;
use tower_spiffe::client::Plaintext;
use tower_spiffe::{AddJwtSvid, Allow, Audience, GrpcPolicy, JwtSource};
use tower_spiffe::{ValidateJwtSvidLayer, Validator, VerifiedSvid};

use crate::{EDGE, Error, LEDGER, REPORTS, client, seen};

const TODAY: &str = "/reports.Reports/Today";

/// Starts the service. Returns its origin.
pub(crate) async fn serve(source: JwtSource, ledger_at: &str) -> Result<String, Error> {
    // One source for the client ...
    let reports = Reports {
        ledger: client(source.clone(), REPORTS, ledger_at, LEDGER)?,
        entries: format!("{ledger_at}/entries"),
    };
    // ... and the server.
    let validator = Validator::builder(source).audience(REPORTS).build()?;
    let policy = GrpcPolicy::deny_by_default().method(TODAY, Allow::id(EDGE)?);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    let server = Server::builder()
        .layer(ValidateJwtSvidLayer::required(validator, policy.build()?))
        .add_service(reports);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Ok(origin)
}

#[derive(Clone)]
struct Reports {
    ledger: ClientWithMiddleware,
    entries: String,
}

impl Reports {
    async fn today(self, request: Request<()>) -> Result<Response<String>, Status> {
        let caller = VerifiedSvid::from_request(&request)?.spiffe_id().clone();
        let failed = |error: String| Status::unavailable(format!("the ledger: {error}"));
        let answer = crate::call(&self.ledger, &self.entries).await;
        match answer.map_err(|error| failed(error.to_string()))? {
            (200, further) => Ok(Response::new(seen(caller.as_str(), REPORTS) + &further)),
            (status, _) => Err(failed(status.to_string())),
        }
    }
}

impl NamedService for Reports {
    const NAME: &'static str = "reports.Reports";
}

impl tower::Service<http::Request<Body>> for Reports {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let reports = self.clone();
        Box::pin(async move {
            if request.uri().path() != TODAY {
                return Ok(Status::unimplemented("unknown method").into_http());
            }
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, ()>::default());
            let today = service_fn(|request| reports.clone().today(request));
            Ok(grpc.unary(today, request).await)
        })
    }
}

/// A client of the service with one identity.
#[derive(Clone)]
pub(crate) struct Client(AddJwtSvid<Channel>);

impl Client {
    pub(crate) fn new(source: JwtSource, me: &str, reports_at: &str) -> Result<Self, Error> {
        let channel = Endpoint::try_from(reports_at.to_owned())?.connect_lazy();
        let audience = Audience::fixed(REPORTS).assume_origin(reports_at)?;
        let signed = AddJwtSvid::new(channel, source, audience.spiffe_id(me.parse()?));
        Ok(Self(signed.allow_plaintext(Plaintext::Loopback)))
    }

    pub(crate) async fn today(&self) -> Result<String, Status> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone());
        grpc.ready().await.map_err(Status::from_error)?;
        let path = PathAndQuery::from_static(TODAY);
        let codec = ProstCodec::<(), String>::default();
        Ok(grpc
            .unary(Request::new(()), path, codec)
            .await?
            .into_inner())
    }
}
