//! How a server is verified: by Web PKI roots, or by exactly one SPIFFE ID.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WantsClientCert};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature,
    verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, OtherError,
    RootCertStore, SignatureScheme, WantsVerifier,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::error::HttpsBundlesError;
use super::fetch::BoxError;
use crate::clock::Clock;
use crate::identity::SpiffeId;

/// The certificates that servers are verified against in the Web PKI.
#[derive(Clone, Default)]
pub(super) struct WebRoots {
    pub(super) added: Vec<CertificateDer<'static>>,
    pub(super) without_system: bool,
}

impl WebRoots {
    /// Adds each certificate of the PEM text.
    pub(super) fn add_pem(&mut self, pem: &[u8]) -> Result<(), HttpsBundlesError> {
        let before = self.added.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| {
                let text = "a root certificate cannot be added: the PEM is malformed";
                HttpsBundlesError::settings(text).because(error)
            })?;
            self.added.push(certificate);
        }
        if self.added.len() == before {
            let text = "a root certificate cannot be added: the PEM has no certificate";
            return Err(HttpsBundlesError::settings(text));
        }
        Ok(())
    }

    /// Whether anything was set.
    pub(super) fn is_set(&self) -> bool {
        self.without_system || !self.added.is_empty()
    }

    /// Reads the system's certificates too, which takes a few milliseconds.
    pub(super) fn config(
        &self,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<ClientConfig>, HttpsBundlesError> {
        let mut roots = RootCertStore::empty();
        if !self.without_system {
            // A bad certificate on the machine is skipped.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        for certificate in &self.added {
            roots.add(certificate.clone()).map_err(|error| {
                let text = "an added root is not a certificate; add one by `.add_roots_pem(...)`";
                HttpsBundlesError::settings(text).because(error)
            })?;
        }
        if roots.is_empty() {
            let text = "the server could not be verified: there is no root certificate on this \
                        machine; add one by `.add_roots_pem(...)`";
            return Err(HttpsBundlesError::settings(text));
        }
        let config = builder(clock).map_err(|error| {
            HttpsBundlesError::settings("TLS cannot be configured").because(error)
        })?;
        let config = config.with_root_certificates(roots);
        Ok(finish(config))
    }
}

/// Verifies that the server's certificate has exactly this SPIFFE ID and chains to one of these roots.
pub(super) fn spiffe_config(
    expected: SpiffeId,
    roots: Vec<CertificateDer<'static>>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = SpiffeVerifier {
        expected,
        roots,
        algorithms: provider().signature_verification_algorithms,
    };
    let config = builder(clock)?.dangerous();
    Ok(finish(
        config.with_custom_certificate_verifier(Arc::new(verifier)),
    ))
}

fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

fn builder(clock: Arc<dyn Clock>) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    ClientConfig::builder_with_details(Arc::new(provider()), Arc::new(Time(clock)))
        .with_safe_default_protocol_versions()
}

fn finish(builder: ConfigBuilder<ClientConfig, WantsClientCert>) -> Arc<ClientConfig> {
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session would not verify the certificate again.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

struct Time(Arc<dyn Clock>);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let secs = u64::try_from(self.0.now().secs()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            secs,
        )))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}

/// Verifies an X.509-SVID (X509-SVID section 5, SPIFFE Federation section 5.2.2). The name that was
/// dialed does not count.
#[derive(Debug)]
struct SpiffeVerifier {
    expected: SpiffeId,
    roots: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Whether the certificate's key usage has `keyCertSign` or `cRLSign`, which an X.509-SVID that
/// identifies a workload must not have (X509-SVID section 5.2). webpki checks that it is no CA, and
/// ignores this extension. It also checked the encoding, so each extension begins with its OID in
/// exactly this form; the same bytes elsewhere can only reject a certificate.
fn may_sign_certificates(certificate: &[u8]) -> bool {
    const KEY_USAGE: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0f];
    const SIGNING: u8 = 0b0000_0110;
    let extensions = certificate
        .windows(KEY_USAGE.len())
        .enumerate()
        .filter(|(_, window)| *window == KEY_USAGE);
    let mut values =
        extensions.filter_map(|(at, _)| certificate.get(at.checked_add(KEY_USAGE.len())?..));
    values.any(|value| {
        let value = match value {
            // Whether it is critical.
            [0x01, 0x01, _, value @ ..] => value,
            value => value,
        };
        // An octet string with a bit string: its length, the number of unused bits, the bits.
        matches!(value, [0x04, _, 0x03, _, _, bits, ..] if bits & SIGNING != 0)
    })
}

/// Why a server's certificate is rejected. The text repeats nothing of the certificate.
fn rejected(text: impl Into<BoxError>) -> Error {
    let why = OtherError(Arc::from(text.into()));
    Error::InvalidCertificate(CertificateError::Other(why))
}

/// Why the verifier of this file rejected the server, if it did. The text of rustls for it is not
/// readable.
pub(super) fn rejection(error: &io::Error) -> Option<Arc<dyn std::error::Error + Send + Sync>> {
    match error.get_ref()?.downcast_ref()? {
        Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => Some(why.clone()),
        _ => None,
    }
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let bad = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let certificate = EndEntityCert::try_from(end_entity).map_err(bad)?;
        let roots = self.roots.iter();
        let anchors = roots.filter_map(|root| anchor_from_trusted_cert(root).ok());
        let anchors: Vec<_> = anchors.collect();
        let chain = certificate.verify_for_usage(
            self.algorithms.all,
            &anchors,
            intermediates,
            now,
            KeyUsage::server_auth(),
            None,
            None,
        );
        chain.map_err(|error| {
            rejected(format!(
                "the server's X.509-SVID does not verify against the latest bundle: {error}"
            ))
        })?;
        if may_sign_certificates(end_entity) {
            let text = "the server's certificate may sign certificates, so it does not identify a \
                        workload";
            return Err(rejected(text));
        }
        let mut names = certificate.valid_uri_names();
        match (names.next(), names.next()) {
            (Some(name), None) if name == self.expected.as_str() => {
                Ok(ServerCertVerified::assertion())
            }
            (Some(_), None) => Err(rejected(format!(
                "the server's SPIFFE ID is not the configured one, \"{}\"",
                self.expected
            ))),
            _ => Err(rejected(
                "the server's certificate does not have one SPIFFE ID",
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
