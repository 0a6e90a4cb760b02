//! The client of the apiserver, against servers of our own: every way in which asking can end, what is measured, whom
//! the token reaches, and what becomes of the long-lived connection.
#![allow(clippy::disallowed_methods, reason = "a test makes its own files")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headroom::apiserver::{Address, Ask, Check, Client, Exchange, Outcome, Phase, ReconnectReason, Settings};
use headroom::error::Reason;
use headroom::host::{Host, Roots};

use crate::common;
use crate::common::apiserver as http2;
use crate::common::apiserver::Fate;
use crate::common::tls_server::{Act, Authority, Identity, Server};

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.secret-of-the-first-hour.sig";

/// Long enough for a loaded machine where an answer is expected.
const PATIENT: Duration = Duration::from_secs(20);
/// Where none is expected, or where both happen.
const BRIEF: Duration = Duration::from_millis(700);

/// The files that we are given.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(ca: &Authority) -> Self {
        let files = Files { dir: tempfile::tempdir().unwrap() };
        files.write("token", &format!("{TOKEN}\n"));
        files.write("ca.crt", &ca.pem);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn settings(&self, url: &str, timeout: Duration) -> Settings {
        Settings {
            ask: Ask::At(Address::apiserver(url).unwrap()),
            token_file: Some(self.path("token")),
            ca_file: Some(self.path("ca.crt")),
            timeout,
            ..Settings::default()
        }
    }

    fn client(&self, url: &str, timeout: Duration) -> Client {
        client(self.settings(url, timeout))
    }
}

fn client(settings: Settings) -> Client {
    Client::new(settings, Arc::new(Host::new(Roots::default()))).expect("somebody to ask")
}

fn answer(status: &str, body: &str) -> Act {
    Act::answer(status, body)
}

/// How it ended, and that nothing secret is in it.
fn ended(exchange: &Exchange) -> (Outcome, Option<Phase>) {
    let shown = format!("{exchange:?} {}", exchange.error.as_ref().map(ToString::to_string).unwrap_or_default());
    assert!(!shown.contains("secret-of"), "{shown}");
    assert_eq!(exchange.error.is_some(), exchange.outcome != Outcome::Ok, "{shown}");
    assert_eq!(exchange.failed_in.is_some(), exchange.outcome != Outcome::Ok, "{shown}");
    assert_eq!(exchange.timing(Phase::Total).is_some(), exchange.outcome == Outcome::Ok, "{shown}");
    if let Some(phase) = exchange.failed_in {
        assert_eq!(exchange.timing(phase), None, "{shown}");
    }
    (exchange.outcome, exchange.failed_in)
}

fn words(exchange: &Exchange) -> String {
    exchange.error.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn phases(exchange: &Exchange) -> Vec<Phase> {
    exchange.timings.iter().map(|(phase, _)| *phase).collect()
}

async fn check(client: &Client) -> Check {
    let check = client.check("/livez").await.unwrap();
    ended(&check.request);
    if let Some(ping) = &check.ping {
        assert_eq!(ping.rtt.is_some(), ping.outcome == Outcome::Ok, "{ping:?}");
    }
    check
}

fn why(check: &Check) -> Option<ReconnectReason> {
    check.made.as_ref().map(|made| made.why)
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// GOAWAY: the last stream that was looked at, and an error.
fn goaway(last: u8, error: u8) -> Vec<u8> {
    frame(7, 0, 0, &[0, 0, 0, last, 0, 0, 0, error])
}

/// `RST_STREAM` of the first request.
fn rst_stream(error: u8) -> Vec<u8> {
    frame(3, 0, 1, &[0, 0, 0, error])
}

/// 200 without a body, to the first request.
fn good() -> Vec<u8> {
    frame(1, 5, 1, &[0x88])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_connection_has_its_phases() {
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let identity = ca.issue(&["127.0.0.1", "localhost"]);
    let server = Server::start(&identity, answer("200 OK", "ok"));
    let client = files.client(&server.url(), PATIENT);
    let exchange = client.fresh("/livez?verbose").await.unwrap();
    assert_eq!(ended(&exchange), (Outcome::Ok, None), "{}", words(&exchange));
    assert_eq!((exchange.status, &exchange.body[..]), (Some(200), &b"ok"[..]));
    assert_eq!(phases(&exchange), [Phase::Connect, Phase::Tls, Phase::Request, Phase::Total]);
    let sum: Duration = exchange.timings[..3].iter().map(|(_, duration)| *duration).sum();
    assert!(exchange.timing(Phase::Total).unwrap() >= sum);
    let head = &server.heads()[0];
    assert!(head.starts_with("GET /livez?verbose HTTP/1.1\r\n"), "{head}");
    for line in [
        format!("host: {}", server.address),
        format!("authorization: Bearer {TOKEN}"),
        "connection: close".to_owned(),
        format!("user-agent: headroom-exporter/{}", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(head.lines().any(|given| given.eq_ignore_ascii_case(&line)), "{line}: {head}");
    }

    // A name is looked up, an address not; a slow server is slow in the request and nowhere else.
    let by_name = files.client(&format!("https://localhost:{}", server.address.port()), PATIENT);
    let delay = Duration::from_millis(400);
    server.act(Act::Late(delay, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()));
    let exchange = by_name.fresh("/livez").await.unwrap();
    assert_eq!(ended(&exchange).0, Outcome::Ok, "{}", words(&exchange));
    assert_eq!(phases(&exchange), [Phase::Dns, Phase::Connect, Phase::Tls, Phase::Request, Phase::Total]);
    let took = |phase| exchange.timing(phase).unwrap();
    assert!(took(Phase::Request) >= delay && took(Phase::Connect) < delay, "{:?}", exchange.timings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_a_server_may_answer() {
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::Close);
    let client = files.client(&server.url(), PATIENT);
    let huge_head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let promised = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{{", 50 << 20);
    let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nok".to_vec();
    let acts = [
        (answer("401 Unauthorized", ""), Outcome::Unauthorized, Some(401), "does not accept the credentials"),
        (answer("403 Forbidden", ""), Outcome::Unauthorized, Some(403), "do not permit"),
        (answer("404 Not Found", ""), Outcome::Unexpected, Some(404), "404"),
        (answer("204 No Content", ""), Outcome::Unexpected, Some(204), "204"),
        (answer("302 Found", ""), Outcome::Unexpected, Some(302), "redirect"),
        (answer("429 Too Many Requests", ""), Outcome::Throttled, Some(429), "takes no more requests"),
        (answer("500 Internal Server Error", "[-]etcd failed"), Outcome::ServerError, Some(500), "500"),
        (answer("503 Service Unavailable", ""), Outcome::ServerError, Some(503), "503"),
        (Act::Say(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), Outcome::Unexpected, None, "HTTP"),
        (Act::Say(huge_head.into_bytes()), Outcome::Unexpected, None, "HTTP"),
        (Act::Say(promised.into_bytes()), Outcome::Unexpected, Some(200), "larger than 65536"),
        (Act::Pour(1 << 20), Outcome::Unexpected, Some(200), "larger than 65536"),
        (Act::Say(cut), Outcome::Reset, Some(200), "HTTP"),
        (Act::Close, Outcome::Reset, None, "HTTP"),
        (Act::ResetRequest, Outcome::Reset, None, "HTTP"),
    ];
    for (index, (act, outcome, status, said)) in acts.into_iter().enumerate() {
        server.act(act);
        let exchange = client.fresh("/livez").await.unwrap();
        let text = words(&exchange);
        assert_eq!(ended(&exchange), (outcome, Some(Phase::Request)), "{index}: {text}");
        assert_eq!(exchange.status, status, "{index}: {text}");
        assert!(text.contains(said) && text.contains(&server.url()) && !text.contains('\n'), "{index}: {text}");
        assert_eq!(phases(&exchange), [Phase::Connect, Phase::Tls], "{index}");
    }
    for (act, outcome) in [(Act::Plain, Outcome::Tls), (Act::ResetHello, Outcome::Reset)] {
        server.act(act);
        let exchange = client.fresh("/livez").await.unwrap();
        assert_eq!(ended(&exchange), (outcome, Some(Phase::Tls)), "{}", words(&exchange));
    }
    // An object may be larger than a health path's answer.
    server.act(answer("200 OK", &"x".repeat(100 << 10)));
    assert_eq!(ended(&client.get("/api/v1/nodes/n", 1 << 20).await.unwrap()).0, Outcome::Ok);
    let large = client.get("/api/v1/nodes/n", 64 << 10).await.unwrap();
    assert_eq!(ended(&large), (Outcome::Unexpected, Some(Phase::Request)));
    server.act(answer("404 Not Found", ""));
    let missing = client.get("/api/v1/nodes/n", 1 << 20).await.unwrap();
    assert_eq!(missing.error.unwrap().reason(), Reason::Absent);
    let nonsense = client.fresh("/a b").await.unwrap();
    assert!(words(&nonsense).contains("not the path of a URL"), "{}", words(&nonsense));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_server_wants_to_be_asked_again() {
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::Close);
    let two = http2::Server::start(ca.issue(&["127.0.0.1"]).config(None), http2::Act::ok("ok"));
    let (client, reused) = (files.client(&server.url(), PATIENT), files.client(&two.url(), PATIENT));
    let in_a_minute = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(60));
    for (value, seconds) in [("7", Some(7..=7)), (&in_a_minute, Some(30..=60)), ("soon", None)] {
        server.act(Act::Say(
            format!("HTTP/1.1 429 Too Many\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n").into_bytes(),
        ));
        let headers = vec![("retry-after", value.to_owned())];
        two.act(http2::Act::Answer { status: 429, headers, body: Vec::new(), delay: Duration::ZERO });
        for exchange in [client.fresh("/livez").await.unwrap(), check(&reused).await.request] {
            assert_eq!(ended(&exchange), (Outcome::Throttled, Some(Phase::Request)));
            let given = exchange.retry_after.map(|after| after.as_secs());
            match &seconds {
                Some(range) => assert!(given.is_some_and(|given| range.contains(&given)), "{value}: {given:?}"),
                None => assert_eq!(given, None),
            }
        }
    }
    assert_eq!(two.connections(), 1, "a 429 is an answer: the connection is as good as before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_phase_has_its_timeout() {
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::Close);
    let brief = files.client(&server.url(), BRIEF);
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n".to_vec();
    for (act, phase) in [(Act::Ignore, Phase::Tls), (Act::Listen, Phase::Request), (Act::Stall(head), Phase::Request)] {
        server.act(act);
        let started = Instant::now();
        let exchange = brief.fresh("/livez").await.unwrap();
        assert_eq!(ended(&exchange), (Outcome::Timeout, Some(phase)), "{}", words(&exchange));
        assert!(started.elapsed() >= BRIEF && started.elapsed() < PATIENT);
        assert_eq!(exchange.error.as_ref().unwrap().reason(), Reason::Timeout);
    }
    // A listener whose queue is full: SYNs are dropped.
    let full = FullListener::new();
    let exchange = files.client(&format!("https://{}", full.address), BRIEF).fresh("/livez").await.unwrap();
    assert_eq!(ended(&exchange), (Outcome::Timeout, Some(Phase::Connect)), "{}", words(&exchange));
    assert!(exchange.timings.is_empty());
}

/// Takes no more connections.
struct FullListener {
    address: SocketAddr,
    _held: Vec<std::net::TcpStream>,
    _listener: std::os::fd::OwnedFd,
}

impl FullListener {
    fn new() -> Self {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&listener, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        listen(&listener, 0).unwrap();
        let address = SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
        let mut held = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            held.push(stream);
            assert!(held.len() < 10, "the queue is never full");
        }
        FullListener { address, _held: held, _listener: listener }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there() {
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let gone = Server::start(&ca.issue(&["127.0.0.1"]), Act::Close).url();
    for (url, outcome, phase) in [
        (gone.as_str(), Outcome::Refused, Phase::Connect),
        // The kernel refuses a TCP connection to a group of machines before a packet is sent.
        ("https://224.0.0.1:6443", Outcome::Unreachable, Phase::Connect),
        ("https://apiserver.invalid:6443", Outcome::Dns, Phase::Dns),
    ] {
        let client = files.client(url, PATIENT);
        let exchange = client.fresh("/livez").await.unwrap();
        assert_eq!(ended(&exchange), (outcome, Some(phase)), "{}", words(&exchange));
        let check = check(&client).await;
        assert_eq!(ended(&check.request), (outcome, Some(phase)), "{}", words(&check.request));
        assert_eq!((check.ping.clone(), why(&check)), (None, Some(ReconnectReason::Start)));
        assert_eq!(check.outcome(), (outcome, Some(phase)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_goes_to_who_verifies_and_to_nobody_else() {
    let (cluster, other) = (Authority::new("cluster"), Authority::new("other"));
    let files = Files::new(&cluster);
    let untrusted = [
        (other.issue(&["127.0.0.1"]), None, "--apiserver.ca-file"),
        (Identity::self_signed(&["127.0.0.1"]), None, "--apiserver.ca-file"),
        (cluster.issue(&["10.0.0.1"]), None, "--apiserver.server-name"),
        (cluster.issue(&["127.0.0.1"]), Some("kubernetes"), "--apiserver.server-name"),
        (cluster.issue_expired(&["127.0.0.1"]), None, "expired"),
    ];
    for (identity, name, advice) in untrusted {
        let server = Server::start(&identity, answer("200 OK", "ok"));
        let settings = Settings { server_name: name.map(str::to_owned), ..files.settings(&server.url(), PATIENT) };
        let client = client(settings);
        for exchange in [
            client.fresh("/livez").await.unwrap(),
            check(&client).await.request,
            client.get("/api/v1/nodes/n", 1 << 20).await.unwrap(),
        ] {
            let text = words(&exchange);
            assert_eq!(ended(&exchange), (Outcome::Tls, Some(Phase::Tls)), "{text}");
            assert!(text.contains(advice) && text.contains("the token was not sent"), "{advice}: {text}");
        }
        assert!(server.connections() == 3 && server.heads().is_empty(), "{:?}", server.heads());
    }
    // A name in place of the address, and the flag that switches it off.
    let named = Server::start(&cluster.issue(&["kubernetes"]), answer("200 OK", "ok"));
    let settings = files.settings(&named.url(), PATIENT);
    let settings = Settings { server_name: Some("kubernetes".to_owned()), ..settings };
    assert_eq!(ended(&client(settings).fresh("/livez").await.unwrap()).0, Outcome::Ok);
    let stranger = Server::start(&Identity::self_signed(&["elsewhere"]), answer("200 OK", "ok"));
    let settings = files.settings(&stranger.url(), PATIENT);
    let settings = Settings { insecure_skip_verify: true, ca_file: None, ..settings };
    assert_eq!(ended(&client(settings).fresh("/livez").await.unwrap()).0, Outcome::Ok);
    assert!(stranger.heads()[0].contains(TOKEN));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_not_followed() {
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let identity = ca.issue(&["127.0.0.1"]);
    let elsewhere = Server::start(&identity, answer("200 OK", "ok"));
    let location = vec![("location", format!("{}/livez", elsewhere.url()))];
    for status in [301, 302, 307, 308] {
        let act = http2::Act::Answer { status, headers: location.clone(), body: Vec::new(), delay: Duration::ZERO };
        let server = http2::Server::start(identity.config(None), act);
        let client = files.client(&server.url(), PATIENT);
        for exchange in [client.fresh("/livez").await.unwrap(), check(&client).await.request] {
            assert_eq!(ended(&exchange), (Outcome::Unexpected, Some(Phase::Request)));
            assert!(words(&exchange).contains("redirect") && exchange.status == Some(status));
        }
        assert_eq!(server.requests().len(), 2);
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_read_each_time() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let files = Files::new(&first);
    let server = http2::Server::start(first.issue(&["127.0.0.1"]).config(None), http2::Act::ok("ok"));
    let client = files.client(&server.url(), PATIENT);
    let shown = format!("{client:?}");
    assert!(!shown.contains("secret-of"), "{shown}");
    assert_eq!(client.address().await.unwrap().to_string(), server.url());
    assert_eq!(ended(&client.fresh("/livez").await.unwrap()).0, Outcome::Ok);
    assert_eq!(ended(&check(&client).await.request).0, Outcome::Ok);
    files.write("token", "of-the-second-hour");
    assert_eq!(ended(&client.fresh("/livez").await.unwrap()).0, Outcome::Ok);
    let second_check = check(&client).await;
    assert_eq!((second_check.request.outcome, why(&second_check)), (Outcome::Ok, None), "the same connection");
    let tokens: Vec<_> = server.requests().into_iter().map(|seen| seen.authorization.unwrap()).collect();
    let (old, new) = (format!("Bearer {TOKEN}"), "Bearer of-the-second-hour".to_owned());
    assert_eq!(tokens, [old.clone(), old, new.clone(), new]);

    // What is wrong is told each time and heals by itself; nobody is asked meanwhile.
    let asked = server.requests().len();
    let wrong = [
        ("token", "", "holds no token"),
        ("token", "a secret\nin two lines", "cannot be a token"),
        ("ca.crt", "", "holds no certificate"),
        ("ca.crt", "-----BEGIN CERTIFICATE-----\nMIIB\n", "is not PEM"),
    ];
    for (name, text, said) in wrong {
        let good = std::fs::read_to_string(files.path(name)).unwrap();
        files.write(name, text);
        for _ in 0..2 {
            let error = client.fresh("/livez").await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(said) && text.contains(name) && !text.contains("secret"), "{text}");
            assert_eq!(client.check("/livez").await.unwrap_err(), error);
            assert_eq!(client.get("/x", 1).await.unwrap_err(), error);
        }
        std::fs::remove_file(files.path(name)).unwrap();
        let error = client.fresh("/livez").await.unwrap_err();
        assert_eq!(error.reason(), Reason::Malformed, "a file that was named and is missing");
        assert!(error.to_string().contains("--apiserver."), "{error}");
        files.write(name, &good);
        assert_eq!(ended(&client.fresh("/livez").await.unwrap()).0, Outcome::Ok);
    }
    assert_eq!(server.requests().len(), asked + wrong.len());

    // Another authority: what the old one vouched for is asked anew.
    files.write("ca.crt", &format!("{}{}", second.pem, first.pem));
    let renewed = check(&client).await;
    assert_eq!((renewed.request.outcome, why(&renewed)), (Outcome::Ok, Some(ReconnectReason::Renewed)));
    files.write("ca.crt", &second.pem);
    assert_eq!(ended(&check(&client).await.request), (Outcome::Tls, Some(Phase::Tls)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_a_kubeconfig_says() {
    let (ca, clients) = (Authority::new("cluster"), Authority::new("clients"));
    let files = Files::new(&ca);
    let config = ca.issue(&["kubernetes"]).config(Some(&clients));
    let server = http2::Server::start(config, http2::Act::ok("ok"));
    let text = |address: &str| {
        format!(
            "current-context: c
clusters: [{{name: k, cluster: {{server: '{address}', certificate-authority: ca.crt, tls-server-name: kubernetes}}}}]
contexts: [{{name: c, context: {{cluster: k, user: u}}}}]
users: [{{name: u, user: {{client-certificate: current.pem, client-key: current.pem}}}}]
"
        )
    };
    let pem = clients.issue(&["system:node:n"]).pem();
    files.write("current.pem", &pem);
    files.write("kubeconfig", &text(&format!("{}/k8s/clusters/c-abc", server.url())));
    let settings = Settings {
        ask: Ask::IfConfigured { in_cluster: Some(Address::apiserver("https://127.0.0.1:1").unwrap()) },
        kubeconfig: Some(files.path("kubeconfig")),
        timeout: PATIENT,
        ..Settings::default()
    };
    let client = client(settings.clone());
    assert_eq!(ended(&client.fresh("/livez").await.unwrap()), (Outcome::Ok, None));
    assert_eq!(ended(&check(&client).await.request), (Outcome::Ok, None));
    for seen in server.requests() {
        assert_eq!((seen.path.as_str(), seen.authorization), ("/k8s/clusters/c-abc/livez", None));
    }
    // Rotated: a new connection shows the new certificate.
    files.write("current.pem", &clients.issue(&["system:node:n"]).pem());
    let renewed = check(&client).await;
    assert_eq!((renewed.request.outcome, why(&renewed)), (Outcome::Ok, Some(ReconnectReason::Renewed)));
    // By an authority that the server does not know: its alert comes after our side of the handshake is done.
    files.write("current.pem", &ca.issue(&["system:node:n"]).pem());
    let refused = client.fresh("/livez").await.unwrap();
    assert_eq!(refused.outcome, Outcome::Tls, "{}", words(&refused));
    let refused = check(&client).await;
    assert_eq!(refused.outcome().0, Outcome::Tls, "{refused:?}");
    for (text, said) in [("", "holds no certificate"), (pem.split("-----BEGIN P").next().unwrap(), "not a private key")]
    {
        files.write("current.pem", text);
        let error = client.fresh("/livez").await.unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("current.pem"), "{error}");
    }
    // Single values are overridden.
    files.write("current.pem", &pem);
    let with_token = Settings { token_file: Some(files.path("token")), ..settings.clone() };
    assert_eq!(ended(&self::client(with_token).fresh("/livez").await.unwrap()).0, Outcome::Ok);
    assert_eq!(server.requests().last().unwrap().authorization.as_deref(), Some(&*format!("Bearer {TOKEN}")));
    let elsewhere = Settings { ask: Ask::At(Address::apiserver("https://127.0.0.1:1").unwrap()), ..settings.clone() };
    assert_eq!(ended(&self::client(elsewhere).fresh("/livez").await.unwrap()).0, Outcome::Refused);
    files.write("kubeconfig", "{");
    let error = client.fresh("/livez").await.unwrap_err().to_string();
    assert!(error.contains("--kubeconfig") && error.contains("neither YAML nor JSON"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_to_ask() {
    let new = |settings| Client::new(settings, Arc::new(Host::new(Roots::default())));
    assert!(new(Settings::default()).is_none());
    let off = Settings { ask: Ask::Never, kubeconfig: Some("/x".into()), ..Settings::default() };
    assert!(new(off).is_none(), "off is off");
    let ask = Ask::IfConfigured { in_cluster: None };
    assert!(new(Settings { ask, ..Settings::default() }).is_none());
    let in_cluster = Some(Address::apiserver("https://127.0.0.1:1").unwrap());
    let in_pod = Settings { ask: Ask::IfConfigured { in_cluster }, ..Settings::default() };
    if !std::path::Path::new("/var/run/secrets/kubernetes.io/serviceaccount").exists() {
        assert!(new(in_pod.clone()).is_none(), "a pod without a service account");
    }
    // A file that was named: asked, and told that it is not there.
    let named = new(Settings { ca_file: Some("/nonexistent/ca".into()), ..in_pod }).unwrap();
    let error = named.fresh("/livez").await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/ca") && error.to_string().contains("--apiserver.ca-file"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        skip!("no IPv6 loopback on this machine");
    }
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let config = ca.issue(&["::1", "localhost"]).config(None);
    let server = http2::Server::start_at("[::1]:0".parse().unwrap(), config, http2::Act::ok("ok"));
    let client = files.client(&server.url(), PATIENT);
    assert_eq!(ended(&client.fresh("/livez").await.unwrap()), (Outcome::Ok, None));
    assert_eq!(ended(&check(&client).await.request), (Outcome::Ok, None));
    // A name with an address where nobody listens, and then this one.
    let by_name = files.client(&format!("https://localhost:{}", server.address.port()), PATIENT);
    let exchange = by_name.fresh("/livez").await.unwrap();
    let both = common::shell("getent ahosts localhost").lines().any(|line| line.starts_with("::1"));
    assert_eq!(exchange.outcome, if both { Outcome::Ok } else { Outcome::Refused }, "{}", words(&exchange));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_for_all_checks() {
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let server = http2::Server::start(ca.issue(&["127.0.0.1"]).config(None), http2::Act::ok("ok"));
    let client = files.client(&server.url(), PATIENT);
    let first = check(&client).await;
    let made = first.made.as_ref().expect("made by the first check");
    assert_eq!(made.why, ReconnectReason::Start);
    let made: Vec<_> = made.timings.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(made, [Phase::Connect, Phase::Tls, Phase::Total]);
    for _ in 0..5 {
        let check = check(&client).await;
        assert_eq!((check.outcome(), &check.made), ((Outcome::Ok, None), &None));
        assert_eq!(phases(&check.request), [Phase::Request, Phase::Total]);
        assert_eq!((&check.request.body[..], check.ping.unwrap().outcome), (&b"ok"[..], Outcome::Ok));
    }
    // Objects go over it as well, beside a check.
    let (object, beside) = tokio::join!(client.get("/api/v1/nodes/n", 1 << 20), client.check("/livez"));
    assert_eq!((object.unwrap().outcome, beside.unwrap().request.outcome), (Outcome::Ok, Outcome::Ok));
    let object = server.requests().into_iter().find(|seen| seen.path == "/api/v1/nodes/n").unwrap();
    assert!(object.http2);
    assert_eq!(object.accept.as_deref(), Some("application/json"));
    assert!(object.agent.unwrap().starts_with("headroom-exporter/"));
    assert_eq!(object.authorization, Some(format!("Bearer {TOKEN}")));
    assert_eq!(server.connections(), 1);

    // Statuses and sizes, as over HTTP/1.1; the connection is kept.
    let big = "x".repeat(300 << 10);
    for (act, outcome) in [
        (http2::Act::status(401, ""), Outcome::Unauthorized),
        (http2::Act::status(503, "no"), Outcome::ServerError),
        (http2::Act::status(404, "no"), Outcome::Unexpected),
        (http2::Act::ok(&big), Outcome::Unexpected),
    ] {
        server.act(act);
        let check = check(&client).await;
        assert_eq!(check.outcome(), (outcome, Some(Phase::Request)), "{}", words(&check.request));
    }
    server.act(http2::Act::ok(&big));
    for _ in 0..3 {
        let object = client.get("/big", 1 << 20).await.unwrap();
        assert_eq!((object.outcome, object.body.len()), (Outcome::Ok, big.len()), "{}", words(&object));
    }
    assert!(server.connections() == 1 && server.requests().iter().all(|seen| seen.http2));
    // Given up in the middle by whoever called: the next check makes a new one.
    server.act(http2::Act::Silence);
    let dropped = tokio::time::timeout(Duration::from_millis(50), client.check("/livez")).await;
    assert!(dropped.is_err());
    server.act(http2::Act::ok("ok"));
    let after = check(&client).await;
    assert_eq!((after.outcome().0, why(&after)), (Outcome::Ok, Some(ReconnectReason::Closed)));
    drop(client);
    common::eventually("no connection is left", || server.open() == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_connection_is_told_from_a_slow_server() {
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let server = http2::Server::start(ca.issue(&["127.0.0.1"]).config(None), http2::Act::ok("ok"));
    let client = files.client(&server.url(), Duration::from_secs(2));
    assert_eq!(check(&client).await.outcome(), (Outcome::Ok, None));

    // The server is slow: the PING says that the connection is not.
    for act in [http2::Act::Silence, http2::Act::Head] {
        server.act(act);
        let before = server.resets();
        let slow = check(&client).await;
        assert_eq!(slow.outcome(), (Outcome::Timeout, Some(Phase::Request)), "{slow:?}");
        assert_eq!((slow.ping.unwrap().outcome, slow.made), (Outcome::Ok, None));
        common::eventually("its stream is given up", || server.resets() > before);
    }
    server.act(http2::Act::ok("ok"));
    assert_eq!(check(&client).await.made, None, "the connection was kept");
    assert_eq!(server.connections(), 1);

    // The path is dead: nothing comes back, and a new connection works.
    server.fate(Fate::Freeze);
    let dead = check(&client).await;
    assert_eq!(dead.outcome(), (Outcome::Timeout, Some(Phase::Ping)));
    assert_eq!((ended(&dead.request), dead.made), ((Outcome::Timeout, Some(Phase::Request)), None));
    assert!(dead.ping.unwrap().error.unwrap().to_string().contains("dead"));
    common::eventually("its socket is closed", || server.open() == 0);
    assert_eq!(server.connections(), 1, "the verdict first");
    assert_eq!(ended(&client.fresh("/livez").await.unwrap()).0, Outcome::Ok);
    let healed = check(&client).await;
    assert_eq!((healed.outcome(), why(&healed)), ((Outcome::Ok, None), Some(ReconnectReason::Dead)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_between_two_checks_is_the_servers_right() {
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let server = http2::Server::start(ca.issue(&["127.0.0.1"]).config(None), http2::Act::ok("ok"));
    let client = files.client(&server.url(), PATIENT);
    assert_eq!(check(&client).await.outcome(), (Outcome::Ok, None));
    for (fate, expected) in [
        (Fate::Goaway, ReconnectReason::Goaway),
        (Fate::Close, ReconnectReason::Closed),
        (Fate::Reset, ReconnectReason::Reset),
    ] {
        let connections = server.connections();
        server.fate(fate);
        common::eventually("the connection is over", || server.open() == 0);
        // Its end is on its way to us through the loopback.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let check = check(&client).await;
        assert_eq!((check.outcome(), why(&check)), ((Outcome::Ok, None), Some(expected)), "{check:?}");
        assert_eq!(check.ping.unwrap().outcome, Outcome::Ok);
        assert_eq!(server.connections(), connections + 1);
    }
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_under_the_request() {
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::Frames(good()));
    let client = || files.client(&server.url(), PATIENT);
    // The server says that it did not begin with it: once more, on a new connection.
    for (refusal, expected) in [
        (goaway(0, 0), ReconnectReason::Goaway),
        (goaway(0, 11), ReconnectReason::Goaway),
        (rst_stream(7), ReconnectReason::Refused),
    ] {
        let before = server.connections();
        server.act_once(Act::Frames(refusal));
        let check = check(&client()).await;
        assert_eq!((check.outcome(), why(&check)), ((Outcome::Ok, None), Some(expected)), "{check:?}");
        assert_eq!(server.connections(), before + 2);
    }
    // It may have: not again, and the next check makes a new connection where that one is gone.
    let processed = [
        (Act::Frames(rst_stream(2)), Outcome::Reset, None),
        (Act::LastFrames(goaway(1, 0)), Outcome::Reset, Some(ReconnectReason::Goaway)),
        (Act::LastFrames(Vec::new()), Outcome::Reset, Some(ReconnectReason::Closed)),
        (Act::Frames(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), Outcome::Unexpected, Some(ReconnectReason::Reset)),
    ];
    for (index, (act, outcome, next)) in processed.into_iter().enumerate() {
        let before = server.connections();
        let client = client();
        server.act_once(act);
        let check = check(&client).await;
        assert_eq!(check.outcome(), (outcome, Some(Phase::Request)), "{index}: {check:?}");
        assert_eq!(server.connections(), before + 1, "{index}");
        if let Some(next) = next {
            let healed = self::check(&client).await;
            assert_eq!((healed.outcome(), why(&healed)), ((Outcome::Ok, None), Some(next)), "{index}: {healed:?}");
        }
    }
    // For ever: it is tried twice and no more.
    server.act(Act::Frames(goaway(0, 0)));
    let before = server.connections();
    let check = check(&client()).await;
    assert_eq!(check.outcome(), (Outcome::Reset, Some(Phase::Request)), "{check:?}");
    assert_eq!(server.connections(), before + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_http2() {
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let mut config = Arc::unwrap_or_clone(ca.issue(&["127.0.0.1"]).config(None));
    config.alpn_protocols.clear();
    let server = http2::Server::start(Arc::new(config.clone()), http2::Act::ok("ok"));
    let client = files.client(&server.url(), PATIENT);
    assert_eq!(ended(&client.fresh("/livez").await.unwrap()).0, Outcome::Ok);
    let none = check(&client).await;
    assert_eq!(ended(&none.request), (Outcome::Unexpected, Some(Phase::Tls)));
    assert!(words(&none.request).contains("does not speak HTTP/2"));
    assert_eq!(client.get("/x", 64).await.unwrap().outcome, Outcome::Ok, "objects come all the same");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let server = http2::Server::start(Arc::new(config), http2::Act::ok("ok"));
    let none = check(&files.client(&server.url(), PATIENT)).await;
    assert_eq!(ended(&none.request), (Outcome::Tls, Some(Phase::Tls)), "an alert of the server");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_comes_another_way_if_it_must() {
    let ca = Authority::new("cluster");
    let files = Files::new(&ca);
    let server = http2::Server::start(ca.issue(&["127.0.0.1"]).config(None), http2::Act::ok("ok"));
    let client = files.client(&server.url(), Duration::from_secs(4));
    let last_over_http2 = || server.requests().last().unwrap().http2;
    let get = async || client.get("/api/v1/nodes/n", 1 << 20).await.unwrap().outcome;
    // No check yet: nobody knows how the long-lived connection is.
    assert_eq!((get().await, last_over_http2()), (Outcome::Ok, false));
    check(&client).await;
    assert_eq!((get().await, last_over_http2()), (Outcome::Ok, true));
    // Hung: half of the time is lost, once.
    server.act(http2::Act::SilenceOnHttp2);
    let started = Instant::now();
    assert_eq!((get().await, last_over_http2()), (Outcome::Ok, false));
    assert!(started.elapsed() >= Duration::from_secs(2));
    let started = Instant::now();
    assert_eq!((get().await, last_over_http2()), (Outcome::Ok, false));
    assert!(started.elapsed() < Duration::from_secs(2), "not again until a check was well");
    server.act(http2::Act::ok("ok"));
    check(&client).await;
    assert_eq!((get().await, last_over_http2()), (Outcome::Ok, true));
    // Gone.
    server.fate(Fate::Reset);
    common::eventually("the connection is over", || server.open() == 0);
    assert_eq!((get().await, last_over_http2()), (Outcome::Ok, false));
}
