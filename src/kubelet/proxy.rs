//! By which proxy the kubelet connects to its server: `proxy-url` of its kubeconfig, else its environment.
//!
//! The environment as Go's net/http reads it (`golang.org/x/net/http/httpproxy`, which client-go asks where a
//! kubeconfig names no proxy): once, when the process starts; the names in capitals before the others; never for
//! `localhost` and loopback addresses, nor for what `NO_PROXY` names.

use std::net::IpAddr;

use hyper::Uri;

use super::environ;
use crate::client::host_port::{self, HostPort};

/// Where the proxy listens that a URL names; `None` if nobody could connect to that. As Go does it: what has no scheme
/// is a proxy that speaks HTTP.
pub fn place(url: &str) -> Option<HostPort> {
    let url: Uri = host_port::with_scheme(url, "http").parse().ok()?;
    let default = match url.scheme_str()? {
        "http" => 80,
        "https" => 443,
        "socks5" | "socks5h" => 1080,
        _ => return None,
    };
    HostPort::of_url(&url, default)
}

/// What a process's environment says about proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    https: String,
    http: String,
    without: String,
}

impl Environment {
    /// By an environment, `NAME=value` each.
    pub fn of_environ<'a>(environ: impl IntoIterator<Item = &'a str>) -> Self {
        let names = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"];
        let [https, https_small, http, http_small, without, without_small] = environ::values(environ, names);
        let first = |large: &str, small: &str| if large.is_empty() { small } else { large }.to_owned();
        Environment {
            https: first(https, https_small),
            http: first(http, http_small),
            without: first(without, without_small),
        }
    }

    /// The URL of the proxy by which this process connects to a server; `None`: by none.
    pub fn for_server(&self, tls: bool, host: &str, port: u16) -> Option<&str> {
        let url = if tls { &self.https } else { &self.http };
        let ip = host.parse::<IpAddr>().ok();
        let is_local = host == "localhost" || ip.is_some_and(|ip| ip.is_loopback());
        (!url.is_empty() && !is_local && !self.excludes(host, ip, port)).then_some(url)
    }

    /// As `useProxy` there: every word of `NO_PROXY` may be a network, an address, or a domain, the latter two with a
    /// port. A word that is none of these matches nobody.
    fn excludes(&self, host: &str, ip: Option<IpAddr>, port: u16) -> bool {
        let host = host.to_ascii_lowercase();
        let words = self.without.split(',').map(|word| word.trim().to_ascii_lowercase());
        words.filter(|word| !word.is_empty()).any(|word| {
            if word == "*" {
                return true;
            }
            if let Some((network, bits)) = network(&word) {
                return ip.is_some_and(|ip| is_within(ip, network, bits));
            }
            let (name, of_port) = split_port(&word);
            let is_port = of_port.is_empty() || of_port == port.to_string();
            if let Ok(excluded) = name.parse::<IpAddr>() {
                return is_port && ip.is_some_and(|ip| ip.to_canonical() == excluded.to_canonical());
            }
            // `example.com` is itself and what is below it, `.example.com` and `*.example.com` only what is below.
            let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
            let matches = match name.strip_prefix('.') {
                Some(_) => host.ends_with(name),
                None => host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')),
            };
            is_port && !name.is_empty() && matches
        })
    }
}

/// `ADDRESS/BITS`.
fn network(word: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = word.split_once('/')?;
    let (address, bits): (IpAddr, u32) = (address.parse().ok()?, bits.parse().ok()?);
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

/// `HOST:PORT` and `[IPv6]:PORT`, whose port may be empty. Whatever is neither is a host, brackets included.
fn split_port(word: &str) -> (&str, &str) {
    match word.rsplit_once(':') {
        Some((host, port)) if !host.contains([':', '[', ']']) => (host, port),
        Some((host, port)) => match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(host) => (host, port),
            None => (word, ""),
        },
        None => (word, ""),
    }
}

fn is_within(ip: IpAddr, network: IpAddr, bits: u32) -> bool {
    let (ip, network, width) = match (ip.to_canonical(), network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => (u128::from(u32::from(ip)), u128::from(u32::from(network)), 32),
        (IpAddr::V6(ip), IpAddr::V6(network)) => (u128::from(ip), u128::from(network), 128),
        _ => return false,
    };
    bits == 0 || (ip ^ network) >> (width - bits) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, expected) in [
            ("http://proxy.example:3128", Some("proxy.example:3128")),
            ("http://user:secret@10.0.0.1:3128/", Some("10.0.0.1:3128")),
            ("https://[fd00::1]", Some("[fd00::1]:443")),
            ("proxy:8080", Some("proxy:8080")),
            ("socks5://proxy", Some("proxy:1080")),
            ("http://proxy:port", None),
            ("ftp://proxy", None),
            ("http://", None),
            ("", None),
        ] {
            assert_eq!(place(url).map(|proxy| proxy.to_string()).as_deref(), expected, "{url:?}");
        }
    }

    #[test]
    fn an_environment() {
        let of = |environ: &[&str]| Environment::of_environ(environ.iter().copied());
        let both = of(&["HTTP_PROXY=plain:1", "https_proxy=small:2", "HTTPS_PROXY=large:3"]);
        assert_eq!(both.for_server(true, "api.example", 6443), Some("large:3"));
        assert_eq!(both.for_server(false, "api.example", 8080), Some("plain:1"));
        assert_eq!(of(&["https_proxy=small:2"]).for_server(true, "10.0.0.1", 443), Some("small:2"));
        assert_eq!(of(&["HTTP_PROXY=plain:1"]).for_server(true, "10.0.0.1", 443), None, "not for https");
        assert_eq!(of(&["HTTPS_PROXY=first:1", "HTTPS_PROXY=second:2"]).for_server(true, "a", 443), Some("first:1"));
        for local in ["localhost", "127.0.0.1", "127.9.9.9", "::1"] {
            assert_eq!(both.for_server(true, local, 6443), None, "{local}");
        }
    }

    #[test]
    fn whom_no_proxy_names() {
        for (without, host, excluded) in [
            ("*", "api.example", true),
            ("10.0.0.0/8", "10.9.9.9", true),
            ("10.0.0.0/8,", "11.9.9.9", false),
            ("10.0.0.0/8", "api.example", false),
            ("fd00::/8", "fd00::1", true),
            (" 10.0.0.1 , other", "10.0.0.1", true),
            ("10.0.0.1:443", "10.0.0.1", false),
            ("10.0.0.1:6443", "10.0.0.1", true),
            ("[fd00::1]:6443", "fd00::1", true),
            ("example.com", "example.com", true),
            ("example.com", "API.example.com", true),
            ("api.example", "api.example.", false),
            ("[fd00::1]", "fd00::1", false),
            ("fd00::1", "fd00::1", true),
            ("10.0.0.1:", "10.0.0.1", true),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("10.0.0.0/33", "10.0.0.1", false),
            ("10.0.0.1:http", "10.0.0.1", false),
            ("example.com", "notexample.com", false),
            (".example.com", "api.example.com", true),
            (".example.com", "example.com", false),
            ("*.example.com", "api.example.com", true),
            ("", "api.example", false),
        ] {
            let environ = ["HTTPS_PROXY=http://p:3128".to_owned(), format!("NO_PROXY={without}")];
            let environment = Environment::of_environ(environ.iter().map(String::as_str));
            assert_eq!(environment.for_server(true, host, 6443).is_none(), excluded, "{without:?} {host}");
        }
    }
}
