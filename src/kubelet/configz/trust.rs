//! Whom we believe to be the kubelet.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::{Error, Reason, Result};

/// A TLS configuration, and the words for when it does not believe.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) config: Arc<ClientConfig>,
    ca: PathBuf,
    names: String,
}

impl Trust {
    /// Whoever has a certificate by one of these authorities for one of these names.
    pub(super) fn signed_by(pem: &str, path: &Path, names: &[String]) -> Result<Self> {
        let malformed = |what: String| Error::malformed(format!("{}: {what} (--kubelet.ca-file)", path.display()));
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| malformed(format!("is not PEM: {error}")))?;
            roots.add(certificate).map_err(|error| malformed(format!("holds a certificate that is none: {error}")))?;
        }
        if roots.is_empty() {
            return Err(malformed("holds no certificate".to_owned()));
        }
        let provider = Arc::new(ring::default_provider());
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| malformed(error.to_string()))?;
        let accepted = names.iter().filter_map(|name| ServerName::try_from(name.clone()).ok()).collect();
        let verifier = Verifier { chain: Some(chain), names: accepted, provider };
        Self::by(verifier, path.to_owned(), names.join(" or "))
    }

    /// Whoever answers.
    pub(super) fn anyone() -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        Self::by(Verifier { chain: None, names: Vec::new(), provider }, PathBuf::new(), String::new())
    }

    fn by(verifier: Verifier, ca: PathBuf, names: String) -> Result<Self> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&verifier.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::new(Reason::Io, format!("TLS: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Each request is minutes after the last.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Trust { config: Arc::new(config), ca, names })
    }

    /// What an operator needs to know about a certificate that does not verify.
    pub(super) fn refusal(&self, error: &CertificateError) -> Error {
        let advice = match error {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
                "it is not made out to {}: --kubelet.server-name names what it is made out to, or --kubelet.url another address",
                self.names
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
            _ => format!(
                "no authority in {} signed it: --kubelet.ca-file names another (a kubelet without serverTLSBootstrap signs its own: kubelet.crt in its --cert-dir holds that authority)",
                self.ca.display()
            ),
        };
        Error::new(
            Reason::Denied,
            format!(
                "the server's certificate does not verify ({error}); {advice}; --kubelet.insecure-skip-verify would trust whoever answers; the token was not sent"
            ),
        )
    }
}

#[derive(Debug)]
struct Verifier {
    /// `None`: anyone.
    chain: Option<Arc<WebPkiServerVerifier>>,
    names: Vec<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _address: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(verifier) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        let mut refused = CertificateError::NotValidForName.into();
        for name in &self.names {
            match verifier.verify_server_cert(leaf, chain, name, ocsp, now) {
                Ok(verified) => return Ok(verified),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
