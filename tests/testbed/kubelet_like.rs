//! A client that holds its connection as the kubelet does: one of HTTP/2 for everything, a ping when nothing came for a
//! while, a new one when that is lost. As the kubelet's (Go's `net/http`), its habits come from its environment.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsConnector;

use crate::testbed::forwarder::{self, Manners, Onward};
use crate::testbed::{KUBELET_AGENT, NODE_NAME};

/// What a kubelet uses unless its environment says otherwise, in seconds.
const READ_IDLE: u64 = 30;
const PING: u64 = 15;

#[derive(Debug, Serialize, Deserialize)]
pub struct Arguments {
    /// `HOST:PORT`, an address or a name.
    pub server: String,
    /// Connect to this address instead.
    pub address: Option<SocketAddr>,
    /// Connect through this proxy, by `CONNECT`.
    pub proxy: Option<SocketAddr>,
    pub embedded: Option<Embedded>,
    pub directory: PathBuf,
    pub token: String,
    /// Between two renewals of the lease.
    pub renew_ms: u64,
}

/// It is part of another program, which is a balancer too, on the loopback (k3s, RKE2).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Embedded {
    /// The program's name as a process.
    pub comm: String,
    pub listen: SocketAddr,
    pub onward: SocketAddr,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Sender::One(sender) => sender.send_request(request).await,
            Sender::Two(sender) => sender.send_request(request).await,
        }
    }

    async fn ready(&mut self) -> hyper::Result<()> {
        match self {
            Sender::One(sender) => sender.ready().await,
            Sender::Two(sender) => sender.ready().await,
        }
    }
}

/// Until standard input ends.
pub fn run(arguments: Arguments) {
    let comm = arguments.embedded.as_ref().map_or("kubelet", |embedded| &embedded.comm);
    std::fs::write("/proc/self/comm", comm).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // Held to the end: the balancer inside listens to it.
    let manners = watch::channel(Manners::default()).0;
    if let Some(embedded) = &arguments.embedded {
        let listener = runtime.block_on(TcpListener::bind(embedded.listen)).unwrap();
        runtime.spawn(forwarder::serve(listener, Onward::To(embedded.onward), manners.subscribe()));
    }
    runtime.spawn(async move {
        loop {
            let Err(error) = session(&arguments).await;
            eprintln!("kubelet-like: {error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    runtime.shutdown_background();
}

/// One connection's life.
async fn session(arguments: &Arguments) -> Result<std::convert::Infallible, Failure> {
    let (mut sender, mut driver) = connect(arguments).await?;
    // HTTP/1.1 has one request at a time on a connection: the watch takes one of its own.
    let mut second = match &sender {
        Sender::One(_) => connect(arguments).await?.0,
        Sender::Two(sender) => Sender::Two(sender.clone()),
    };
    let watch = request(arguments, "GET", "/api/v1/pods?watch=true", Bytes::new());
    tokio::spawn(async move {
        let response = second.send(watch).await?;
        response.into_body().collect().await
    });
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE_NAME}");
    let mut every = tokio::time::interval(Duration::from_millis(arguments.renew_ms));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lease: Option<Value> = None;
    loop {
        let (method, body) = match &mut lease {
            Some(lease) => {
                tokio::select! {
                    _ = every.tick() => {}
                    _ = &mut driver => return Err("the connection ended".into()),
                }
                lease["spec"]["renewTime"] = format!("{:.6}", jiff::Timestamp::now()).into();
                ("PUT", lease.to_string().into())
            }
            None => ("GET", Bytes::new()),
        };
        sender.ready().await?;
        let request = request(arguments, method, &path, body);
        // The heartbeat's client gives up after this long; the connection is not its business.
        match within(Duration::from_secs(10), exchange(&mut sender, request)).await {
            Ok((200, body)) => lease = Some(serde_json::from_slice(&body)?),
            Ok((status, _)) => eprintln!("kubelet-like: {method} lease: {status}"),
            Err(error) => eprintln!("kubelet-like: {method} lease: {error}"),
        }
        if lease.is_none() {
            every.tick().await;
        }
    }
}

async fn exchange(sender: &mut Sender, request: Request<Full<Bytes>>) -> Result<(u16, Bytes), Failure> {
    let response = sender.send(request).await?;
    let status = response.status().as_u16();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}

async fn within<T, E: Into<Failure>>(limit: Duration, what: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    tokio::time::timeout(limit, what).await?.map_err(Into::into)
}

fn request(arguments: &Arguments, method: &str, path: &str, body: Bytes) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("https://{}{path}", arguments.server))
        .header(USER_AGENT, KUBELET_AGENT)
        .header(AUTHORIZATION, format!("Bearer {}", arguments.token))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .unwrap()
}

/// A connection, and what ends when it does.
async fn connect(arguments: &Arguments) -> Result<(Sender, JoinHandle<()>), Failure> {
    let seconds = |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let limit = Duration::from_secs(10);
    let http2 = std::env::var_os("DISABLE_HTTP2").is_none_or(|value| value.is_empty());
    let stream = within(limit, tcp(arguments)).await?;
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(tls(&arguments.directory, http2)?);
    let (host, _) = arguments.server.rsplit_once(':').ok_or("a server without a port")?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
    let stream = within(limit, connector.connect(name, stream)).await?;
    let stream = TokioIo::new(stream);
    if !http2 {
        let (sender, driver) = http1::handshake(stream).await?;
        return Ok((Sender::One(sender), tokio::spawn(drive(driver))));
    }
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let read_idle = seconds("HTTP2_READ_IDLE_TIMEOUT_SECONDS", READ_IDLE);
    let ping = seconds("HTTP2_PING_TIMEOUT_SECONDS", PING);
    if read_idle > 0 {
        builder.timer(TokioTimer::new()).keep_alive_while_idle(true);
        builder.keep_alive_interval(Duration::from_secs(read_idle)).keep_alive_timeout(Duration::from_secs(ping));
    }
    let (sender, driver) = within(limit, builder.handshake(stream)).await?;
    Ok((Sender::Two(sender), tokio::spawn(drive(driver))))
}

async fn tcp(arguments: &Arguments) -> Result<TcpStream, Failure> {
    let server = &arguments.server;
    if let Some(address) = arguments.address {
        return Ok(TcpStream::connect(address).await?);
    }
    let Some(proxy) = arguments.proxy else { return Ok(TcpStream::connect(server).await?) };
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_all(format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    match head.starts_with(b"HTTP/1.1 200 ") {
        true => Ok(stream),
        false => Err(format!("the proxy: {}", String::from_utf8_lossy(&head)).into()),
    }
}

/// The socket is closed when this returns, whatever still waits to be sent on it.
async fn drive(driver: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = driver.await {
        eprintln!("kubelet-like: connection lost: {error}");
    }
}

fn tls(directory: &Path, http2: bool) -> Result<Arc<ClientConfig>, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem"))?)?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(Arc::new(config))
}
