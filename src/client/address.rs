//! Where an apiserver listens.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hyper::Uri;

/// The port of a URL that names none.
const PORT: u16 = 443;

/// `https://HOST[:PORT][/PREFIX]`. Never plain HTTP: a token goes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// What goes before every path: empty, or `/k8s/clusters/c-abc` behind a proxy that serves several clusters.
    prefix: String,
}

impl Address {
    /// What a pod is told in `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    ///
    /// # Errors
    /// If they make no address.
    pub fn in_cluster(host: &str, port: &str) -> Result<Self, String> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        format!("https://{host}:{port}").parse()
    }

    /// A name or an IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The IP address, if it is one and no name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// `HOST[:PORT]` as it is written in a request.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == PORT { host } else { format!("{host}:{}", self.port) }
    }

    /// The path of a request.
    pub(crate) fn path(&self, path: &str) -> String {
        format!("{}/{}", self.prefix, path.trim_start_matches('/'))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{}", self.authority(), self.prefix)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected https://HOST[:PORT][/PREFIX] of an apiserver".to_owned();
        if text.starts_with("http://") {
            return Err("expected https://: over plain http:// anybody could read the token".to_owned());
        }
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let authority = uri.authority().ok_or_else(expected)?;
        let bare = uri.query().is_none() && !authority.as_str().contains('@') && !text.contains('#');
        if uri.scheme_str() != Some("https") || !bare || authority.host().is_empty() {
            return Err(expected());
        }
        // A port that is no number is no port to `Uri`.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => PORT,
            Some(port) => match port.strip_prefix(':').and_then(|port| port.parse().ok()) {
                Some(port @ 1..) => port,
                _ => return Err(expected()),
            },
            None => return Err(expected()),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Ok(Address { host, port, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |text: &str| text.parse::<Address>().unwrap();
        let plain = parse("https://10.0.0.1:6443");
        assert_eq!((plain.host(), plain.port(), plain.path("/livez").as_str()), ("10.0.0.1", 6443, "/livez"));
        let prefixed = parse("https://rancher.example/k8s/clusters/c-abc/");
        assert_eq!(prefixed.port(), 443);
        assert_eq!(prefixed.path("/livez?verbose"), "/k8s/clusters/c-abc/livez?verbose");
        assert_eq!(prefixed.to_string(), "https://rancher.example/k8s/clusters/c-abc");
        assert_eq!(prefixed.authority(), "rancher.example");
        let six = parse("https://[fd00::1]:6443");
        assert_eq!((six.host(), six.authority().as_str()), ("fd00::1", "[fd00::1]:6443"));
        assert!(six.ip().is_some() && prefixed.ip().is_none());
        for wrong in [
            "",
            "http://10.0.0.1:8080",
            "10.0.0.1:6443",
            "https://",
            "https://a@b",
            "https://a?b",
            "https://a#b",
            "https://a:b",
            "https://a:0",
            "https://a:99999",
            "https:///x",
        ] {
            assert!(wrong.parse::<Address>().unwrap_err().contains("expected https://"), "{wrong}");
        }
    }

    #[test]
    fn what_a_pod_is_told() {
        let shown = |host, port| Address::in_cluster(host, port).map(|address| address.to_string());
        assert_eq!(shown("10.96.0.1", "443").unwrap(), "https://10.96.0.1");
        assert_eq!(shown("fd00:10:96::1", "6443").unwrap(), "https://[fd00:10:96::1]:6443");
        assert!(shown("", "443").is_err() && shown("10.96.0.1", "").is_err());
    }
}
