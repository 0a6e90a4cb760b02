//! Whom a request goes to: address, trust, credentials.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig};

use super::address::Address;
use super::credentials::{Token, Verifier, certificates};
use super::server::Server;
use crate::error::{Error, Reason, Result};

/// Everything for one request.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: Address,
    pub(crate) token: Option<Token>,
    pub(crate) tls: Arc<Tls>,
}

/// The TLS side of it.
pub(crate) struct Tls {
    pub(crate) material: Material,
    /// What is sent as SNI, if it is no IP address.
    pub(super) name: ServerName<'static>,
    pub(super) http1: Arc<ClientConfig>,
    pub(super) http2: Arc<ClientConfig>,
    /// Counts up when anything of it has changed.
    pub(crate) generation: u64,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// What it is made of. Holds a private key: never printed.
#[derive(PartialEq, Eq)]
pub(crate) struct Material {
    pub(crate) address: Address,
    /// The certificate must be made out to one of these. The first is sent as SNI.
    pub(crate) names: Vec<String>,
    /// Where it comes from, and its PEM. `None`: not verified, unless there are pinned ones.
    pub(crate) ca: Option<(String, Vec<u8>)>,
    /// The server's own certificates, as they lie on its disk: whoever shows one of them and has its key is that
    /// server, whatever name is in it and whoever signed it.
    pub(crate) pinned: Vec<CertificateDer<'static>>,
    /// Certificate and key, with where they come from.
    pub(crate) client: Option<(String, Vec<u8>, Vec<u8>)>,
}

impl Target {
    pub(super) fn is_anonymous(&self) -> bool {
        self.token.is_none() && self.tls.material.client.is_none()
    }

    /// What an operator needs to know about a certificate that does not verify.
    pub(super) fn refusal(&self, error: &CertificateError) -> Error {
        let Material { names, ca, .. } = &self.tls.material;
        let server = self.address.server();
        let advice = match error {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
                "it is not valid for {}: set {} to a name in it, or {} to another address",
                names.join(" or "),
                server.flag("server-name"),
                server.flag("url"),
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "it is not valid yet: check the clocks".to_owned()
            }
            _ => format!(
                "no authority in {} signed it: set {} to the one that did{}",
                ca.as_ref().map_or("none", |(place, _)| place),
                server.flag("ca-file"),
                match server {
                    Server::Apiserver => "",
                    Server::Kubelet =>
                        " (a kubelet without serverTLSBootstrap signs its own, which is trusted where its --cert-dir can be read)",
                }
            ),
        };
        let last_resort = match server {
            Server::Apiserver => "",
            Server::Kubelet => "; --kubelet.insecure-skip-verify would trust any server",
        };
        Error::new(
            Reason::Denied,
            format!(
                "the {server}'s certificate does not verify ({error}); {advice}{last_resort}; the token was not sent"
            ),
        )
    }
}

impl Tls {
    pub(crate) fn of(material: Material, generation: u64) -> Result<Self> {
        let server = material.address.server();
        let first = material.names.first().map_or(material.address.host(), String::as_str);
        let name = ServerName::try_from(first.to_owned()).map_err(|_| {
            Error::malformed(format!("{first:?} cannot be the name of a server ({})", server.flag("server-name")))
        })?;
        let verifier = match &material.ca {
            None if material.pinned.is_empty() => Verifier::anyone(),
            None => Verifier::only(material.pinned.clone()),
            Some((place, pem)) => Verifier::signed_by(pem, &material.names)
                .map_err(|what| Error::malformed(format!("{place}: {what} ({})", server.flag("ca-file"))))?
                .or_one_of(material.pinned.clone()),
        };
        let builder = ClientConfig::builder_with_provider(verifier.provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::new(Reason::Io, format!("TLS: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &material.client {
            None => builder.with_no_client_auth(),
            Some((place, chain, key)) => {
                let malformed =
                    |what: String| Error::malformed(format!("{place}: {what} (client-certificate of --kubeconfig)"));
                let chain = certificates(chain).map_err(malformed)?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|_| malformed("its client-key is not a private key in PEM".to_owned()))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| malformed(error.to_string()))?
            }
        };
        // A resumed handshake would prove nothing about the certificate, and measure something else.
        config.resumption = rustls::client::Resumption::disabled();
        let mut http2 = config.clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        http2.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Tls { material, name, http1: Arc::new(config), http2: Arc::new(http2), generation })
    }
}
