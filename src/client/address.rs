//! Where an apiserver or a kubelet listens.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;

use super::host_port::HostPort;
use super::server::Server;

/// `https://HOST[:PORT][/PREFIX]`. Never plain HTTP: a token goes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    server: Server,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// What goes before every path: empty, or `/k8s/clusters/c-abc` behind a proxy that serves several clusters.
    prefix: String,
}

impl Address {
    /// The URL of an apiserver.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn apiserver(url: &str) -> Result<Self, String> {
        if url.starts_with("http://") {
            return Err("expected https://: over plain http:// anybody could read the token".to_owned());
        }
        let address = Self::parse(Server::Apiserver, url);
        address.ok_or_else(|| "expected https://HOST[:PORT][/PREFIX] of an apiserver".to_owned())
    }

    /// The URL of a kubelet, which has no prefix.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn kubelet(url: &str) -> Result<Self, String> {
        let address = Self::parse(Server::Kubelet, url).filter(|address| address.prefix.is_empty());
        address.ok_or_else(|| "expected https://HOST[:PORT] of a kubelet, or off".to_owned())
    }

    /// What a pod is told in `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    ///
    /// # Errors
    /// If they make no address.
    pub fn in_cluster(host: &str, port: &str) -> Result<Self, String> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Self::apiserver(&format!("https://{host}:{port}"))
    }

    /// The kubelet that listens here.
    pub(crate) fn of_kubelet(ip: IpAddr, port: u16) -> Self {
        Address { server: Server::Kubelet, host: ip.to_string(), port, prefix: String::new() }
    }

    fn parse(server: Server, url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let authority = uri.authority()?;
        let bare = uri.query().is_none() && !authority.as_str().contains('@') && !url.contains('#');
        if uri.scheme_str() != Some("https") || !bare {
            return None;
        }
        let HostPort { host, port } = HostPort::of_url(&uri, server.default_port())?;
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Some(Address { server, host, port, prefix })
    }

    /// Who listens there.
    pub(super) fn server(&self) -> Server {
        self.server
    }

    /// A name or an IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Both.
    pub fn place(&self) -> HostPort {
        HostPort { host: self.host.clone(), port: self.port }
    }

    /// The IP address, if it is one and no name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Nobody but this machine can answer there.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// `HOST[:PORT]` as it is written in a request. An apiserver's is without the port of `https`; a kubelet's always
    /// has it.
    pub(super) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.server, self.port) {
            (Server::Apiserver, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// The path of a request.
    pub(super) fn path(&self, path: &str) -> String {
        format!("{}/{}", self.prefix, path.trim_start_matches('/'))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{}", self.authority(), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_apiservers() {
        let parse = |text: &str| Address::apiserver(text).unwrap();
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
            assert!(Address::apiserver(wrong).unwrap_err().contains("expected https://"), "{wrong}");
        }
    }

    #[test]
    fn what_a_pod_is_told() {
        let shown = |host, port| Address::in_cluster(host, port).map(|address| address.to_string());
        assert_eq!(shown("10.96.0.1", "443").unwrap(), "https://10.96.0.1");
        assert_eq!(shown("fd00:10:96::1", "6443").unwrap(), "https://[fd00:10:96::1]:6443");
        assert!(shown("", "443").is_err() && shown("10.96.0.1", "").is_err());
    }

    #[test]
    fn addresses_of_kubelets() {
        let shown = |text: &str| Address::kubelet(text).map(|address| address.to_string());
        assert_eq!(shown("https://127.0.0.1").unwrap(), "https://127.0.0.1:10250");
        assert_eq!(shown("https://node-1.example:443/").unwrap(), "https://node-1.example:443");
        assert_eq!(shown("https://[fd00::1]:10250").unwrap(), "https://[fd00::1]:10250");
        assert_eq!(Address::kubelet("https://[::1]").unwrap().host(), "::1");
        let local = Address::of_kubelet(IpAddr::from([127, 0, 0, 1]), 10250);
        assert_eq!(Address::kubelet("https://127.0.0.1").unwrap(), local);
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
        let is = |text: &str| Address::kubelet(text).unwrap().is_loopback();
        assert!(is("https://127.0.0.1") && is("https://127.8.8.8") && is("https://[::1]") && is("https://localhost"));
        assert!(!is("https://10.0.0.1") && !is("https://localhost.example"));
    }
}
