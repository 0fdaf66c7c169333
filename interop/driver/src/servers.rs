//! axum and tonic servers behind our layer.

use axum::extract::Request;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_web::GrpcWebLayer;
use tower::Layer as _;
use tower_spiffe::server::{AllowCallersLayer, EndAtExpiryLayer};
use tower_spiffe::{Allow, GrpcPolicy, JwtSource, ValidateJwtSvidLayer, Validator, VerifiedSvid};

use crate::{Error, Made, text};

/// Serves callers of the agent's trust domain, by HTTP/1.1 and HTTP/2 without TLS, or by gRPC and
/// gRPC-Web.
pub(crate) async fn serve(made: &Made, command: &Value) -> Result<Value, Error> {
    let agent = made.agent(command)?;
    let source = agent.source().await?;
    let callers = agent.issuer().trust_domain().name().to_owned();
    let audience = text(command, "audience")?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    match text(command, "kind")? {
        "http" => serve_http(listener, &source, &callers, audience)?,
        "grpc" => serve_grpc(listener, &source, &callers, audience)?,
        other => return Err(format!("unknown kind {other:?}").into()),
    }
    Ok(json!({ "address": address }))
}

fn serve_http(
    listener: TcpListener,
    source: &JwtSource,
    callers: &str,
    audience: &str,
) -> Result<(), Error> {
    let validator = Validator::builder(source.clone())
        .audience(audience)
        .build()?;
    let ops = AllowCallersLayer::new(Allow::id(format!("spiffe://{callers}/ops").as_str())?);
    let router = Router::new()
        .route("/who", get(who))
        .route("/echo", post(async |_: VerifiedSvid, body: String| body))
        .route("/ops", get(who).layer(ops.clone()))
        // Calls of the Connect protocol, whose messages are texts in JSON.
        .route("/interop.Interop/Who", post(greet))
        .route("/interop.Interop/Ops", post(greet).layer(ops));
    let layer = ValidateJwtSvidLayer::required(validator, Allow::trust_domain(callers)?);
    let app = axum::ServiceExt::<Request>::into_make_service(layer.layer(router));
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok(())
}

async fn who(caller: VerifiedSvid) -> Json<Value> {
    Json(json!({ "id": caller.spiffe_id().to_string() }))
}

async fn greet(caller: VerifiedSvid, Json(greeting): Json<String>) -> Json<String> {
    Json(format!("{greeting} {}", caller.spiffe_id()))
}

fn serve_grpc(
    listener: TcpListener,
    source: &JwtSource,
    callers: &str,
    audience: &str,
) -> Result<(), Error> {
    let validator = Validator::builder(source.clone())
        .audience(audience)
        .build()?;
    let everyone = Allow::trust_domain(callers)?;
    let policy = GrpcPolicy::deny_by_default()
        .method("/interop.Interop/Who", everyone.clone())
        .method("/interop.Interop/List", everyone.clone())
        .method("/interop.Interop/Wait", everyone)
        .method(
            "/interop.Interop/Ops",
            Allow::id(format!("spiffe://{callers}/ops").as_str())?,
        )
        .public("/interop.Interop/Version")
        .build()?;
    let server = Server::builder()
        .accept_http1(true)
        .layer(ValidateJwtSvidLayer::required(validator.clone(), policy))
        .layer(EndAtExpiryLayer::new(&validator))
        .layer(GrpcWebLayer::new())
        .add_service(grpc::Interop);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Ok(())
}

/// The service `interop.Interop`; its messages are `google.protobuf.StringValue`.
mod grpc {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio_stream::Stream;
    use tokio_stream::StreamExt as _;
    use tonic::body::Body;
    use tonic::server::NamedService;
    use tonic::{Request, Response, Status};
    use tonic_prost::ProstCodec;
    use tower::service_fn;
    use tower_spiffe::VerifiedSvid;

    type Texts = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

    #[derive(Clone)]
    pub(super) struct Interop;

    impl NamedService for Interop {
        const NAME: &'static str = "interop.Interop";
    }

    impl tower::Service<http::Request<Body>> for Interop {
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
                    "/interop.Interop/Who" | "/interop.Interop/Ops" => {
                        grpc.unary(service_fn(who), request).await
                    }
                    "/interop.Interop/List" => {
                        grpc.server_streaming(service_fn(list), request).await
                    }
                    "/interop.Interop/Wait" => {
                        grpc.server_streaming(service_fn(wait), request).await
                    }
                    "/interop.Interop/Version" => grpc.unary(service_fn(version), request).await,
                    _ => Status::unimplemented("unknown method").into_http(),
                })
            })
        }
    }

    async fn who(request: Request<String>) -> Result<Response<String>, Status> {
        let caller = VerifiedSvid::from_request(&request)?;
        let greeting = request.get_ref();
        Ok(Response::new(format!("{greeting} {}", caller.spiffe_id())))
    }

    async fn version(_: Request<String>) -> Result<Response<String>, Status> {
        Ok(Response::new("1".to_owned()))
    }

    async fn list(request: Request<String>) -> Result<Response<Texts>, Status> {
        let caller = VerifiedSvid::from_request(&request)?;
        let id = caller.spiffe_id().to_string();
        let texts = ["first".to_owned(), "second".to_owned(), id].map(Ok);
        Ok(Response::new(Box::pin(tokio_stream::iter(texts))))
    }

    /// A stream that the handler does not end.
    async fn wait(_: Request<String>) -> Result<Response<Texts>, Status> {
        let texts = tokio_stream::iter([Ok("first".to_owned())]).chain(tokio_stream::pending());
        Ok(Response::new(Box::pin(texts)))
    }
}
