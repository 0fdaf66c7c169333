//! A tonic server with a policy for each method: `cargo run --example server_tonic`.
//!
//! It uses the agent at `SPIFFE_ENDPOINT_SOCKET`, or starts its own (`testing::FakeAgent`). It
//! sends requests to itself, and ends. In production the source is `JwtSource::new().await?`, and
//! `tonic-prost-build` generates the service; here it is written by hand, at the end of this file.

#![allow(clippy::print_stdout, reason = "the output is for users")]

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Request, Response, Status};
use tower_spiffe::server::{Allow, EndAtExpiryLayer, GrpcPolicy, ValidateJwtSvidLayer};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{JwtSource, Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";

async fn serve(listener: TcpListener, source: JwtSource, callers: String) -> Result<(), Error> {
    let validator = Validator::builder(source).audience(REPORTS).build()?;
    let policy = GrpcPolicy::deny_by_default()
        .method("/r.Reports/Get", Allow::trust_domain(&callers)?)
        .method("/r.Reports/Delete", Allow::id(ops(&callers).as_str())?)
        .public("/r.Reports/Version")
        .build()?;
    Server::builder()
        // Ends streams when the caller's token expires.
        .layer(ValidateJwtSvidLayer::required(validator.clone(), policy))
        .layer(EndAtExpiryLayer::new(&validator))
        .add_service(by_hand::Reports)
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}

/// The only caller that is allowed to delete.
fn ops(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}/ops")
}

/// A handler, as in any tonic service.
async fn get(request: Request<String>) -> Result<Response<String>, Status> {
    let caller = VerifiedSvid::from_request(&request)?;
    Ok(Response::new(format!(
        "{} for {}",
        request.get_ref(),
        caller.spiffe_id()
    )))
}

async fn delete(request: Request<String>) -> Result<Response<String>, Status> {
    let caller = VerifiedSvid::from_request(&request)?;
    Ok(Response::new(format!(
        "{} deleted by {}",
        request.get_ref(),
        caller.spiffe_id()
    )))
}

async fn version(_: Request<String>) -> Result<Response<String>, Status> {
    Ok(Response::new("1".to_owned()))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (source, agent) = source().await?;
    let me = source.get_jwt_svid([REPORTS]).await?;
    let callers = me.spiffe_id().trust_domain_name().to_owned();
    let ops = ops(&callers);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = Endpoint::try_from(format!("http://{}", listener.local_addr()?))?;
    tokio::spawn(serve(listener, source, callers));
    let channel = endpoint.connect().await?;

    let ours = Some((me.spiffe_id().as_str(), me.token().to_owned()));
    let may_we_delete = match me.spiffe_id().as_str() == ops {
        true => Code::Ok,
        false => Code::PermissionDenied,
    };
    let mut calls = vec![
        (ours.clone(), "Get", Code::Ok),
        (ours.clone(), "Delete", may_we_delete),
        (ours, "NotInThePolicy", Code::PermissionDenied),
        (None, "Get", Code::Unauthenticated),
        (None, "Version", Code::Ok),
    ];
    match agent {
        Some(agent) => {
            let token = agent.token(&ops, REPORTS);
            calls.push((Some((&ops, token)), "Delete", Code::Ok));
        }
        None => println!(
            "skipped: a call of {ops}, because a real agent issues only this workload's tokens"
        ),
    }
    for (caller, method, expected) in calls {
        let mut request = Request::new("march".to_owned());
        let mut name = "anonymous";
        if let Some((id, token)) = caller {
            name = id;
            let token = format!("Bearer {token}");
            request
                .metadata_mut()
                .insert("authorization", token.parse()?);
        }
        let answer = by_hand::call(channel.clone(), method, request).await;
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        let text = answer.unwrap_or_else(|status| status.message().to_owned());
        println!("{name}: {method} -> {code:?}: {text}");
        if code != expected {
            return Err(format!("expected {expected:?}").into());
        }
    }
    Ok(())
}

/// Returns a source on the agent at `SPIFFE_ENDPOINT_SOCKET`, or on an embedded agent if it is not set.
async fn source() -> Result<(JwtSource, Option<FakeAgent>), Error> {
    if let Some(socket) = std::env::var_os("SPIFFE_ENDPOINT_SOCKET") {
        println!("Workload API: the agent at {}", socket.display());
        return Ok((JwtSource::new().await?, None));
    }
    let agent = FakeAgent::start("example.org").await?;
    Ok((agent.source().await?, Some(agent)))
}

/// The code that `tonic-prost-build` would generate from a `.proto` file.
mod by_hand {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tonic::body::Body;
    use tonic::server::NamedService;
    use tonic::transport::Channel;
    use tonic::{Request, Status};
    use tonic_prost::ProstCodec;
    use tower::service_fn;

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
                    "/r.Reports/Delete" => grpc.unary(service_fn(super::delete), request).await,
                    "/r.Reports/Version" => grpc.unary(service_fn(super::version), request).await,
                    _ => Status::unimplemented("unknown method").into_http(),
                })
            })
        }
    }

    pub(super) async fn call(
        channel: Channel,
        method: &str,
        request: Request<String>,
    ) -> Result<String, Status> {
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let path = format!("/r.Reports/{method}").parse();
        let path = path.map_err(|_| Status::invalid_argument("no method"))?;
        let codec = ProstCodec::<String, String>::default();
        Ok(grpc.unary(request, path, codec).await?.into_inner())
    }
}
