//! Two facts of an X.509 certificate: until when it is valid, and its subject alternative names.
//!
//! rustls checks certificates and does not tell these. What is no certificate yields nothing.

use std::net::IpAddr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

/// `notAfter`, in seconds since 1970.
pub(super) fn not_after(certificate: &[u8]) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// The names, as Go writes them: DNS names, mail addresses, URIs, and IP addresses in their usual form.
pub(super) fn alternative_names(certificate: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    // An extension that is there twice, or cannot be parsed, is as good as none: nobody is let in by it.
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::RFC822Name(text) | GeneralName::DNSName(text) | GeneralName::URI(text) => Some((*text).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn certificate(year: i32, names: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 3, 4);
        params.subject_alt_names = names;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn both_forms_of_a_time() {
        // date -u -d 2030-03-04 +%s, and of 2060, which needs the longer form.
        assert_eq!(not_after(&certificate(2030, Vec::new())), Some(1_898_812_800));
        assert_eq!(not_after(&certificate(2060, Vec::new())), Some(2_845_584_000));
    }

    #[test]
    fn names_of_every_kind() {
        let names = vec![
            SanType::DnsName("prometheus.monitoring.svc".try_into().unwrap()),
            SanType::Rfc822Name("a@b.example".try_into().unwrap()),
            SanType::URI("spiffe://cluster/ns/monitoring".try_into().unwrap()),
            SanType::IpAddress("192.0.2.7".parse().unwrap()),
            SanType::IpAddress("2001:db8::7".parse().unwrap()),
        ];
        let expected =
            ["prometheus.monitoring.svc", "a@b.example", "spiffe://cluster/ns/monitoring", "192.0.2.7", "2001:db8::7"];
        assert_eq!(alternative_names(&certificate(2030, names)), expected);
        assert!(alternative_names(&certificate(2030, Vec::new())).is_empty());
    }

    #[test]
    fn what_is_no_certificate_yields_nothing() {
        let whole = certificate(2030, vec![SanType::DnsName("a.example".try_into().unwrap())]);
        for length in 0..whole.len() {
            let _ = (not_after(&whole[..length]), alternative_names(&whole[..length]));
        }
        assert_eq!(not_after(b"-----BEGIN CERTIFICATE-----"), None);
        assert_eq!(not_after(&[0x30, 0x83, 0xff, 0xff, 0xff]), None);
    }
}
