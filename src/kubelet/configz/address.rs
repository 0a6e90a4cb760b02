//! Where a kubelet listens.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hyper::Uri;

/// The port of the kubelet's API.
const PORT: u16 = 10250;

/// `https://HOST[:PORT]`. Never plain HTTP: a token goes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
}

impl Address {
    /// This machine's own.
    pub(super) fn loopback() -> Self {
        Address { host: "127.0.0.1".to_owned(), port: PORT }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The address that is asked.
    pub fn url(&self) -> String {
        format!("{self}/configz")
    }

    /// `HOST:PORT`, an IPv6 address in brackets.
    pub(super) fn authority(&self) -> String {
        let Address { host, port } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected https://HOST[:PORT] of a kubelet, or off".to_owned();
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let authority = uri.authority().ok_or_else(expected)?;
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !authority.as_str().contains('@');
        if uri.scheme_str() != Some("https") || !bare || authority.host().is_empty() {
            return Err(expected());
        }
        // A port that is no number is no port to `Uri`.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => PORT,
            Some(port) => port.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or_else(expected)?,
            None => return Err(expected()),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Address { host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let shown = |text: &str| text.parse::<Address>().map(|address| address.url());
        assert_eq!(shown("https://127.0.0.1").unwrap(), "https://127.0.0.1:10250/configz");
        assert_eq!(shown("https://node-1.example:443/").unwrap(), "https://node-1.example:443/configz");
        assert_eq!(shown("https://[fd00::1]:10250").unwrap(), "https://[fd00::1]:10250/configz");
        assert_eq!("https://[::1]".parse::<Address>().unwrap().host(), "::1");
        for wrong in [
            "",
            "http://127.0.0.1:10250",
            "127.0.0.1:10250",
            "https://",
            "https://a@b",
            "https://a/configz",
            "https://a?b",
            "https://a:b",
            "https://a:99999",
        ] {
            assert!(shown(wrong).unwrap_err().contains("expected https://"), "{wrong}");
        }
    }

    #[test]
    fn loopback() {
        let is = |text: &str| text.parse::<Address>().unwrap().is_loopback();
        assert!(is("https://127.0.0.1") && is("https://127.8.8.8") && is("https://[::1]") && is("https://localhost"));
        assert!(!is("https://10.0.0.1") && !is("https://localhost.example"));
    }
}
