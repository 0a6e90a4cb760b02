//! The section `tls_server_config` and the PEM texts that it names become what rustls serves with.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    SupportedCipherSuite,
};

use super::web_config::{CURVES, ClientAuth, SUITES, Tls};
use super::x509;
use crate::client::credentials::certificates;

/// Sessions that may be resumed; each some hundred bytes.
const SESSIONS: usize = 64;

/// The texts of what the section names.
pub(super) struct Material {
    pub(super) certificate: String,
    pub(super) key: String,
    pub(super) client_ca: Option<String>,
}

/// Ready to serve.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) config: Arc<ServerConfig>,
    /// When the first certificate to expire does, in seconds since 1970.
    pub(super) expiry: Option<i64>,
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("expiry", &self.expiry).finish_non_exhaustive()
    }
}

impl Serving {
    /// # Errors
    /// What is wrong, in words; no key is repeated.
    pub(super) fn new(section: &Tls, material: &Material, http2: bool) -> Result<Self, String> {
        let provider = Arc::new(provider(section));
        let versions: &[&rustls::SupportedProtocolVersion] = match section.versions {
            (true, true) => &[&rustls::version::TLS13, &rustls::version::TLS12],
            (true, false) => &[&rustls::version::TLS12],
            (false, _) => &[&rustls::version::TLS13],
        };
        let chain = certificates(material.certificate.as_bytes()).map_err(|what| format!("cert: {what}"))?;
        let expiry = chain.iter().filter_map(|certificate| x509::not_after(certificate)).min();
        let key = PrivateKeyDer::from_pem_slice(material.key.as_bytes())
            .map_err(|_| "key: holds no private key in PEM".to_owned())?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|error| format!("versions and cipher_suites do not go together: {error}"))?;
        let builder = match section.client_auth {
            ClientAuth::None => builder.with_no_client_auth(),
            _ => builder.with_client_cert_verifier(Arc::new(Clients::new(section, material, provider)?)),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => "cert and key do not belong together".to_owned(),
            error => format!("cert and key: {error}"),
        })?;
        config.ignore_client_order = section.prefer_server;
        config.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if http2 {
            config.alpn_protocols.insert(0, b"h2".to_vec());
        }
        Ok(Serving { config: Arc::new(config), expiry })
    }
}

fn provider(section: &Tls) -> CryptoProvider {
    let mut provider = ring::default_provider();
    if let Some(wanted) = &section.cipher_suites {
        let of_12 = |name: &str| -> Option<SupportedCipherSuite> {
            use ring::cipher_suite as all;
            let suites = [
                all::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                all::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                all::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
                all::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                all::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
                all::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            ];
            SUITES.iter().position(|known| *known == name).map(|at| suites[at])
        };
        provider.cipher_suites.retain(|suite| suite.tls13().is_some());
        provider.cipher_suites.extend(wanted.iter().filter_map(|name| of_12(name)));
    }
    if let Some(wanted) = &section.curves {
        let groups = [ring::kx_group::X25519, ring::kx_group::SECP256R1, ring::kx_group::SECP384R1];
        let group = |name: &String| CURVES.iter().position(|known| known == name).map(|at| groups[at]);
        provider.kx_groups = wanted.iter().filter_map(group).collect();
    }
    provider
}

/// Judges clients' certificates. That the client has the key is proved in any case.
#[derive(Debug)]
struct Clients {
    /// `None`: any certificate will do.
    chain: Option<Arc<dyn ClientCertVerifier>>,
    mandatory: bool,
    names: Option<Vec<String>>,
    provider: Arc<CryptoProvider>,
}

impl Clients {
    fn new(section: &Tls, material: &Material, provider: Arc<CryptoProvider>) -> Result<Self, String> {
        let verifies = matches!(section.client_auth, ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify);
        let chain = match &material.client_ca {
            Some(pem) if verifies => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem.as_bytes()).map_err(|what| format!("client_ca: {what}"))? {
                    let added = roots.add(certificate);
                    added.map_err(|error| format!("client_ca: holds a malformed certificate: {error}"))?;
                }
                let provider = Arc::new(ring::default_provider());
                let verifier =
                    rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                Some(verifier.map_err(|error| format!("client_ca: {error}"))?)
            }
            _ => None,
        };
        Ok(Clients {
            chain,
            mandatory: matches!(section.client_auth, ClientAuth::RequireAny | ClientAuth::RequireAndVerify),
            names: section.client_names.clone(),
            provider,
        })
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.as_ref().map_or(&[], |chain| chain.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if let Some(chain) = &self.chain {
            chain.verify_client_cert(leaf, intermediates, now)?;
        }
        if let Some(allowed) = &self.names
            && !x509::alternative_names(leaf).iter().any(|name| allowed.contains(name))
        {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
