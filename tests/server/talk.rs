//! A handwritten gRPC service with one method of each kind, and its client.
//!
//! `t.Talk` has `Say` (one word, returns the caller's ID), `Listen` (words until the client ends,
//! returned joined), `Tell` (a tick every 50 ms until the client disconnects) and `Chat` (each word is
//! returned at once).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codec::Streaming;
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};
use tower_spiffe::verify::VerifiedSvid;

type Codec = ProstCodec<String, String>;
pub type Words = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

#[derive(Clone)]
pub struct Talk;

impl NamedService for Talk {
    const NAME: &'static str = "t.Talk";
}

async fn say(request: Request<String>) -> Result<Response<String>, Status> {
    let caller = VerifiedSvid::from_request(&request)?;
    Ok(Response::new(format!(
        "{} says {}",
        caller.spiffe_id(),
        request.into_inner()
    )))
}

async fn listen(request: Request<Streaming<String>>) -> Result<Response<String>, Status> {
    let caller = VerifiedSvid::from_request(&request)?;
    let mut all = caller.spiffe_id().to_string();
    let mut words = request.into_inner();
    while let Some(word) = words.message().await? {
        all.push(' ');
        all.push_str(&word);
    }
    Ok(Response::new(all))
}

async fn tell(request: Request<String>) -> Result<Response<Words>, Status> {
    VerifiedSvid::from_request(&request)?;
    let ticks = tokio::time::interval(Duration::from_millis(50));
    let ticks = tokio_stream::wrappers::IntervalStream::new(ticks);
    Ok(Response::new(Box::pin(
        ticks.map(|_| Ok("tick".to_owned())),
    )))
}

async fn chat(request: Request<Streaming<String>>) -> Result<Response<Words>, Status> {
    let caller = VerifiedSvid::from_request(&request)?;
    let answers = request
        .into_inner()
        .map(move |word| Ok(format!("{} says {}", caller.spiffe_id().path(), word?)));
    Ok(Response::new(Box::pin(answers)))
}

async fn open(_: Request<String>) -> Result<Response<String>, Status> {
    Ok(Response::new("open".to_owned()))
}

impl Service<http::Request<Body>> for Talk {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Codec::default());
            Ok(match request.uri().path() {
                "/t.Talk/Say" => grpc.unary(service_fn(say), request).await,
                "/t.Talk/Open" => grpc.unary(service_fn(open), request).await,
                "/t.Talk/Listen" => grpc.client_streaming(service_fn(listen), request).await,
                "/t.Talk/Tell" => grpc.server_streaming(service_fn(tell), request).await,
                "/t.Talk/Chat" => grpc.streaming(service_fn(chat), request).await,
                _ => Status::unimplemented("unknown method").into_http(),
            })
        })
    }
}

/// The same service with another name.
#[derive(Clone)]
pub struct Other;

impl NamedService for Other {
    const NAME: &'static str = "t.Other";
}

impl Service<http::Request<Body>> for Other {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = <Talk as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path().replace(Self::NAME, Talk::NAME);
        *request.uri_mut() = path.parse().unwrap();
        Talk.call(request)
    }
}

/// The client, with or without a token.
pub struct Talker {
    grpc: tonic::client::Grpc<Channel>,
    authorization: Option<String>,
}

impl Talker {
    pub fn new(channel: Channel, authorization: Option<String>) -> Self {
        Self {
            grpc: tonic::client::Grpc::new(channel),
            authorization,
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(value) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", value.parse().unwrap());
        }
        request
    }

    fn path(method: &str) -> PathAndQuery {
        format!("/t.Talk/{method}").parse().unwrap()
    }

    pub async fn say(&mut self, word: &str) -> Result<String, Status> {
        self.unary("Say", word).await
    }

    pub async fn unary(&mut self, method: &str, word: &str) -> Result<String, Status> {
        self.call(Self::path(method), word).await
    }

    pub async fn call(&mut self, path: PathAndQuery, word: &str) -> Result<String, Status> {
        self.grpc.ready().await.unwrap();
        let request = self.request(word.to_owned());
        let answer = self.grpc.unary(request, path, Codec::default()).await?;
        Ok(answer.into_inner())
    }

    pub async fn listen(&mut self, words: &[&str]) -> Result<String, Status> {
        self.grpc.ready().await.unwrap();
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let request = self.request(tokio_stream::iter(words));
        let path = Self::path("Listen");
        let answer = self
            .grpc
            .client_streaming(request, path, Codec::default())
            .await?;
        Ok(answer.into_inner())
    }

    pub async fn tell(&mut self) -> Result<Streaming<String>, Status> {
        self.grpc.ready().await.unwrap();
        let request = self.request(String::new());
        let path = Self::path("Tell");
        let answer = self
            .grpc
            .server_streaming(request, path, Codec::default())
            .await?;
        Ok(answer.into_inner())
    }

    pub async fn chat(
        &mut self,
        words: impl Stream<Item = String> + Send + 'static,
    ) -> Result<Streaming<String>, Status> {
        self.grpc.ready().await.unwrap();
        let request = self.request(words);
        let answer = self
            .grpc
            .streaming(request, Self::path("Chat"), Codec::default())
            .await?;
        Ok(answer.into_inner())
    }
}
