//! From an address to a TLS stream whose other side has proved who it is.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::Address;
use super::blocking::SingleBlockingCall;
use super::outcome::{Failure, Outcome, Phase};
use super::phases::Stopwatch;
use super::target::Target;
use crate::error::{Error, Reason};
use crate::host::Deadline;

/// What is spoken over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Connects.
#[derive(Debug, Default)]
pub(crate) struct Connector {
    lookups: SingleBlockingCall,
}

impl Connector {
    /// Looks up, connects, shakes hands: each as its own phase. Past the handshake the server is whom we take it for;
    /// nothing of ours was sent before.
    pub(crate) async fn connect(
        &self,
        target: &Target,
        protocol: Protocol,
        watch: &Stopwatch,
        deadline: Deadline,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let addresses = match target.address.ip() {
            Some(ip) => vec![SocketAddr::new(ip, target.address.port())],
            None => watch.phase(Phase::Dns, self.look_up(&target.address, deadline)).await?,
        };
        let stream = watch.phase(Phase::Connect, any_of(&addresses, deadline)).await?;
        let config = match protocol {
            Protocol::Http1 => &target.tls.http1,
            Protocol::Http2 => &target.tls.http2,
        };
        let handshake = async {
            let connector = TlsConnector::from(Arc::clone(config));
            let stream = connector.connect(target.tls.name.clone(), stream).await;
            let stream = stream.map_err(|error| Failure::tls(target, &error))?;
            if protocol == Protocol::Http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                return Err(Failure::unexpected("the server does not speak HTTP/2 (ALPN)"));
            }
            Ok(stream)
        };
        watch.phase(Phase::Tls, handshake).await
    }

    /// By `getaddrinfo(3)`, as every program here does it: `/etc/hosts`, search domains, the resolver's own timeouts.
    async fn look_up(&self, address: &Address, deadline: Deadline) -> Result<Vec<SocketAddr>, Failure> {
        let (host, port) = (address.host().to_owned(), address.port());
        let call = move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        match self.lookups.run(deadline, call).await {
            None => Err(Failure::timeout(Phase::Dns)),
            Some(Ok(found)) if !found.is_empty() => Ok(found),
            Some(Ok(_)) => Err(dns(address, "the name has no address")),
            Some(Err(error)) => Err(dns(address, &error.to_string())),
        }
    }
}

fn dns(address: &Address, why: &str) -> Failure {
    Failure::new(Outcome::Dns, Error::new(Reason::Io, format!("{}: {why}", address.host())))
}

/// The first of these that answers. They are tried one after the other, each with its share of the time that is left.
async fn any_of(addresses: &[SocketAddr], deadline: Deadline) -> Result<TcpStream, Failure> {
    let mut last = Failure::unexpected("no address");
    for (index, address) in addresses.iter().enumerate() {
        let others = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = Deadline::after(deadline.remaining() / others);
        let what = format!("connect to {address}");
        last = match timeout_at(share.instant().into(), TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // A request is one small segment: it must not wait for the acknowledgement of the last one.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => Failure::io(&what, &error),
            Err(_) => Failure::io(&what, &io::Error::from(io::ErrorKind::TimedOut)),
        };
    }
    Err(last)
}
