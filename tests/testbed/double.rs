//! The double of the apiserver, from within: HTTP/2 and HTTP/1.1 over TLS, a few objects, and every bad day a client
//! may meet.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER, USER_AGENT};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::common::netns::{CP, CP6, NODE};
use crate::common::tls_server::Authority;
use crate::testbed::control::{Order, Report, Request, Settings, Silent};
use crate::testbed::names::{self, NAME};
use crate::testbed::{BALANCER, NEXT, NODE_NAME, PORT};

const RECENT: usize = 5_000;

struct State {
    told: Mutex<KubeletInputs>,
    seen: Mutex<Seen>,
    counters: Counters,
    /// What connections and the listener wait for.
    signals: watch::Sender<Signals>,
    listening: AtomicBool,
    /// Trusted, and not.
    certificates: [Arc<ServerConfig>; 2],
}

struct KubeletInputs {
    settings: Settings,
    lease: Option<Value>,
}

#[derive(Default)]
struct Seen {
    requests: BTreeMap<String, u64>,
    recent: VecDeque<Request>,
    /// The number of the first in `recent`.
    first: u64,
}

#[derive(Default)]
struct Counters {
    accepted: AtomicU64,
    handshakes: AtomicU64,
    open: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct Signals {
    listen: bool,
    go_away: u64,
    close: u64,
}

/// Serves until standard input, where the orders come from, ends. The authority to trust is left in the directory.
pub fn run(directory: &Path, settings: Settings) {
    // Through a balancer on the node it is asked for by the balancer's address.
    let addresses = [CP, CP6, NEXT, NODE, BALANCER.0, Ipv6Addr::LOCALHOST.into()].map(|address| address.to_string());
    let names: Vec<&str> = addresses.iter().map(String::as_str).chain([NAME, "localhost"]).collect();
    let certificates = ["cluster", "elsewhere"].map(|name| {
        let authority = Authority::new(name);
        if name == "cluster" {
            std::fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
        }
        authority.issue(&names).config(None)
    });
    let state = Arc::new(State {
        told: Mutex::new(KubeletInputs { settings, lease: None }),
        seen: Mutex::default(),
        counters: Counters::default(),
        signals: watch::channel(Signals::default()).0,
        listening: AtomicBool::new(false),
        certificates,
    });
    let resolver = UdpSocket::bind((CP, 53)).unwrap();
    let shared = Arc::clone(&state);
    std::thread::spawn(move || {
        names::serve(&resolver, || shared.settings(|settings| (settings.names, settings.addresses.clone())))
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.spawn(listen(Arc::clone(&state)));
    let control = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    obey(&state, UnixStream::from(control));
    runtime.shutdown_background();
}

fn obey(state: &State, control: UnixStream) {
    let mut answers = control.try_clone().unwrap();
    for line in BufReader::new(control).lines() {
        match serde_json::from_str(&line.unwrap()).unwrap() {
            Order::Settings(settings) => {
                let listen = settings.listening;
                state.told.lock().unwrap().settings = *settings;
                state.signals.send_modify(|signals| signals.listen = listen);
                while state.listening.load(Ordering::SeqCst) != listen {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Order::Lease(lease) => state.told.lock().unwrap().lease = lease,
            Order::GoAway => state.signals.send_modify(|signals| signals.go_away += 1),
            Order::Close => state.signals.send_modify(|signals| signals.close += 1),
            Order::Report => {}
        }
        serde_json::to_writer(&mut answers, &state.report()).unwrap();
        answers.write_all(b"\n").unwrap();
    }
}

impl State {
    fn report(&self) -> Report {
        let lease = self.told.lock().unwrap().lease.clone();
        let seen = self.seen.lock().unwrap();
        let of = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Report {
            accepted: of(&self.counters.accepted),
            handshakes: of(&self.counters.handshakes),
            open: of(&self.counters.open),
            requests: seen.requests.clone(),
            recent: seen.recent.iter().cloned().collect(),
            lease,
        }
    }

    fn settings<T>(&self, of: impl FnOnce(&Settings) -> T) -> T {
        of(&self.told.lock().unwrap().settings)
    }
}

async fn listen(state: Arc<State>) {
    let mut signals = state.signals.subscribe();
    loop {
        if signals.wait_for(|signals| signals.listen).await.is_err() {
            return;
        }
        let listener = TcpListener::bind(("::", PORT)).await.unwrap();
        state.listening.store(true, Ordering::SeqCst);
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    tokio::spawn(connection(Arc::clone(&state), stream));
                }
                _ = signals.wait_for(|signals| !signals.listen) => break,
            }
        }
        drop(listener);
        state.listening.store(false, Ordering::SeqCst);
    }
}

/// Counted as long as it lives.
struct Open<'a>(&'a Counters);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn connection(state: Arc<State>, stream: TcpStream) {
    let number = state.counters.accepted.fetch_add(1, Ordering::SeqCst);
    state.counters.open.fetch_add(1, Ordering::SeqCst);
    let _open = Open(&state.counters);
    let mut signals = state.signals.subscribe();
    let close = signals.borrow_and_update().close;
    let served = async {
        let (silent, foreign) = state.settings(|settings| (settings.silent, settings.foreign));
        if silent == Silent::Hello {
            return listen_only(&stream).await;
        }
        let _ = stream.set_nodelay(true);
        let acceptor = TlsAcceptor::from(Arc::clone(&state.certificates[usize::from(foreign)]));
        let Ok(tls) = acceptor.accept(stream).await else { return };
        state.counters.handshakes.fetch_add(1, Ordering::SeqCst);
        let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        let service = service_fn(|request| {
            let (state, of) = (Arc::clone(&state), Of { number, http2, foreign });
            async move { Ok::<_, Infallible>(answer(&state, of, request).await) }
        });
        if !http2 {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
            return;
        }
        let builder = http2::Builder::new(TokioExecutor::new());
        let mut connection = pin!(builder.serve_connection(TokioIo::new(tls), service));
        let mut signals = state.signals.subscribe();
        let before = signals.borrow_and_update().go_away;
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = signals.wait_for(|signals| signals.go_away != before) => {}
        }
        // What never ends, a watch for instance, is cut off a second later, as by a server that shuts down.
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(Duration::from_secs(1), connection).await;
    };
    tokio::select! {
        () = served => {}
        _ = signals.wait_for(|signals| signals.close != close) => {}
    }
}

async fn listen_only(stream: &TcpStream) {
    while stream.ready(Interest::READABLE).await.is_ok() {
        match stream.try_read(&mut [0; 1024]) {
            Ok(0) => return,
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

#[derive(Clone, Copy)]
struct Of {
    number: u64,
    http2: bool,
    foreign: bool,
}

enum Content {
    Whole(Option<Bytes>),
    /// A watch: no event, no end.
    Open,
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Open => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Content::Whole(None))
    }
}

async fn answer(state: &State, of: Of, request: hyper::Request<Incoming>) -> Response<Content> {
    let header =
        |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let (query, authorization) = (request.uri().query().unwrap_or_default().to_owned(), header(AUTHORIZATION));
    let number = {
        let mut seen = state.seen.lock().unwrap();
        let what = format!("{method} {path}");
        *seen.requests.entry(what.clone()).or_default() += 1;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let Of { number: connection, http2, foreign } = of;
        let (agent, token) = (header(USER_AGENT), !authorization.is_empty());
        seen.recent.push_back(Request { at, connection, http2, agent, what, token, foreign, status: None });
        if seen.recent.len() > RECENT {
            seen.recent.pop_front();
            seen.first += 1;
        }
        seen.first + seen.recent.len() as u64 - 1
    };
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let slow = state.settings(|settings| settings.slow_ms);
    if slow > 0 {
        tokio::time::sleep(Duration::from_millis(slow)).await;
    }
    if state.settings(|settings| settings.silent) == Silent::Request {
        return std::future::pending().await;
    }
    let response = decide(&mut state.told.lock().unwrap(), &method, &path, &query, &authorization, &body);
    let mut seen = state.seen.lock().unwrap();
    let index = number.checked_sub(seen.first).map(|index| index as usize);
    if let Some(request) = index.and_then(|index| seen.recent.get_mut(index)) {
        request.status = Some(response.status().as_u16());
    }
    response
}

/// In the order of a real apiserver: who is it, is there room, may they, what is it.
fn decide(
    told: &mut KubeletInputs,
    method: &str,
    path: &str,
    query: &str,
    authorization: &str,
    body: &[u8],
) -> Response<Content> {
    let settings = &told.settings;
    let health = matches!(path, "/livez" | "/readyz" | "/healthz" | "/version");
    let known =
        authorization.strip_prefix("Bearer ").is_some_and(|token| settings.tokens.iter().any(|good| good == token));
    if !known && !authorization.is_empty() {
        return failure(401, "Unauthorized");
    }
    if let Some(refusal) = settings.refusal.filter(|refusal| !(refusal.objects_alone && health)) {
        let mut response = failure(refusal.status, "KubeletInputs so");
        if let Some(seconds) = refusal.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        return response;
    }
    if !known && !health {
        return failure(403, "Forbidden");
    }
    let node = format!("/api/v1/nodes/{NODE_NAME}");
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE_NAME}");
    match (method, path) {
        ("GET", "/version") => object(&json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2"})),
        ("GET", _) if health => text("ok"),
        ("GET", _) if path == node => settings.node.as_ref().map_or_else(|| failure(404, "NotFound"), object),
        ("GET", _) if path == lease => told.lease.as_ref().map_or_else(|| failure(404, "NotFound"), object),
        ("PUT", _) if path == lease => match serde_json::from_slice(body) {
            Ok(renewed) => object(told.lease.insert(renewed)),
            Err(_) => failure(400, "BadRequest"),
        },
        ("GET", _) if path.strip_prefix(&node) == Some("/proxy/healthz") => match settings.kubelet_status {
            200 => text("ok"),
            status => failure(status, "KubeletInputs so"),
        },
        ("GET", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes") => object(&json!({
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": settings.endpoints, "conditions": {"ready": true}}],
            "ports": [{"name": "https", "protocol": "TCP", "port": PORT}],
        })),
        ("GET", "/api/v1/pods") if query.contains("watch=") => response(200, "application/json", Content::Open),
        _ => failure(404, "NotFound"),
    }
}

fn response(status: u16, kind: &'static str, content: Content) -> Response<Content> {
    let mut response = Response::new(content);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    *response.headers_mut() = HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]);
    response
}

fn text(words: &'static str) -> Response<Content> {
    response(200, "text/plain; charset=utf-8", Content::Whole(Some(Bytes::from_static(words.as_bytes()))))
}

fn json_of(status: u16, value: &Value) -> Response<Content> {
    response(status, "application/json", Content::Whole(Some(value.to_string().into())))
}

fn object(value: &Value) -> Response<Content> {
    json_of(200, value)
}

fn failure(status: u16, reason: &str) -> Response<Content> {
    let value = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": status});
    json_of(status, &value)
}
