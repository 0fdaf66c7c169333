//! Signs the requests of hyper-util's client, over TLS: `cargo run --example client_hyper`.
//!
//! Uses the agent at `SPIFFE_ENDPOINT_SOCKET`, or starts its own (`testing::FakeAgent`). Calls a service
//! of its own, with its own certificate authority. In production the source is
//! `JwtSource::new().await?`, and the certificates are yours.

#![allow(clippy::print_stdout, reason = "the output is for users")]

use axum::response::Redirect;
use axum::{Router, http::HeaderMap, routing::get};
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_http::decompression::DecompressionLayer;
use tower_http::follow_redirect::FollowRedirectLayer;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{AddJwtSvidLayer, Allow, Audience, JwtSource};
use tower_spiffe::{ValidateJwtSvidLayer, Validator, VerifiedSvid};

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (source, _agent) = source().await?;
    let me = source.get_jwt_svid([REPORTS]).await?.spiffe_id().clone();
    let ca = tls::Ca::new()?;
    let elsewhere = tls::serve(&ca, Router::new().route("/", get(whether_signed))).await?;
    let reports = reports(&source, me.trust_domain_name(), &elsewhere)?;
    let reports = tls::serve(&ca, reports).await?;

    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(ca.client()?)
        .https_only()
        .enable_all_versions()
        .build();
    let hyper = Client::builder(TokioExecutor::new()).build::<_, Empty<Bytes>>(connector);

    // The audience is bound to an origin: its tokens are sent only to that origin.
    let audience = Audience::fixed(REPORTS).for_origin(&reports)?;
    let signed = AddJwtSvidLayer::new(source, audience);
    let client = ServiceBuilder::new()
        // hyper follows no redirects. A layer that follows them goes outside, so that each hop gets
        // the token for its own origin, or no token. Retries and timeouts go here too: a retry after a
        // 401 gets a new token.
        .layer(FollowRedirectLayer::new())
        .layer(signed)
        // Layers that only change bodies may go anywhere. So may tracing, because the header is
        // marked sensitive. A proxy is configured on the connector; it tunnels https and sees no token.
        .layer(DecompressionLayer::new())
        .service(hyper);

    for (url, expected) in [
        (format!("{reports}/"), format!("reports for {me}")),
        (format!("{reports}/moved"), format!("reports for {me}")),
        (format!("{reports}/away"), "signed: false".to_owned()),
    ] {
        let request = Request::get(&url).body(Empty::new())?;
        let response = client.clone().oneshot(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        println!("GET {url} -> {status} {}", String::from_utf8_lossy(&body));
        if status != StatusCode::OK || body != expected {
            return Err(format!("expected {expected:?}").into());
        }
    }
    Ok(())
}

async fn source() -> Result<(JwtSource, Option<FakeAgent>), Error> {
    if std::env::var_os("SPIFFE_ENDPOINT_SOCKET").is_some() {
        return Ok((JwtSource::new().await?, None));
    }
    let agent = FakeAgent::start("example.org").await?;
    Ok((agent.source().await?, Some(agent)))
}

/// The called service: returns its caller, or redirects to itself or to another host.
fn reports(source: &JwtSource, callers: &str, elsewhere: &str) -> Result<Router, Error> {
    let validator = Validator::builder(source.clone())
        .audience(REPORTS)
        .build()?;
    let to = format!("{elsewhere}/");
    let router = Router::new()
        .route("/", get(who))
        .route("/moved", get(|| async { Redirect::temporary("/") }))
        .route("/away", get(|| async move { Redirect::temporary(&to) }));
    let app = ValidateJwtSvidLayer::required(validator, Allow::trust_domain(callers)?);
    Ok(Router::new().fallback_service(app.layer(router)))
}

async fn who(caller: VerifiedSvid) -> String {
    format!("reports for {}", caller.spiffe_id())
}

async fn whether_signed(headers: HeaderMap) -> String {
    format!("signed: {}", headers.contains_key(AUTHORIZATION))
}

/// Certificates for this example.
mod tls {
    use std::io;
    use std::net::SocketAddr;
    use std::sync::Arc;

    use axum::Router;
    use axum::serve::Listener;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::{TlsAcceptor, server::TlsStream};

    pub(super) struct Ca(CertifiedIssuer<'static, KeyPair>);

    impl Ca {
        pub(super) fn new() -> Result<Self, super::Error> {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate()?;
            Ok(Self(CertifiedIssuer::self_signed(params, key)?))
        }

        /// Returns the configuration of a client that trusts only this authority.
        pub(super) fn client(&self) -> Result<ClientConfig, super::Error> {
            let mut roots = RootCertStore::empty();
            roots.add(self.0.der().clone())?;
            let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
                .with_safe_default_protocol_versions()?;
            Ok(config.with_root_certificates(roots).with_no_client_auth())
        }

        fn server(&self) -> Result<TlsAcceptor, super::Error> {
            let key = KeyPair::generate()?;
            let cert =
                CertificateParams::new(["localhost".to_owned()])?.signed_by(&key, &self.0)?;
            let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], key.into())?;
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Ok(TlsAcceptor::from(Arc::new(config)))
        }
    }

    /// Serves `app` on a free port. Returns its origin.
    pub(super) async fn serve(ca: &Ca, app: Router) -> Result<String, super::Error> {
        let tcp = TcpListener::bind("127.0.0.1:0").await?;
        let origin = format!("https://localhost:{}", tcp.local_addr()?.port());
        let listener = Tls(tcp, ca.server()?);
        tokio::spawn(axum::serve(listener, app).into_future());
        Ok(origin)
    }

    struct Tls(TcpListener, TlsAcceptor);

    impl Listener for Tls {
        type Io = TlsStream<TcpStream>;
        type Addr = SocketAddr;

        async fn accept(&mut self) -> (Self::Io, SocketAddr) {
            loop {
                let (stream, address) = Listener::accept(&mut self.0).await;
                if let Ok(stream) = self.1.accept(stream).await {
                    return (stream, address);
                }
            }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            self.0.local_addr()
        }
    }
}
