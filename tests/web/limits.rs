//! Clients that misbehave: the exporter stays small, and a scrape beside them gets its page.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headroom::apiserver::Apiserver;
use headroom::host::{Host, Roots};
use headroom::http::{self, Limits, Security};
use rustix::net::{AddressFamily, SocketType};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::watch;

use crate::common::{self, Exporter, eventually, has};
use crate::site::{Site, curl};

/// A connection from an address of the loopback that is not the scraper's.
fn connect_from(last: u8, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), 0))?;
    rustix::net::connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

/// What the exporter takes of the machine.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    fds: usize,
    threads: usize,
    rss_kib: usize,
}

impl Footprint {
    fn of(exporter: &Exporter) -> Self {
        let pid = exporter.pid();
        let count = |name: &str| std::fs::read_dir(format!("/proc/{pid}/{name}")).unwrap().count();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let rss_kib = rss.trim().trim_end_matches(" kB").parse().unwrap();
        Footprint { fds: count("fd"), threads: count("task"), rss_kib }
    }

    /// At most the connections that there may be, and those that are just leaving.
    fn is_bounded_beside(&self, before: &Footprint) {
        eprintln!("{before:?} -> {self:?}");
        assert!(self.fds <= before.fds + 256 + 32, "{before:?} -> {self:?}");
        assert!(self.threads <= before.threads + 16, "{before:?} -> {self:?}");
        assert!(self.rss_kib <= before.rss_kib + (64 << 10), "{before:?} -> {self:?}");
    }
}

/// Over TLS, with a scrape to warm it up.
fn warm(site: &Site) -> (Exporter, Footprint) {
    let _ = rlimit::increase_nofile_limit(8192);
    site.config("tls_server_config: {cert_file: server.pem, key_file: server.pem}\n");
    let exporter = site.start(&[]);
    for _ in 0..3 {
        scrape(site, &exporter);
    }
    let footprint = Footprint::of(&exporter);
    (exporter, footprint)
}

fn scrape(site: &Site, exporter: &Exporter) -> String {
    let page = curl(site, exporter, "/metrics", &["-w", "%{http_code}"]);
    assert!(page.ends_with("200") && page.contains("headroom_build_info"), "{page:?}");
    page
}

#[test]
fn two_thousand_connections() {
    if !has("curl") {
        skip!("curl is not installed");
    }
    let site = Site::new();
    let (exporter, before) = warm(&site);
    let mut open = Vec::new();
    // Half of them are nothing but connections, half have begun a handshake; the last thousand come from where the
    // scraper is.
    for number in 0..2000 {
        let from = if number < 1000 { 2 + (number % 4) as u8 } else { 1 };
        let mut stream = connect_from(from, exporter.address).unwrap();
        if number % 2 == 0 {
            let _ = stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]);
        }
        open.push(stream);
        if number % 250 == 249 {
            let page = scrape(&site, &exporter);
            assert!(page.contains("headroom_web_connections_closed_total{reason=\"crowded\"}"));
            Footprint::of(&exporter).is_bounded_beside(&before);
        }
    }
    // Two thousand came: all but those of the limit were sent away.
    let page = common::Page::parse(scrape(&site, &exporter).trim_end_matches("200"));
    let crowded = page.value("headroom_web_connections_closed_total{reason=\"crowded\"}");
    assert!(crowded > 1_700.0, "{crowded}");
    assert!(page.value("headroom_web_connections") <= 161.0, "32 of each address, and this one");
    drop(open);
    eventually("file descriptors are back", || Footprint::of(&exporter).fds <= before.fds + 1);
}

#[test]
fn slow_heads_huge_heads_and_garbage() {
    if !has("curl") {
        skip!("curl is not installed");
    }
    let _ = rlimit::increase_nofile_limit(8192);
    let site = Site::new();
    site.config("");
    let exporter = site.start(&[]);
    exporter.scrape();
    exporter.scrape();
    let before = Footprint::of(&exporter);
    let mut slow: Vec<_> =
        (0..300).map(|number| connect_from(2 + (number % 8) as u8, exporter.address).unwrap()).collect();
    for byte in "GET /metrics HTTP/1.1\r\nX-A: b".bytes() {
        for stream in &mut slow {
            // Some were sent away.
            let _ = stream.write_all(&[byte]);
        }
    }
    let ask = |request: &[u8]| {
        let mut stream = connect_from(9, exporter.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let huge = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    let many = format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(1000));
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(64 << 10));
    for (request, statuses) in [(&huge, ["431", "400"]), (&many, ["431", "400"]), (&long, ["431", "414"])] {
        let answer = ask(request.as_bytes());
        // The rest of it may meet a closed socket, whose RST overtakes the answer.
        let refused =
            answer.is_empty() || statuses.iter().any(|status| answer.starts_with(&format!("HTTP/1.1 {status}")));
        assert!(refused, "{answer}");
    }
    let body = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n";
    let answer = {
        let mut stream = connect_from(9, exporter.address).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    assert!(answer.starts_with("HTTP/1.1 405"), "no body is waited for: {answer}");
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..100 {
        let garbage: Vec<u8> = (0..random.usize(1..2000)).map(|_| random.u8(..)).collect();
        let mut stream = connect_from(9, exporter.address).unwrap();
        let _ = stream.write_all(&garbage);
    }
    assert_eq!(exporter.get("/metrics", &[]).status, 200);
    Footprint::of(&exporter).is_bounded_beside(&before);
}

#[test]
fn a_flood_of_http2_streams() {
    if !has("curl") {
        skip!("curl is not installed");
    }
    let site = Site::new();
    let (exporter, before) = warm(&site);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ca = site.authority.pem.clone();
    let address = exporter.address;
    // Opens streams and gives each up at once, on connection after connection.
    let flood = runtime.spawn(async move {
        let mut opened = 0;
        for _ in 0..20 {
            let (mut sender, connection) = h2_client(&ca, address).await;
            let driving = tokio::spawn(async move {
                let _ = connection.await;
            });
            for _ in 0..500 {
                let Ok(ready) = sender.clone().ready().await else { break };
                sender = ready;
                let request = hyper::Request::get("https://localhost/metrics").body(()).unwrap();
                let Ok((response, mut stream)) = sender.send_request(request, true) else { break };
                stream.send_reset(h2::Reason::CANCEL);
                drop(response);
                opened += 1;
                if driving.is_finished() {
                    break;
                }
            }
            driving.abort();
        }
        opened
    });
    for _ in 0..5 {
        scrape(&site, &exporter);
    }
    let opened = runtime.block_on(flood).unwrap();
    eprintln!("{opened} streams were opened and reset");
    scrape(&site, &exporter);
    Footprint::of(&exporter).is_bounded_beside(&before);

    // Streams whose answer nobody takes: more than the limit are not begun.
    let (open, refused) = runtime.block_on(async {
        let (mut sender, connection) = h2_client(&site.authority.pem, address).await;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut answers = tokio::task::JoinSet::new();
        let until = tokio::time::Instant::now() + Duration::from_secs(3);
        let mut statuses = Vec::new();
        for number in 0..200 {
            let Ok(Ok(ready)) = tokio::time::timeout_at(until, sender.clone().ready()).await else { break };
            sender = ready;
            let request = hyper::Request::get("https://localhost/metrics").body(()).unwrap();
            let Ok((response, _)) = sender.send_request(request, true) else { break };
            if number == 0 {
                // With it the client learns how many streams it may open.
                statuses.push(response.await.unwrap());
            } else {
                answers.spawn(response);
            }
        }
        // Kept, unread.
        while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.join_next()).await {
            statuses.extend(answer.unwrap());
        }
        let open = statuses.iter().filter(|answer| answer.status() == 200).count();
        (open, statuses.len() - open)
    });
    eprintln!("{open} answered, {refused} refused");
    assert!((1..=8).contains(&open), "{open} pages at the same time for one client that takes none");
    scrape(&site, &exporter);
    Footprint::of(&exporter).is_bounded_beside(&before);
}

type H2 = (
    h2::client::SendRequest<hyper::body::Bytes>,
    h2::client::Connection<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>,
);

async fn h2_client(ca: &str, address: SocketAddr) -> H2 {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    // From an address of its own.
    let stream = tokio::task::spawn_blocking(move || connect_from(2, address).unwrap()).await.unwrap();
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    h2::client::Builder::new().initial_window_size(1024).handshake(stream).await.unwrap()
}

/// A server with limits that a test can wait for, and a page that no socket buffer holds.
struct Impatient {
    address: SocketAddr,
    security: Arc<Security>,
    _stop: watch::Sender<bool>,
    _runtime: tokio::runtime::Runtime,
}

const BRIEF: Duration = Duration::from_millis(400);

impl Impatient {
    fn start(limits: Limits, site: Option<&Site>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let settings = http::Settings {
            telemetry_path: "/metrics".to_owned(),
            max_requests: 40,
            scrape_timeout: Duration::from_millis(1),
            config_file: site.map(|site| site.path("web.yml")),
            kubernetes_auth: false,
            limits,
        };
        let host = Arc::new(Host::new(Roots::default()));
        let (address, security, stop) = runtime.block_on(async {
            let security = Security::start(&settings, &host, &Apiserver::default()).await.unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (stop, stopped) = watch::channel(false);
            let page = || async { "x".repeat(32 << 20) };
            let router = axum::Router::new()
                .route("/large", axum::routing::get(page))
                .route("/small", axum::routing::get(|| async { "small" }));
            tokio::spawn(http::serve(vec![listener], router, Arc::clone(&security), stopped, Duration::ZERO));
            (address, security, stop)
        });
        Impatient { address, security, _stop: stop, _runtime: runtime }
    }

    fn closed(&self, reason: &str) -> f64 {
        let samples = self.security.samples();
        let row = samples.rows().iter().find(|row| {
            row.metric.name == "headroom_web_connections_closed_total"
                && row.labels.iter().any(|label| **label == *reason)
        });
        row.unwrap().value
    }
}

/// How long until the other side has closed it.
fn until_closed(stream: &mut TcpStream) -> Duration {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let begun = Instant::now();
    let mut buffer = [0; 1 << 16];
    loop {
        match stream.read(&mut buffer) {
            Ok(1..) => {}
            Ok(0) => return begun.elapsed(),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return begun.elapsed(),
            Err(error) => panic!("not closed after {:?}: {error}", begun.elapsed()),
        }
    }
}

#[test]
fn dawdlers_are_closed() {
    let limits = Limits { head: BRIEF, idle: BRIEF * 8, write: BRIEF, ..Limits::default() };
    let server = Impatient::start(limits, None);
    let connect = || TcpStream::connect(server.address).unwrap();

    // A head that never ends, a byte at a time.
    let mut loris = connect();
    let begun = Instant::now();
    let mut bytes = b"GET /small HTTP/1.1\r\nHost: x\r\nX: ".iter().copied().chain(std::iter::repeat(b'x'));
    while loris.write_all(&[bytes.next().unwrap()]).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never closed");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(begun.elapsed() >= BRIEF);
    eventually("it is counted", || server.closed("slow_head") == 1.0);

    // A reader of a byte now and then, of a page that no socket buffer holds.
    let mut reader = connect();
    reader.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let begun = Instant::now();
    while server.closed("slow_reader") < 1.0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "never closed");
        let _ = reader.read(&mut [0; 1]);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() >= BRIEF);

    // One that reads on is served, however large the page; then it is kept, and closed when it has nothing more to ask
    // for long.
    let mut reader = connect();
    reader.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut page = vec![0; 32 << 20];
    reader.read_exact(&mut page).unwrap();
    assert!(until_closed(&mut reader) >= BRIEF);
    eventually("it is counted", || server.closed("idle") >= 1.0);
    assert_eq!(server.closed("slow_reader"), 1.0);
}

#[test]
fn an_answer_that_is_never_taken_over_http2_ends_too() {
    let site = Site::new();
    site.config("tls_server_config: {cert_file: server.pem, key_file: server.pem}\n");
    let limits = Limits { request: BRIEF, handshake: BRIEF, ..Limits::default() };
    let server = Impatient::start(limits, Some(&site));

    let mut half_open = TcpStream::connect(server.address).unwrap();
    half_open.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).unwrap();
    until_closed(&mut half_open);
    eventually("it is counted", || server.closed("handshake") == 1.0);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (sender, connection) = h2_client(&site.authority.pem, server.address).await;
        let driving = tokio::spawn(connection);
        let request = hyper::Request::get("https://localhost/large").body(()).unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        // The window stays shut, while every PING is answered.
        let _answer = response.await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), driving).await;
        assert!(ended.is_ok(), "never closed");
    });
    eventually("it is counted", || server.closed("slow_reader") == 1.0);
}
