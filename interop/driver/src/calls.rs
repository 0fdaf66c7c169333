//! Calls from the client layer to servers of other implementations.

use serde_json::{Value, json};
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;
use tower::{Service as _, ServiceExt as _};
use tower_spiffe::client::Plaintext;
use tower_spiffe::{AddJwtSvid, Audience, JwtSource};

use crate::{Error, text, text_or_none};

/// Calls a server with tokens for `audience`. Uses gRPC if there is a `method`.
pub(crate) async fn call(source: &JwtSource, command: &Value) -> Result<Value, Error> {
    let url = text(command, "url")?;
    let audience = text(command, "audience")?;
    match text_or_none(command, "method") {
        Some(method) => call_grpc(source, url, audience, method).await,
        None => call_http(source, url, audience, command).await,
    }
}

async fn call_http(
    source: &JwtSource,
    url: &str,
    audience: &str,
    command: &Value,
) -> Result<Value, Error> {
    let url: reqwest::Url = url.parse()?;
    let mut client = reqwest::Client::builder().no_proxy();
    if text_or_none(command, "http") == Some("2") {
        client = client.http2_prior_knowledge();
    }
    let audience = Audience::fixed(audience).for_origin(&url.origin().ascii_serialization())?;
    let mut client = AddJwtSvid::new(client.build()?, source.clone(), audience)
        .allow_plaintext(Plaintext::Loopback);
    let request = reqwest::Request::new(reqwest::Method::GET, url);
    let response = client.ready().await?.call(request).await?;
    let status = response.status().as_u16();
    Ok(json!({ "status": status, "body": response.text().await? }))
}

async fn call_grpc(
    source: &JwtSource,
    url: &str,
    audience: &str,
    method: &str,
) -> Result<Value, Error> {
    let channel = Endpoint::try_from(url.to_owned())?.connect().await?;
    let audience = Audience::fixed(audience).assume_origin(url)?;
    let signed =
        AddJwtSvid::new(channel, source.clone(), audience).allow_plaintext(Plaintext::Loopback);
    let mut grpc = tonic::client::Grpc::new(signed);
    grpc.ready().await?;
    let codec = ProstCodec::<String, String>::default();
    let answer = grpc
        .unary(
            tonic::Request::new("hello".to_owned()),
            method.parse()?,
            codec,
        )
        .await;
    Ok(match answer {
        Ok(answer) => json!({ "code": 0, "body": answer.into_inner() }),
        Err(status) => json!({ "code": i32::from(status.code()), "body": status.message() }),
    })
}
