//! Listening sockets and connections: hyper's servers with limits, TLS before them if that is configured, and a
//! shutdown that ends.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service as _, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::auth::policy::Security;
use super::limits::{Admitted, Answer, Closed, Permit, Timed};

/// Sockets beyond the limit of connections: those that make room, until they are closed. Further clients wait in the
/// kernel's backlog.
const LEAVING: usize = 32;
/// The largest request that is read into memory; `collect[]` of every mode is far smaller.
const MOST_HEADER_BYTES: usize = 16 << 10;
const MOST_HEADERS: usize = 64;
/// Of HTTP/2: we read no bodies, so the windows may be small.
const WINDOW: u32 = 64 << 10;
const FRAME: u32 = 16 << 10;
/// Streams that a client opened and gave up, before it is told to go (the "rapid reset" flood).
const MOST_RESETS: usize = 16;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

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

/// Serves `router` on every listener to whom `security` lets in, until `stop` turns true, then lets requests under way
/// finish for at most `grace`.
pub async fn serve(
    listeners: Vec<TcpListener>,
    router: Router,
    security: Arc<Security>,
    stop: watch::Receiver<bool>,
    grace: Duration,
) {
    let sockets = Arc::new(Semaphore::new(security.registry.limits.connections + LEAVING));
    let mut serving = tokio::task::JoinSet::new();
    for listener in listeners {
        let site = Site { router: router.clone(), security: Arc::clone(&security), stop: stop.clone() };
        serving.spawn(serve_one(listener, site, Arc::clone(&sockets), grace));
    }
    while serving.join_next().await.is_some() {}
}

/// What each connection needs.
#[derive(Clone)]
struct Site {
    router: Router,
    security: Arc<Security>,
    stop: watch::Receiver<bool>,
}

async fn serve_one(listener: TcpListener, mut site: Site, sockets: Arc<Semaphore>, grace: Duration) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &sockets) => accepted,
            _ = site.stop.wait_for(|stop| *stop) => break,
        };
        let Some((stream, peer, socket)) = accepted else { continue };
        let Some(admitted) = site.security.registry.admit(peer) else { continue };
        let (site, watcher) = (site.clone(), graceful.watcher());
        tokio::spawn(async move {
            site.connection(stream, Arc::new(admitted), watcher).await;
            drop(socket);
        });
    }
    drop(listener);
    if timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            seconds = grace.as_secs_f64(),
            "requests still under way are cut off: --web.shutdown-timeout has passed"
        );
    }
}

/// The next connection, once there is room for it.
async fn accept(listener: &TcpListener, sockets: &Arc<Semaphore>) -> Option<(TcpStream, IpAddr, OwnedSemaphorePermit)> {
    let socket = Arc::clone(sockets).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer.ip(), socket)),
        Err(error) => {
            // Out of file descriptors, mostly: pause, or this loop would spin.
            tracing::warn!(%error, "a connection cannot be accepted; trying again");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

impl Site {
    async fn connection(mut self, stream: TcpStream, admitted: Arc<Admitted>, watcher: Watcher) {
        let (registry, connection) = (Arc::clone(&admitted.registry), Arc::clone(&admitted.connection));
        let Some(tls) = self.security.current().await.tls.clone() else {
            return self.http(Timed::new(stream, connection), admitted, watcher, false).await;
        };
        let handshake = timeout(registry.limits.handshake, TlsAcceptor::from(tls.config).accept(stream));
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = connection.leave.notified() => return,
            _ = self.stop.wait_for(|stop| *stop) => return,
        };
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                return registry.count(Closed::Handshake);
            }
            Err(_) => return registry.count(Closed::Handshake),
        };
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        self.http(Timed::new(stream, connection), admitted, watcher, http2).await;
    }

    async fn http<S>(self, stream: Timed<S>, admitted: Arc<Admitted>, watcher: Watcher, http2: bool)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (registry, connection) = (Arc::clone(&admitted.registry), Arc::clone(&admitted.connection));
        let limits = registry.limits;
        let router = TowerToHyperService::new(self.router);
        let security = self.security;
        let service = service_fn(move |request: Request<Incoming>| {
            let (router, security, admitted) = (router.clone(), Arc::clone(&security), Arc::clone(&admitted));
            async move { Ok::<_, Infallible>(answer(request, router, &security, &admitted).await) }
        });
        let stream = TokioIo::new(stream);
        let serving = async {
            let served = if http2 {
                let connection = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(limits.streams)
                    .max_header_list_size(MOST_HEADER_BYTES as u32)
                    .initial_stream_window_size(WINDOW)
                    .initial_connection_window_size(WINDOW)
                    .max_frame_size(FRAME)
                    .max_send_buf_size(WINDOW as usize)
                    .max_pending_accept_reset_streams(MOST_RESETS)
                    .max_local_error_reset_streams(MOST_RESETS)
                    .keep_alive_interval(PING_INTERVAL)
                    .keep_alive_timeout(PING_TIMEOUT)
                    .serve_connection(stream, service);
                watcher.watch(connection).await
            } else {
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    // A net below the net: between two requests and within a head see `Connection::dawdles`.
                    .header_read_timeout(limits.idle.max(limits.head) * 2)
                    .max_headers(MOST_HEADERS)
                    .max_buf_size(MOST_HEADER_BYTES)
                    .serve_connection(stream, service);
                watcher.watch(connection).await
            };
            // A client that goes away or talks nonsense is its own affair.
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended with an error");
            }
        };
        let dawdling = async {
            loop {
                tokio::time::sleep(limits.look()).await;
                if let Some(why) = connection.dawdles(&limits, http2) {
                    return why;
                }
            }
        };
        // Whatever ends first: dropping the server closes the socket.
        tokio::select! {
            () = serving => {}
            () = connection.leave.notified() => {}
            why = dawdling => registry.count(why),
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    router: TowerToHyperService<Router>,
    security: &Security,
    admitted: &Admitted,
) -> Response<Answer> {
    let Some(under_way) = admitted.begin() else {
        return security.crowded().map(|body| Answer::new(body, None, None));
    };
    let loaded = security.current().await;
    let mut response =
        match security.admit(&loaded, admitted.connection.peer, request.uri().path(), request.headers()).await {
            Ok(()) => match router.call(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err(refused) => refused,
        };
    for (name, value) in &loaded.config.headers {
        response.headers_mut().insert(name.clone(), value.clone());
    }
    let permit = response.extensions_mut().remove::<Permit>();
    response.map(|body| Answer::new(body, Some(under_way), permit))
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
