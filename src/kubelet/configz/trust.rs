//! Whom we believe to be the kubelet.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{CertificateError, ClientConfig};

use crate::client::credentials::Verifier;
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
        let verifier = Verifier::signed_by(pem.as_bytes(), names)
            .map_err(|what| Error::malformed(format!("{}: {what} (--kubelet.ca-file)", path.display())))?;
        Self::by(verifier, path.to_owned(), names.join(" or "))
    }

    /// Whoever answers.
    pub(super) fn anyone() -> Result<Self> {
        Self::by(Verifier::anyone(), PathBuf::new(), String::new())
    }

    fn by(verifier: Verifier, ca: PathBuf, names: String) -> Result<Self> {
        let mut config = ClientConfig::builder_with_provider(verifier.provider())
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
