//! A plain hyper server and a proxy, with the layer.

use std::convert::Infallible;
use std::future::Future;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tower::{Layer, Service, service_fn};
use tower_spiffe::server::{Allow, CallerState, Rejection, ValidateJwtSvidLayer};

use crate::loopback::{At, Doors, get};
use crate::support::{OPS, WEB, World, bearer};

/// Serves over TCP and a Unix socket, in the HTTP version that the client uses.
pub async fn serve<S, B>(service: S) -> At
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + std::fmt::Debug,
    S::Future: Future + Send + 'static,
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let doors = Doors::open().await;
    let service = TowerToHyperService::new(service);
    #[cfg(unix)]
    {
        let service = service.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = doors.unix.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    }
    tokio::spawn(async move {
        while let Ok((stream, _)) = doors.tcp.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let builder = Builder::new(TokioExecutor::new());
                let _ = builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    doors.at
}

pub async fn who(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let state = CallerState::from_extensions(request.extensions()).and_then(CallerState::verified);
    let name = state.map_or("no caller".to_owned(), |caller| {
        caller.spiffe_id().to_string()
    });
    Ok(Response::new(Full::from(name)))
}

fn required(world: &World) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap())
}

#[tokio::test]
async fn plain_hyper_server_is_protected() {
    let world = World::new();
    let at = serve(required(&world).layer(service_fn(who))).await;
    assert_eq!(at.status(get("/", None)).await, 401);
    assert_eq!(at.status(get("/", Some(&bearer("a.b.c")))).await, 401);
    assert_eq!(at.status(get("/", Some(&world.bearer(OPS)))).await, 403);
    assert_eq!(
        at.text(get("/", Some(&world.bearer(WEB)))).await,
        (200, WEB.to_owned())
    );
}

#[tokio::test]
async fn proxy_builds_its_rejections() {
    let world = World::new();
    let upstream = serve(service_fn(|request: Request<Incoming>| async move {
        let has_token = request.headers().contains_key(AUTHORIZATION);
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let answer = format!("{} bytes, with a token: {has_token}", body.len());
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(answer)))
    }))
    .await;

    let client: Client<HttpConnector, Incoming> =
        Client::builder(TokioExecutor::new()).build_http();
    let proxy = service_fn(move |mut request: Request<Incoming>| {
        let path = request.uri().path().to_owned();
        *request.uri_mut() = format!("http://{}{path}", upstream.tcp).parse().unwrap();
        *request.version_mut() = http::Version::HTTP_11;
        let answer = client.request(request);
        async move { Ok::<_, Infallible>(answer.await.unwrap().map(Either::Left)) }
    });
    let layer = required(&world).on_reject(|rejection: &Rejection, _: &http::request::Parts| {
        rejection.response_with(Either::<Incoming, _>::Right(Full::<Bytes>::from("no\n")))
    });
    let at = serve(layer.layer(proxy)).await;

    let mut request = get("/x", Some(&world.bearer(WEB)));
    *request.method_mut() = http::Method::POST;
    *request.body_mut() = Bytes::from_static(b"12345");
    let answer = at.text(request).await;
    assert_eq!(answer, (200, "5 bytes, with a token: false".to_owned()));
    assert_eq!(at.text(get("/x", None)).await, (401, "no\n".to_owned()));
}
