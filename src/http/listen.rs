//! Listening sockets and connections: hyper's HTTP/1 server with limits, and a shutdown that ends.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Connections at the same time over all listeners; a further client waits in the kernel's backlog.
const MOST_CONNECTIONS: usize = 256;
/// How long a client may take to send its request header, and a kept-alive connection may idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
/// The largest request that is read into memory; `collect[]` of every mode is far smaller.
const MOST_HEADER_BYTES: usize = 16 << 10;
const MOST_HEADERS: usize = 64;

/// `:9100`, `127.0.0.1:9100`, `[::1]:9100` or `name:9100`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    host: String,
    port: u16,
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected HOST:PORT or :PORT, found {text:?}");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(format!("an IPv6 address needs brackets: [{host}]:{port}"));
        }
        let port = port.parse().map_err(|_| wrong())?;
        Ok(ListenAddress { host: bracketed.unwrap_or(host).to_owned(), port })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl ListenAddress {
    /// Binds it. Without a host: every IPv6 and IPv4 address, or IPv4 alone where the kernel has no IPv6.
    ///
    /// # Errors
    /// The operating system's: in use, not ours, not permitted, or a name that does not resolve.
    pub async fn bind(&self) -> io::Result<TcpListener> {
        if !self.host.is_empty() {
            return TcpListener::bind((self.host.as_str(), self.port)).await;
        }
        match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, self.port))).await {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.port))).await
            }
            result => result,
        }
    }
}

/// Serves `router` on every listener until `stop` turns true, then lets requests under way finish for at most `grace`.
pub async fn serve(listeners: Vec<TcpListener>, router: Router, stop: watch::Receiver<bool>, grace: Duration) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut serving = tokio::task::JoinSet::new();
    for listener in listeners {
        serving.spawn(serve_one(listener, router.clone(), Arc::clone(&permits), stop.clone(), grace));
    }
    while serving.join_next().await.is_some() {}
}

async fn serve_one(
    listener: TcpListener,
    router: Router,
    permits: Arc<Semaphore>,
    mut stop: watch::Receiver<bool>,
    grace: Duration,
) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &permits) => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Some((stream, permit)) = accepted else { continue };
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_headers(MOST_HEADERS)
                .max_buf_size(MOST_HEADER_BYTES)
                .serve_connection(TokioIo::new(stream), service),
        );
        tokio::spawn(async move {
            // A client that goes away or talks nonsense is its own affair.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(seconds = grace.as_secs_f64(), "requests were still under way at the end of the grace period");
    }
}

/// The next connection, once there is room for it.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            // Out of file descriptors, mostly: pause, or this loop would spin.
            tracing::warn!(%error, "accept");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in [":9100", "127.0.0.1:0", "localhost:80", "[::1]:9100"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        for (text, why) in
            [("9100", "HOST:PORT"), ("::1:9100", "brackets"), (":99999", "HOST:PORT"), ("a:b", "HOST:PORT")]
        {
            let error = text.parse::<ListenAddress>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
