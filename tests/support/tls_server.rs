//! A TLS server that sends exactly what a test sets, and records its requests.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
pub use rcgen::KeyUsagePurpose;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub use crate::net::Ca;

impl Ca {
    pub fn for_host(&self, host: &str) -> Arc<ServerConfig> {
        self.issue(CertificateParams::new([host.to_owned()]).unwrap())
    }

    /// Returns the JWK for this root in a SPIFFE bundle.
    pub fn jwk(&self) -> Value {
        json!({"use": "x509-svid", "kty": "EC", "x5c": [STANDARD.encode(&self.cert)]})
    }

    /// Issues an X.509-SVID with these names.
    pub fn for_ids(&self, ids: &[&str]) -> Arc<ServerConfig> {
        self.for_ids_and_uses(ids, &[KeyUsagePurpose::DigitalSignature])
    }

    pub fn for_ids_and_uses(&self, ids: &[&str], uses: &[KeyUsagePurpose]) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let uris = ids.iter().map(|id| SanType::URI((*id).try_into().unwrap()));
        params.subject_alt_names = uris.collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = uses.to_vec();
        self.issue(params)
    }

    fn issue(&self, params: CertificateParams) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert], key)
            .unwrap();
        Arc::new(config)
    }
}

/// What the server writes, and whether the connection then stays open.
#[derive(Clone)]
pub struct Reply {
    head: String,
    body: Vec<u8>,
    hangs: bool,
    is_open: bool,
    repeats: Option<(Vec<u8>, Duration)>,
}

impl Reply {
    pub fn status(status: &str) -> Self {
        Self {
            head: format!("HTTP/1.1 {status}\r\n"),
            body: Vec::new(),
            hangs: false,
            is_open: false,
            repeats: None,
        }
        .header("connection", "close")
    }

    pub fn json(body: impl AsRef<[u8]>) -> Self {
        Self::status("200 OK")
            .header("content-type", "application/json")
            .body(body)
    }

    pub fn redirect(to: &str) -> Self {
        Self::status("302 Found").header("location", to)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head += &format!("{name}: {value}\r\n");
        self
    }

    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    /// Writes only this, and keeps the connection open.
    pub fn then_hangs(mut self) -> Self {
        self.hangs = true;
        self
    }

    /// Writes this, then repeats these bytes after each pause.
    pub fn then_repeats(mut self, bytes: impl AsRef<[u8]>, pause: Duration) -> Self {
        self.repeats = Some((bytes.as_ref().to_vec(), pause));
        self.then_hangs()
    }

    /// Returns the head without the empty line at its end.
    pub fn without_end(mut self) -> Self {
        self.is_open = true;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let length = match self.head.contains("content-length") || self.hangs {
            true => String::new(),
            false => format!("content-length: {}\r\n", self.body.len()),
        };
        let end = if self.is_open { "" } else { "\r\n" };
        [
            self.head.as_bytes(),
            length.as_bytes(),
            end.as_bytes(),
            &self.body,
        ]
        .concat()
    }
}

type Script = Arc<dyn Fn(&str) -> Reply + Send + Sync>;

/// A server that stops with its runtime.
pub struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    script: Arc<Mutex<Script>>,
    tls: Arc<Mutex<Arc<ServerConfig>>>,
}

impl Server {
    pub async fn start(tls: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let script: Script = Arc::new(|_| Reply::status("404 Not Found"));
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            seen: Arc::default(),
            script: Arc::new(Mutex::new(script)),
            tls: Arc::new(Mutex::new(tls)),
        };
        let (seen, script, tls) = (
            server.seen.clone(),
            server.script.clone(),
            server.tls.clone(),
        );
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let tls = tls.lock().unwrap().clone();
                tokio::spawn(connection(tcp, tls, seen.clone(), script.clone()));
            }
        });
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    /// Sends this response to every request.
    pub fn answer(&self, reply: Reply) {
        self.script(move |_| reply.clone());
    }

    /// Sends a response by path.
    pub fn script(&self, script: impl Fn(&str) -> Reply + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Arc::new(script);
    }

    pub fn certificate(&self, tls: Arc<ServerConfig>) {
        *self.tls.lock().unwrap() = tls;
    }

    /// Returns the heads of the requests so far, in lower case.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn connection(
    tcp: TcpStream,
    tls: Arc<ServerConfig>,
    seen: Arc<Mutex<Vec<String>>>,
    script: Arc<Mutex<Script>>,
) -> std::io::Result<()> {
    let mut stream = TlsAcceptor::from(tls).accept(tcp).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    seen.lock().unwrap().push(head.to_lowercase());
    let script = script.lock().unwrap().clone();
    let reply = script(&path);
    stream.write_all(&reply.bytes()).await?;
    stream.flush().await?;
    if let Some((bytes, pause)) = reply.repeats {
        loop {
            if pause.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(pause).await;
            }
            stream.write_all(&bytes).await?;
            stream.flush().await?;
        }
    }
    if reply.hangs {
        std::future::pending::<()>().await;
    }
    stream.shutdown().await
}
