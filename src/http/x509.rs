//! Two facts of an X.509 certificate: until when it is valid, and its subject alternative names.
//!
//! rustls checks certificates and does not tell these. The walk goes by RFC 5280, section 4.1, and reads nothing else; what is no
//! certificate yields nothing.

use std::net::IpAddr;

use jiff::civil::DateTime;
use jiff::tz::Offset;

const SEQUENCE: u8 = 0x30;
const OBJECT_ID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]` and `[3]` of a `TBSCertificate`.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// id-ce-subjectAltName, 2.5.29.17.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];

/// `notAfter`, in seconds since 1970.
pub(super) fn not_after(certificate: &[u8]) -> Option<i64> {
    let mut fields = Reader(Fields::of(certificate)?.validity);
    fields.next()?;
    let (tag, text) = fields.next()?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        GENERALIZED_TIME => (text.get(..4)?.parse::<i16>().ok()?, text.get(4..)?),
        UTC_TIME => {
            // Two digits are of the years 1950 to 2049.
            let year: i16 = text.get(..2)?.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, text.get(2..)?)
        }
        _ => return None,
    };
    let part = |from: usize| rest.get(from..from + 2)?.parse::<i8>().ok();
    let time = DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0).ok()?;
    Some(Offset::UTC.to_timestamp(time).ok()?.as_second())
}

/// The names, as Go writes them: DNS names, mail addresses, URIs, and IP addresses in their usual form.
pub(super) fn alternative_names(certificate: &[u8]) -> Vec<String> {
    names(certificate).unwrap_or_default()
}

fn names(certificate: &[u8]) -> Option<Vec<String>> {
    let (_, extensions) = Reader(Fields::of(certificate)?.extensions?).next()?;
    let extension = Reader(extensions).find_map(|(_, extension)| {
        let mut parts = Reader(extension);
        let (tag, id) = parts.next()?;
        if tag != OBJECT_ID || id != ALTERNATIVE_NAMES {
            return None;
        }
        // Between them there may be a boolean: whether it is critical.
        parts.find(|(tag, _)| *tag == OCTETS).map(|(_, value)| value)
    })?;
    let (_, general_names) = Reader(extension).next()?;
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    let name = |(tag, bytes): (u8, &[u8])| match tag & 0x1f {
        1 | 2 | 6 => text(bytes),
        7 => match bytes.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string()),
            16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    };
    Some(Reader(general_names).filter_map(name).collect())
}

struct Fields<'a> {
    validity: &'a [u8],
    extensions: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn of(certificate: &'a [u8]) -> Option<Self> {
        let (tag, certificate) = Reader(certificate).next()?;
        let (inner, to_be_signed) = Reader(certificate).next()?;
        if tag != SEQUENCE || inner != SEQUENCE {
            return None;
        }
        let mut fields = Reader(to_be_signed).peekable();
        fields.next_if(|(tag, _)| *tag == VERSION);
        // Serial number, signature algorithm, issuer.
        let (_, validity) = fields.nth(3)?;
        let extensions = fields.find(|(tag, _)| *tag == EXTENSIONS).map(|(_, value)| value);
        Some(Fields { validity, extensions })
    }
}

/// Tag and contents, one after the other. Ends at what it cannot read.
struct Reader<'a>(&'a [u8]);

impl<'a> Iterator for Reader<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [tag, length, rest @ ..] = self.0 else { return None };
        let (length, rest) = match length {
            short @ 0..=0x7f => (usize::from(*short), rest),
            // No certificate is longer than three bytes can count.
            long @ 0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
                (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, contents))
    }
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
