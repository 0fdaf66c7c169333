//! Verifies callers of two trust domains without an agent, with bundles over https:
//! `cargo run --example server_without_agent`.
//!
//! Both endpoints are embedded and use their own certificate authority. In production use the URLs
//! of SPIRE's OIDC discovery provider and of a partner's bundle endpoint, with certificates that the
//! system trusts.

#![allow(clippy::print_stdout, reason = "the output is for users")]

use std::convert::Infallible;

use axum::{Router, routing::get};
use http::{Request, Response};
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::testing::Issuer;
use tower_spiffe::{Allow, CallerState, HttpsBundles, TrustDomain};
use tower_spiffe::{ValidateJwtSvidLayer, Validator};

type Error = Box<dyn std::error::Error + Send + Sync>;

const REPORTS: &str = "spiffe://example.org/reports";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let ca = tls::Ca::new()?;

    // Our own trust domain publishes its keys as an OIDC issuer.
    let ours = Issuer::new("example.org")?;
    let oidc = tls::serve(&ca, |origin| oidc_provider(origin, &ours)).await?;
    let our_bundles = HttpsBundles::oidc_issuer(TrustDomain::parse("example.org")?, oidc)
        .add_root_der(ca.der())
        .build()
        .await?;

    // A partner has a SPIFFE bundle endpoint (https_web).
    let theirs = Issuer::new("partner.example")?;
    let endpoint = tls::serve(&ca, |_| bundle_endpoint(&theirs)).await?;
    let their_bundles = HttpsBundles::https_web(TrustDomain::parse("partner.example")?, endpoint)
        .add_root_der(ca.der())
        .build()
        .await?;

    for (bundles, me, expected) in [
        (
            &our_bundles,
            ours.token("spiffe://example.org/web", REPORTS),
            200,
        ),
        (
            &our_bundles,
            theirs.token("spiffe://partner.example/web", REPORTS),
            401,
        ),
        (
            &their_bundles,
            theirs.token("spiffe://partner.example/web", REPORTS),
            200,
        ),
        (
            &their_bundles,
            ours.token("spiffe://partner.example/web", REPORTS),
            401,
        ),
    ] {
        let domain = bundles.state().trust_domain.clone();
        let validator = Validator::builder(bundles.clone())
            .audience(REPORTS)
            .build()?;
        let reports = service_fn(|request: Request<String>| async move {
            let caller =
                CallerState::from_extensions(request.extensions()).and_then(CallerState::verified);
            let name = caller.map_or_else(String::new, |svid| svid.spiffe_id().to_string());
            Ok::<_, Infallible>(Response::new(name))
        });
        let layer = ValidateJwtSvidLayer::required(validator, Allow::trust_domain(domain.name())?);
        let request = Request::get("https://reports.example.org/")
            .header("authorization", me.bearer())
            .body(String::new())?;
        let response = layer.layer(reports).oneshot(request).await?;
        let status = response.status().as_u16();
        println!("bundle of {domain}: {status} {}", response.into_body());
        if status != expected {
            return Err(format!("expected {expected}").into());
        }
    }
    println!("next poll: in {:?}", our_bundles.state().next_poll);
    Ok(())
}

fn oidc_provider(origin: &str, issuer: &Issuer) -> Router {
    let discovery = json!({ "issuer": origin, "jwks_uri": format!("{origin}/keys") }).to_string();
    let jwks = issuer.jwks();
    Router::new()
        .route("/.well-known/openid-configuration", get(async || discovery))
        .route("/keys", get(async || jwks))
}

fn bundle_endpoint(issuer: &Issuer) -> Router {
    let bundle = issuer.spiffe_bundle();
    Router::new().route("/", get(async || bundle))
}

/// TLS on loopback.
mod tls {
    use std::io;
    use std::net::SocketAddr;
    use std::sync::Arc;

    use axum::Router;
    use axum::serve::Listener;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::ServerConfig;
    use rustls::crypto::aws_lc_rs::default_provider;
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

        pub(super) fn der(&self) -> Vec<u8> {
            self.0.der().to_vec()
        }

        fn server(&self) -> Result<TlsAcceptor, super::Error> {
            let key = KeyPair::generate()?;
            let params = CertificateParams::new(["localhost".to_owned()])?;
            let cert = params.signed_by(&key, &self.0)?;
            let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], key.into())?;
            Ok(TlsAcceptor::from(Arc::new(config)))
        }
    }

    /// Serves an app on a free port. Returns its origin.
    pub(super) async fn serve(
        ca: &Ca,
        app: impl FnOnce(&str) -> Router,
    ) -> Result<String, super::Error> {
        let tcp = TcpListener::bind("127.0.0.1:0").await?;
        let origin = format!("https://localhost:{}", tcp.local_addr()?.port());
        let listener = Tls(tcp, ca.server()?);
        tokio::spawn(axum::serve(listener, app(&origin)).into_future());
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
