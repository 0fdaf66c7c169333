//! Hosts on loopback that record requests, with and without TLS, and a CA.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Redirect, Response};
use http::header::AUTHORIZATION;
use http::{Method, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt, service_fn};

/// A recorded request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub method: Method,
    pub version: Version,
    pub tls: bool,
    pub authorization: Option<String>,
    pub workload: Option<String>,
}

/// A certificate authority for tests.
pub struct Ca {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) cert: CertificateDer<'static>,
}

impl Ca {
    #[allow(clippy::new_without_default, reason = "it makes a new key")]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            cert,
        }
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    pub fn pem(&self) -> String {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(&self.cert);
        let lines: Vec<_> = text
            .as_bytes()
            .chunks(64)
            .map(|line| str::from_utf8(line).unwrap())
            .collect();
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            lines.join("\n")
        )
    }

    /// Returns the configuration of a client that trusts only this CA.
    pub fn client(&self) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.cert.clone()).unwrap();
        rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    fn server(&self) -> rustls::ServerConfig {
        let key = KeyPair::generate().unwrap();
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let params = CertificateParams::new(names).unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub type App = BoxCloneSyncService<Request, Response, Infallible>;

/// A host that accepts connections with and without TLS. It stops with its runtime.
#[derive(Clone)]
pub struct Host {
    pub address: SocketAddr,
    https: bool,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Host {
    /// Starts a host that answers every request; `/to?URL` redirects, `/reject` returns 401.
    pub async fn start(ca: Option<&Ca>) -> Self {
        let app = service_fn(|request: Request| async move {
            Ok::<_, Infallible>(match (request.uri().path(), request.uri().query()) {
                ("/to", Some(url)) => Redirect::temporary(url).into_response(),
                ("/reject", _) => StatusCode::UNAUTHORIZED.into_response(),
                _ => "welcome".into_response(),
            })
        });
        Self::serve(ca, BoxCloneSyncService::new(app)).await
    }

    /// Serves `app`, and records its requests.
    pub async fn serve(ca: Option<&Ca>, app: App) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = ca.map(|ca| tokio_rustls::TlsAcceptor::from(Arc::new(ca.server())));
        let host = Self {
            address,
            https: ca.is_some(),
            seen: Arc::default(),
        };
        let seen = host.seen.clone();
        let app = move |tls: bool| {
            let (app, seen) = (app.clone(), seen.clone());
            service_fn(move |request: http::Request<hyper::body::Incoming>| {
                keep(&seen, &request, tls);
                app.clone().oneshot(request.map(Body::new))
            })
        };
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (app, tls) = (app.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) if begins_tls(&tcp).await => {
                            if let Ok(stream) = tls.accept(tcp).await {
                                connection(stream, app(true)).await;
                            }
                        }
                        _ => connection(tcp, app(false)).await,
                    }
                });
            }
        });
        host
    }

    /// Returns the origin with `http`.
    pub fn origin_in_the_clear(&self) -> String {
        format!("http://localhost:{}", self.address.port())
    }

    /// Returns the origin with this host name.
    pub fn origin_at(&self, name: &str) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{name}:{}", self.address.port())
    }

    pub fn origin(&self) -> String {
        self.origin_at("localhost")
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns whether any header of any request had a token.
    pub fn saw_a_token(&self) -> bool {
        self.seen()
            .iter()
            .any(|seen| seen.authorization.is_some() || seen.workload.is_some())
    }
}

/// A TLS record of a handshake begins with 22; no method of HTTP does.
async fn begins_tls(tcp: &TcpStream) -> bool {
    let mut first = [0];
    matches!(tcp.peek(&mut first).await, Ok(1)) && first == [0x16]
}

fn keep<B>(seen: &Mutex<Vec<Seen>>, request: &http::Request<B>, tls: bool) {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    seen.lock().unwrap().push(Seen {
        path: request.uri().path().to_owned(),
        method: request.method().clone(),
        version: request.version(),
        tls,
        authorization: header(AUTHORIZATION.as_str()),
        workload: header("x-workload"),
    });
}

async fn connection<I, S>(io: I, app: S)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    S: Service<http::Request<hyper::body::Incoming>, Response = Response, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let service = TowerToHyperService::new(app);
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(io), service)
        .await;
}
