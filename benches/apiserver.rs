//! What watching the connection to the apiserver costs, on the node and at the apiserver.
//! `cargo bench --bench apiserver`
//!
//! The apiserver is a stand-in of one thread in a child process, so that its CPU and ours are told apart: its is that
//! of its main thread (`/proc/PID/schedstat`), ours that of this process. It is written in Rust and decides nothing: a
//! real one takes more. For the looks at sockets a process that is called kubelet says whose network namespace counts.
//! `docs/performance.md` keeps a run.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark, not the exporter")]

#[path = "../tests/common/tls_server.rs"]
mod tls_server;

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use headroom::apiserver::{Address, Ask, Client, Exchange, Outcome, Settings};
use headroom::host::{Deadline, Host, Roots};
use headroom::modes::{self, apiserver_connection};
use headroom::services::Services;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tls_server::Authority;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// In a child: the directory of the stand-in. In it are its key, if one was made elsewhere, and by and by its
/// authority.
const STAND_IN: &str = "HEADROOM_BENCH_STAND_IN";
const NODE: &str = "/api/v1/nodes/n?resourceVersion=0";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n?resourceVersion=0";
/// About as long as a service account's.
const TOKEN_LENGTH: usize = 1_000;

fn main() {
    if let Some(directory) = std::env::var_os(STAND_IN) {
        return stand_in(Path::new(&directory));
    }
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: Some(8_192), maximum: Some(8_192) },
    );
    // As many workers as the exporter has.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    requests(&runtime, "ECDSA P-256", None);
    match rsa_key() {
        Ok(pem) => requests(&runtime, "RSA 2048", Some(&pem)),
        Err(why) => println!("\nSKIP: RSA 2048: {why}"),
    }
    looks();
}

/// `ring` signs with RSA keys and makes none.
fn rsa_key() -> Result<Vec<u8>, String> {
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .stderr(Stdio::null())
        .output()
        .map_err(|error| format!("openssl makes the key: {error}"))?;
    if made.status.success() { Ok(made.stdout) } else { Err(format!("openssl makes the key: {}", made.status)) }
}

/// What one request of each kind costs either side.
fn requests(runtime: &tokio::runtime::Runtime, key: &str, pem: Option<&[u8]>) {
    let mut server = Server::start(pem);
    let token = server.directory.path().join("token");
    std::fs::write(&token, "x".repeat(TOKEN_LENGTH)).unwrap();
    let settings = Settings {
        ask: Ask::At(Address::apiserver(&format!("https://{}", server.address)).unwrap()),
        token_file: Some(token),
        ca_file: Some(server.directory.path().join("ca.pem")),
        ..Settings::default()
    };
    let client = Client::new(settings, Arc::new(Host::new(Roots::default()))).unwrap();
    let well = |exchange: Exchange| {
        assert_eq!((exchange.outcome, exchange.status), (Outcome::Ok, Some(200)), "{:?}", exchange.error);
    };
    println!("\nThe apiserver's key: {key}");
    println!("  {:<28}{:>10}{:>10}{:>14}{:>14}", "each", "client", "server", "bytes to it", "bytes from it");
    let mut row = |name: &str, times: u32, call: &dyn Fn()| {
        (0..20).for_each(|_| call());
        let before = (cpu(), server.cpu(), server.bytes());
        (0..times).for_each(|_| call());
        let after = (cpu(), server.cpu(), server.bytes());
        let each = |total: Duration| format!("{:.0} µs", total.as_secs_f64() / f64::from(times) * 1e6);
        let (to, from) = (after.2.0 - before.2.0, after.2.1 - before.2.1);
        println!(
            "  {name:<28}{:>10}{:>10}{:>14}{:>14}",
            each(after.0 - before.0),
            each(after.1 - before.1),
            to / u64::from(times),
            from / u64::from(times)
        );
    };
    row("fresh probe", 1_000, &|| well(runtime.block_on(client.fresh("/livez")).unwrap()));
    let check = || {
        let check = runtime.block_on(client.check("/livez")).unwrap();
        assert_eq!(check.outcome().0, Outcome::Ok);
    };
    row("check (PING and GET)", 3_000, &check);
    row("lease", 2_000, &|| well(runtime.block_on(client.get(LEASE, 4 << 20)).unwrap()));
    row("node", 2_000, &|| well(runtime.block_on(client.get(NODE, 4 << 20)).unwrap()));
    let before = resident_kib();
    (0..10_000).for_each(|_| check());
    println!("  resident before and after 10,000 checks: {before} KiB, {} KiB", resident_kib());
}

/// What one look at the connections costs, beside the kernel's answer alone.
fn looks() {
    println!("\nA look at the connections to the apiserver");
    let host = Host::new(Roots::default());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    println!("  {:<28}{:>12}{:>12}", "connections", "the dump", "the look");
    for number in [0, 10, 200, 2_000] {
        while held.len() < number {
            let near = std::net::TcpStream::connect(address).unwrap();
            held.push((near, listener.accept().unwrap()));
        }
        let settings = apiserver_connection::Settings {
            endpoints: vec![Address::apiserver(&format!("https://{address}")).unwrap()],
            ..apiserver_connection::Settings::default()
        };
        let settings = modes::Settings { apiserver_connection: settings, ..modes::Settings::default() };
        let collector = (apiserver_connection::MODE.build)(&settings, &Services::default());
        let deadline = || Deadline::after(Duration::from_secs(60));
        let dump = || {
            let connections = host.tcp_connections(&[address.port()], deadline()).unwrap();
            assert_eq!(connections.iter().filter(|connection| connection.peer == address).count(), number);
        };
        let look = || collector.collect(modes::Context::new(&host, deadline())).unwrap();
        let seen = look();
        let counted = seen.rows().iter().filter(|row| row.metric.name == "headroom_apiserver_connections");
        let counted: f64 = counted.map(|row| row.value).sum();
        if counted != number as f64 {
            // What a look costs that does not see them says nothing.
            println!("  SKIP: a look sees {counted} of {number} connections: {:?}", seen.errors());
            return;
        }
        let look = || drop(look());
        let cost = |call: &dyn Fn()| {
            (0..30).for_each(|_| call());
            let before = cpu();
            (0..200).for_each(|_| call());
            format!("{:.2} ms", (cpu() - before).as_secs_f64() / 200.0 * 1e3)
        };
        println!("  {number:<28}{:>12}{:>12}", cost(&dump), cost(&look));
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The stand-in, from without. Ends with its standard input.
struct Server {
    directory: tempfile::TempDir,
    address: SocketAddr,
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Server {
    fn start(pem: Option<&[u8]>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        if let Some(pem) = pem {
            std::fs::write(directory.path().join("key.pem"), pem).unwrap();
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(STAND_IN, directory.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let address = line(&mut answers).parse().unwrap();
        Server { directory, address, orders: child.stdin.take(), child, answers }
    }

    fn cpu(&self) -> Duration {
        let schedstat = std::fs::read_to_string(format!("/proc/{}/schedstat", self.child.id())).unwrap();
        Duration::from_nanos(schedstat.split_whitespace().next().unwrap().parse().unwrap())
    }

    /// Received and sent so far, without the heads of TCP and IP.
    fn bytes(&mut self) -> (u64, u64) {
        self.orders.as_mut().unwrap().write_all(b"\n").unwrap();
        let line = line(&mut self.answers);
        let (received, sent) = line.split_once(' ').unwrap();
        (received.parse().unwrap(), sent.parse().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.child.wait();
    }
}

fn line(answers: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

static RECEIVED: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);

/// The stand-in, from within.
fn stand_in(directory: &Path) {
    let authority = Authority::new("cluster");
    let identity = match std::fs::read_to_string(directory.join("key.pem")) {
        Ok(pem) => authority.issue_to(&["127.0.0.1"], rcgen::KeyPair::from_pem(&pem).unwrap()),
        Err(_) => authority.issue(&["127.0.0.1"]),
    };
    std::fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(identity.config(None));
    // On a thread of its own: it is not part of what is measured.
    std::thread::spawn(|| {
        for _ in std::io::stdin().lines() {
            println!("{} {}", RECEIVED.load(Ordering::SeqCst), SENT.load(Ordering::SeqCst));
        }
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = stream.set_nodelay(true);
            tokio::spawn(serve(acceptor.clone(), Counted(stream)));
        }
    });
}

async fn serve(acceptor: tokio_rustls::TlsAcceptor, stream: Counted) {
    let Ok(tls) = acceptor.accept(stream).await else { return };
    let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(async |request: Request<Incoming>| Ok::<_, Infallible>(answer(request.uri().path())));
    if http2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(tls), service).await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
    }
}

fn answer(path: &str) -> Response<Full<Bytes>> {
    let body: &[u8] = match path {
        "/livez" => b"ok",
        _ if NODE.starts_with(path) => include_bytes!("../tests/fixtures/node_status/k8s-1.36-cgroupv2/node.json"),
        _ if LEASE.starts_with(path) => include_bytes!("../tests/fixtures/node_status/k8s-1.36-cgroupv2/lease.json"),
        _ => unreachable!("nobody asks for {path}"),
    };
    Response::new(Full::new(Bytes::from_static(body)))
}

/// A connection whose bytes are counted.
struct Counted(tokio::net::TcpStream);

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.0).poll_read(cx, buffer);
        RECEIVED.fetch_add((buffer.filled().len() - before) as u64, Ordering::SeqCst);
        result
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.0).poll_write(cx, bytes);
        if let Poll::Ready(Ok(length)) = result {
            SENT.fetch_add(length as u64, Ordering::SeqCst);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
