//! Runs this crate under the public conformance suite for SPIFFE SDKs (its harness contract v1):
//!
//! ```sh
//! cargo build --manifest-path interop/Cargo.toml -p tower-spiffe-conformance-harness --examples
//! ```
//!
//! The control port validates and fetches JWT-SVIDs with this crate. The contract also requires an
//! X.509 port, which the `spiffe` and `spiffe-rustls` crates serve. The suite starts the program with
//! `SPIFFE_ENDPOINT_SOCKET` and reads the two ports from its output.

#![allow(clippy::print_stdout, reason = "the suite reads it")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use spiffe::X509Source;
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::{JwtSource, SpiffeId, Validator};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Answer = (StatusCode, Json<Value>);

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = run() => ended,
        _ = terminated.recv() => Ok(()),
    }
}

async fn run() -> Result<(), Error> {
    // Both sources use the agent at SPIFFE_ENDPOINT_SOCKET. The JWT source does not wait for its first
    // bundles, because the suite has tests without bundles.
    let jwt = JwtSource::builder().build_lazy()?;
    let x509 = X509Source::new().await?;
    let server = mtls_server(x509.clone()).authorize(authorizer::any());
    let client = mtls_client(x509).authorize(authorizer::any());

    let x509_port = TcpListener::bind("127.0.0.1:0").await?;
    let control_port = TcpListener::bind("127.0.0.1:0").await?;
    println!("SPIFFE_HARNESS_VERSION=1");
    println!("SPIFFE_X509_PORT={}", x509_port.local_addr()?.port());
    println!("SPIFFE_CONTROL_PORT={}", control_port.local_addr()?.port());
    println!("READY");

    let acceptor = TlsAcceptor::from(Arc::new(server.build()?));
    tokio::spawn(serve_x509(x509_port, acceptor));
    let harness = Harness {
        jwt,
        validators: Mutex::default(),
        connector: TlsConnector::from(Arc::new(client.build()?)),
    };
    let control = Router::new()
        .route("/v1/jwt/validate", post(validate))
        .route("/v1/jwt/fetch", post(fetch))
        .route("/v1/x509/dial", post(dial))
        .route("/v1/info", get(info))
        .with_state(Arc::new(harness));
    axum::serve(control_port, control).await?;
    Ok(())
}

struct Harness {
    jwt: JwtSource,
    /// One for each audience, kept with its cache, as in a server.
    validators: Mutex<HashMap<String, Validator>>,
    connector: TlsConnector,
}

impl Harness {
    fn validator(&self, audience: String) -> Result<Validator, Error> {
        let mut validators = self
            .validators
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(validator) = validators.get(&audience) {
            return Ok(validator.clone());
        }
        let validator = Validator::builder(self.jwt.clone())
            .audience(&audience)
            .build()?;
        validators.insert(audience, validator.clone());
        Ok(validator)
    }
}

fn ok(fields: Value) -> Answer {
    answer(StatusCode::OK, "ok", fields)
}

fn rejected(why: &dyn std::fmt::Display) -> Answer {
    let fields = json!({"message": why.to_string()});
    answer(StatusCode::UNPROCESSABLE_ENTITY, "rejected", fields)
}

fn failed(why: &dyn std::fmt::Display) -> Answer {
    let fields = json!({"message": why.to_string()});
    answer(StatusCode::INTERNAL_SERVER_ERROR, "error", fields)
}

fn answer(code: StatusCode, status: &str, mut fields: Value) -> Answer {
    fields["status"] = json!(status);
    (code, Json(fields))
}

#[derive(Deserialize)]
struct ValidateRequest {
    token: String,
    audience: String,
}

async fn validate(
    State(harness): State<Arc<Harness>>,
    Json(request): Json<ValidateRequest>,
) -> Answer {
    // The first bundles may still arrive.
    match tokio::time::timeout(Duration::from_secs(8), harness.jwt.ready()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return failed(&error),
        Err(_) => return failed(&"no bundles within 8 s"),
    }
    let validator = match harness.validator(request.audience) {
        Ok(validator) => validator,
        Err(error) => return failed(&error),
    };
    match validator.validate(&request.token) {
        Ok(svid) => {
            let claims = svid.claims::<Value>().unwrap_or_default();
            ok(json!({"spiffe_id": svid.spiffe_id().as_str(), "claims": claims}))
        }
        Err(error) if matches!(error.reason(), ValidateReason::BundlesUnavailable(_)) => {
            failed(&error)
        }
        Err(error) => rejected(&error),
    }
}

#[derive(Deserialize)]
struct FetchRequest {
    audience: Vec<String>,
    #[serde(default)]
    spiffe_id: String,
}

async fn fetch(State(harness): State<Arc<Harness>>, Json(request): Json<FetchRequest>) -> Answer {
    let id = match request.spiffe_id.as_str() {
        "" => None,
        id => match SpiffeId::parse(id) {
            Ok(id) => Some(id),
            Err(error) => return failed(&error),
        },
    };
    let source = &harness.jwt;
    let fetched = source.fetch_jwt_svid_with_id(request.audience, id.as_ref());
    match fetched.await {
        Ok(svid) => ok(json!({"svids": [{
            "spiffe_id": svid.spiffe_id().as_str(),
            "token": svid.token(),
            "hint": svid.hint(),
        }]})),
        Err(error) => failed(&error),
    }
}

#[derive(Deserialize)]
struct DialRequest {
    address: String,
}

async fn dial(State(harness): State<Arc<Harness>>, Json(request): Json<DialRequest>) -> Answer {
    let tcp = match TcpStream::connect(&request.address).await {
        Ok(tcp) => tcp,
        Err(error) => return failed(&error),
    };
    // The server is authenticated by its SPIFFE ID, not by this name.
    let name = match ServerName::try_from("localhost") {
        Ok(name) => name,
        Err(error) => return failed(&error),
    };
    let connecting = harness.connector.connect(name, tcp);
    let mut tls = match tokio::time::timeout(Duration::from_secs(5), connecting).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return rejected(&error),
        Err(_) => return failed(&"no TLS handshake within 5 s"),
    };
    let id = peer(tls.get_ref().1.peer_certificates());
    // The peer may have closed the connection already.
    let _ = tls.shutdown().await;
    match id {
        Some(id) => ok(json!({"spiffe_id": id})),
        None => rejected(&"the certificate has no SPIFFE ID"),
    }
}

async fn info() -> Answer {
    ok(json!({
        "sdk": "tower-spiffe (JWT), spiffe and spiffe-rustls (X.509)",
        "language": "rust",
    }))
}

/// Sends each client its SPIFFE ID after the handshake.
async fn serve_x509(listener: TcpListener, acceptor: TlsAcceptor) {
    while let Ok((tcp, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A client that is rejected sees the connection end.
            let Ok(mut tls) = acceptor.accept(tcp).await else {
                return;
            };
            if let Some(id) = peer(tls.get_ref().1.peer_certificates()) {
                let _ = tls.write_all(format!("{id}\n").as_bytes()).await;
                let _ = tls.shutdown().await;
            }
        });
    }
}

fn peer(certificates: Option<&[CertificateDer<'_>]>) -> Option<String> {
    let leaf = certificates?.first()?;
    let id = spiffe::cert::spiffe_id_from_der(leaf).ok()?;
    Some(id.to_string())
}
