//! Both layers end to end: axum and tonic servers, over TCP and a Unix socket.

use axum::routing::{get, post};
use bytes::Bytes;
use http::{Request, Response};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_spiffe::client::Plaintext;
use tower_spiffe::{
    AddJwtSvidLayer, Allow, Audience, JwtSource, ValidateJwtSvidLayer, Validator, VerifiedSvid,
};
use tower_spiffe_test_support::loopback::{At, Doors, send};

use crate::{AUDIENCE, source};

const ORIGIN: &str = "http://reports.test";

/// A client of one listener and one HTTP version.
pub(crate) type Client = BoxCloneSyncService<Request<Bytes>, Response<Bytes>, BoxError>;

/// Returns the layer that allows the source's trust domain.
fn validate(source: &JwtSource, trust_domain: &str) -> ValidateJwtSvidLayer {
    let validator = Validator::builder(source.clone()).audience(AUDIENCE);
    let policy = Allow::trust_domain(trust_domain).unwrap();
    ValidateJwtSvidLayer::required(validator.build().unwrap(), policy)
}

async fn trust_domain(source: &JwtSource) -> String {
    let svid = source.fetch_jwt_svid([AUDIENCE]).await.unwrap();
    svid.spiffe_id().trust_domain_name().to_owned()
}

/// Returns an axum server that responds with its caller's ID.
pub(crate) async fn axum_server(source: &JwtSource) -> At {
    let layer = validate(source, &trust_domain(source).await);
    let whoami = async |caller: VerifiedSvid| caller.spiffe_id().to_string();
    let app = axum::Router::new().route("/", get(whoami)).layer(layer);
    let doors = Doors::open().await;
    tokio::spawn(axum::serve(doors.tcp, app.clone()).into_future());
    #[cfg(unix)]
    tokio::spawn(axum::serve(doors.unix, app).into_future());
    doors.at
}

/// Clients without tokens: each listener, HTTP/1.1 and HTTP/2.
fn doors(at: &At) -> Vec<Client> {
    let mut clients = Vec::new();
    for http2 in [false, true] {
        let address = at.tcp;
        clients.push(client(http2, move || TcpStream::connect(address)));
        #[cfg(unix)]
        {
            let path = at.unix.clone();
            clients.push(client(http2, move || UnixStream::connect(path.clone())));
        }
    }
    clients
}

fn client<C, F, I>(http2: bool, connect: C) -> Client
where
    C: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = std::io::Result<I>> + Send + 'static,
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    BoxCloneSyncService::new(service_fn(move |mut request: Request<Bytes>| {
        let connecting = connect();
        async move {
            let path = request.uri().path().parse()?;
            *request.uri_mut() = path;
            Ok::<_, BoxError>(send(connecting.await?, http2, request).await)
        }
    }))
}

fn sign(source: &JwtSource) -> AddJwtSvidLayer {
    let audience = Audience::fixed(AUDIENCE).for_origin(ORIGIN).unwrap();
    AddJwtSvidLayer::new(source.clone(), audience).allow_plaintext(Plaintext::Any)
}

/// Clients with tokens: each listener, HTTP/1.1 and HTTP/2.
pub(crate) fn signed(source: &JwtSource, at: &At) -> Vec<Client> {
    let layer = sign(source);
    let clients = doors(at).into_iter();
    clients
        .map(|client| BoxCloneSyncService::new(layer.layer(client).map_err(Into::into)))
        .collect()
}

/// Returns status and text of one request.
pub(crate) async fn ask(
    client: &Client,
    authorization: Option<&str>,
) -> Result<(u16, String), BoxError> {
    let mut request = Request::get(format!("{ORIGIN}/"));
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    let mut client = client.clone();
    let response = client
        .ready()
        .await?
        .call(request.body(Bytes::new())?)
        .await?;
    let text = String::from_utf8(response.body().to_vec())?;
    Ok((response.status().as_u16(), text))
}

#[tokio::test]
async fn live_axum_server_returns_its_caller() {
    let Some(source) = source("live_axum_server_returns_its_caller").await else {
        return;
    };
    let at = axum_server(&source).await;
    let me = source.fetch_jwt_svid([AUDIENCE]).await.unwrap();
    for client in signed(&source, &at) {
        for _ in 0..2 {
            let (status, text) = ask(&client, None).await.unwrap();
            assert_eq!((status, text.as_str()), (200, me.spiffe_id().as_str()));
        }
    }
    let other = source.fetch_jwt_svid(["another"]).await.unwrap();
    let other = format!("Bearer {}", other.token());
    let forged = format!("Bearer {}x", me.token());
    for client in doors(&at) {
        for authorization in [None, Some(&*other), Some(&*forged)] {
            let (status, _) = ask(&client, authorization).await.unwrap();
            assert_eq!(status, 401);
        }
    }
}

#[tokio::test]
async fn live_tonic_server_returns_its_caller() {
    let Some(source) = source("live_tonic_server_returns_its_caller").await else {
        return;
    };
    let layer = validate(&source, &trust_domain(&source).await);
    let router = axum::Router::new().route("/live.Live/WhoAmI", post(who_am_i));
    let server = Server::builder()
        .layer(layer)
        .add_routes(Routes::from(router));
    let doors = Doors::open().await;
    let tcp = tokio_stream::wrappers::TcpListenerStream::new(doors.tcp);
    let at = doors.at;
    #[cfg(unix)]
    {
        let unix = tokio_stream::wrappers::UnixListenerStream::new(doors.unix);
        tokio::spawn(server.clone().serve_with_incoming(unix));
    }
    tokio::spawn(server.serve_with_incoming(tcp));

    let me = source.fetch_jwt_svid([AUDIENCE]).await.unwrap();
    // A channel adds the origin inside the layer.
    let audience = Audience::fixed(AUDIENCE).assume_origin(ORIGIN).unwrap();
    let layer = AddJwtSvidLayer::new(source.clone(), audience).allow_plaintext(Plaintext::Any);
    for channel in channels(&at).await {
        let signed = layer.layer(channel.clone());
        for _ in 0..2 {
            let said = whoami(signed.clone()).await.unwrap();
            assert_eq!(said, me.spiffe_id().as_str());
        }
        let error = whoami(channel).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated);
    }
}

async fn channels(at: &At) -> Vec<Channel> {
    let endpoint = Endpoint::from_static(ORIGIN);
    let address = at.tcp;
    let tcp = service_fn(move |_| async move {
        TcpStream::connect(address)
            .await
            .map(hyper_util::rt::TokioIo::new)
    });
    #[cfg(unix)]
    let path = at.unix.clone();
    #[cfg(unix)]
    let unix = service_fn(move |_| {
        let path = path.clone();
        async move {
            UnixStream::connect(path)
                .await
                .map(hyper_util::rt::TokioIo::new)
        }
    });
    vec![
        endpoint.connect_with_connector(tcp).await.unwrap(),
        #[cfg(unix)]
        endpoint.connect_with_connector(unix).await.unwrap(),
    ]
}

async fn who_am_i(request: axum::extract::Request) -> axum::response::Response {
    let handler = service_fn(|request: tonic::Request<String>| async move {
        let caller = VerifiedSvid::from_request(&request)?;
        Ok::<_, Status>(tonic::Response::new(caller.spiffe_id().to_string()))
    });
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
    grpc.unary(handler, request)
        .await
        .map(axum::body::Body::new)
}

async fn whoami<S, B>(service: S) -> Result<String, Status>
where
    S: tonic::client::GrpcService<tonic::body::Body, ResponseBody = B>,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let mut grpc = tonic::client::Grpc::new(service);
    let ready = grpc.ready().await;
    ready.map_err(|error| Status::unknown(error.into().to_string()))?;
    let path = PathAndQuery::from_static("/live.Live/WhoAmI");
    let codec = ProstCodec::<String, String>::default();
    let request = tonic::Request::new(String::new());
    Ok(grpc.unary(request, path, codec).await?.into_inner())
}
