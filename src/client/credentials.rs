//! Who we are and whom we believe: bearer tokens, the service account of a pod, authorities in PEM.
//!
//! Nothing here reads a file or opens a connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::header::HeaderValue;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::{Error, Reason, Result};

/// Where a pod finds this file of its service account: `token` or `ca.crt`.
pub(crate) fn service_account(file: &str) -> PathBuf {
    Path::new("/var/run/secrets/kubernetes.io/serviceaccount").join(file)
}

/// A bearer token. It cannot be printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(HeaderValue);

impl Token {
    /// The token in the text of a file.
    ///
    /// # Errors
    /// Denied if there is none, malformed if it cannot be sent; the words do not repeat it.
    pub(crate) fn new(text: &str) -> Result<Self> {
        let token = text.trim();
        if token.is_empty() {
            return Err(Error::new(Reason::Denied, "holds no token"));
        }
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| Error::malformed("cannot be a token: it has line breaks or control characters"))?;
        value.set_sensitive(true);
        Ok(Token(value))
    }

    /// The value of `Authorization`.
    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A file that was named, or is needed, and is not there: not "this machine has no such thing".
#[must_use]
pub(crate) fn present(error: Error) -> Error {
    if error.is_gone() { Error::malformed(error.to_string()) } else { error }
}

/// The certificates in a PEM text.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn certificates(pem: &[u8]) -> std::result::Result<Vec<CertificateDer<'static>>, String> {
    let all: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| format!("is not PEM: {error}"))?;
    if all.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(all) }
}

/// Believes who has one of these very certificates, or one by some authorities for one of some names; or anyone.
#[derive(Debug)]
pub(crate) struct Verifier {
    anyone: bool,
    pinned: Vec<CertificateDer<'static>>,
    chain: Option<Arc<WebPkiServerVerifier>>,
    names: Vec<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Whoever has a certificate by one of the authorities in this PEM text for one of these names.
    ///
    /// # Errors
    /// What is wrong with the text, in words.
    pub(crate) fn signed_by(pem: &[u8], names: &[String]) -> std::result::Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(pem)? {
            roots.add(certificate).map_err(|error| format!("holds a malformed certificate: {error}"))?;
        }
        let provider = Arc::new(ring::default_provider());
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| error.to_string())?;
        let names = names.iter().filter_map(|name| ServerName::try_from(name.clone()).ok()).collect();
        Ok(Verifier { anyone: false, pinned: Vec::new(), chain: Some(chain), names, provider })
    }

    /// Whoever has one of these very certificates, and nobody else.
    pub(crate) fn only(pinned: Vec<CertificateDer<'static>>) -> Self {
        let provider = Arc::new(ring::default_provider());
        Verifier { anyone: false, pinned, chain: None, names: Vec::new(), provider }
    }

    /// Also whoever has one of these very certificates.
    pub(crate) fn or_one_of(self, pinned: Vec<CertificateDer<'static>>) -> Self {
        Verifier { pinned, ..self }
    }

    /// Whoever answers.
    pub(crate) fn anyone() -> Self {
        Verifier { anyone: true, ..Self::only(Vec::new()) }
    }

    /// What does the arithmetic.
    pub(crate) fn provider(&self) -> Arc<CryptoProvider> {
        Arc::clone(&self.provider)
    }
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
        // The handshake's signature, which is verified below, proves that it has the key too. A kubelet that signed its
        // own goes on with it for years after it has expired.
        if self.anyone || self.pinned.iter().any(|pinned| pinned == leaf) {
            return Ok(ServerCertVerified::assertion());
        }
        let Some(verifier) = &self.chain else { return Err(CertificateError::UnknownIssuer.into()) };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_printed() {
        let token = Token::new(" abc.def\n").unwrap();
        assert_eq!(token.header(), "Bearer abc.def");
        assert!(!format!("{token:?} {:?}", token.header()).contains("abc"));
        assert_eq!(Token::new(" \n").unwrap_err().reason(), Reason::Denied);
        let error = Token::new("abc\ndef").unwrap_err();
        assert!(error.reason() == Reason::Malformed && !error.to_string().contains("abc"), "{error}");
    }

    #[test]
    fn what_is_no_authority() {
        assert_eq!(certificates(b"").unwrap_err(), "holds no certificate");
        assert_eq!(certificates(b"<html>").unwrap_err(), "holds no certificate");
        let cut = b"-----BEGIN CERTIFICATE-----\nMIIB\n";
        assert!(certificates(cut).unwrap_err().contains("is not PEM"));
        let none = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        assert!(Verifier::signed_by(none, &[]).unwrap_err().contains("malformed certificate"));
    }
}
