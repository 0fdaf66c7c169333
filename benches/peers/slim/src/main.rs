//! Sends requests through the layer of `agntcy-slim-auth` and prints the elapsed time.
//!
//! Reads one value per line: audience, JWK, then tokens up to an empty line. Prints `yes`. Each
//! further line is `fresh|kept STATUS COUNT`. The program then makes COUNT requests with the tokens
//! in turn, or without a header if there are no tokens. Each response must have this status. The
//! program prints the elapsed time in nanoseconds. `fresh` uses a verifier with an empty cache.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::FutureExt as _;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use slim_auth::builder::JwtBuilder;
use slim_auth::jwt::{Algorithm, Key, KeyData, KeyFormat, VerifierJwt};
use slim_auth::jwt_middleware::{ValidateJwt, ValidateJwtLayer};
use slim_auth::traits::StandardClaims;
use tower::{Layer as _, Service, ServiceExt as _};

/// Returns an empty response immediately.
#[derive(Clone)]
struct Bare;

impl Service<Request<String>> for Bare {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        drop(request);
        ready(Ok(Response::default()))
    }
}

type Guarded = ValidateJwt<Bare, StandardClaims, VerifierJwt>;

fn guarded(audience: &str, jwk: &str) -> Guarded {
    let key = Key {
        algorithm: Algorithm::ES256,
        format: KeyFormat::Jwk,
        key: KeyData::Data(jwk.to_owned()),
    };
    let verifier = JwtBuilder::new().audience(&[audience]).require_aud();
    let verifier = verifier.public_key(&key).build().unwrap();
    ValidateJwtLayer::new(verifier, StandardClaims::new(0)).layer(Bare)
}

/// Returns the same request as `request` in `peers.rs`.
fn request(authorization: Option<&HeaderValue>) -> Request<String> {
    let mut request = Request::get("https://reports.prod.example/v1/reports/7")
        .header("accept", "application/json")
        .header("user-agent", "peers/1")
        .header("x-request-id", "0123456789abcdef")
        .body(String::new())
        .unwrap();
    if let Some(value) = authorization {
        request.headers_mut().insert(AUTHORIZATION, value.clone());
    }
    request
}

fn main() {
    let mut lines = std::io::stdin().lines().map(|line| line.unwrap());
    let mut line = || lines.next().expect("a line");
    let (audience, jwk) = (line(), line());
    let mut headers = Vec::new();
    loop {
        let token = line();
        if token.is_empty() {
            break;
        }
        headers.push(HeaderValue::try_from(format!("Bearer {token}")).unwrap());
    }
    let mut kept = guarded(&audience, &jwk);
    println!("yes");
    for line in lines {
        let [verifier, status, count] = line
            .split(' ')
            .collect::<Vec<_>>()
            .try_into()
            .expect("three words");
        let status: u16 = status.parse().unwrap();
        let count: usize = count.parse().unwrap();
        let mut fresh = guarded(&audience, &jwk);
        let service = match verifier {
            "fresh" => &mut fresh,
            _ => &mut kept,
        };
        let requests: Vec<_> = (0..count)
            .map(|n| request(headers.get(n % headers.len().max(1))))
            .collect();
        let start = Instant::now();
        for request in requests {
            let ready = service
                .ready()
                .now_or_never()
                .expect("the service is ready");
            let response = ready.unwrap().call(request).now_or_never();
            let response = response.expect("the response is ready").unwrap();
            assert_eq!(response.status(), status);
        }
        println!("{}", start.elapsed().as_nanos());
    }
}
