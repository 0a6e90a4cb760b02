//! Certificates of the tests' own.

#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A server's certificate for these names.
    pub fn issue(&self, names: &[&str]) -> Identity {
        self.issue_to(names, KeyPair::generate().unwrap())
    }

    /// The same for a key that was made elsewhere.
    pub fn issue_to(&self, names: &[&str], key: KeyPair) -> Identity {
        let certificate = leaf(names).signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.der().clone(), key }
    }
}

pub struct Identity {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Identity {
    pub fn self_signed(names: &[&str]) -> Self {
        let (params, key) = (leaf(names), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap();
        Identity { certificate: certificate.der().clone(), key }
    }

    /// What a server with this certificate does, with these protocols on offer (ALPN).
    pub fn config(&self, protocols: &[&str]) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|&name| name.into()).collect();
        Arc::new(config)
    }
}

fn leaf(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "system:node:test");
    params
}
