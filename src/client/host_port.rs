//! A place to connect to, as people write it.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use hyper::Uri;

/// A name or an IP address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Without the brackets of an IPv6 address.
    pub host: String,
    /// Never 0.
    pub port: u16,
}

impl HostPort {
    /// That of a URL, whose user is not looked at; without a port this one. `None` if it has no host, or a port that is
    /// none.
    pub(crate) fn of_url(url: &Uri, default_port: u16) -> Option<Self> {
        let authority = url.authority()?;
        let place = authority.as_str().rsplit('@').next()?;
        // A port that is no number is no port to `Uri`.
        let port = match place.strip_prefix(authority.host())? {
            "" => default_port,
            port => port.strip_prefix(':')?.parse().ok().filter(|port| *port != 0)?,
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        (!host.is_empty()).then(|| HostPort { host: host.to_owned(), port })
    }

    /// The address, if it is one and no name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip() {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A URL as it is, or with this scheme if it has none.
pub(crate) fn with_scheme<'a>(url: &'a str, scheme: &str) -> Cow<'a, str> {
    if url.contains("://") { url.into() } else { format!("{scheme}://{url}").into() }
}
