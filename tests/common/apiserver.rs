//! An apiserver that speaks HTTP/2 and HTTP/1.1 by ALPN on a thread of its own, and whose connections can be made to
//! die.

#![allow(unreachable_pub, reason = "a module of tests")]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use h2::server::SendResponse;
use hyper::Response;
use hyper::body::Bytes;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub type Answerer = Arc<dyn Fn(&Seen) -> (u16, String) + Send + Sync>;

/// What it does with the next requests.
#[derive(Clone)]
pub enum Act {
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: Vec<u8>,
        delay: Duration,
    },
    /// Whatever this makes of the request: status and body.
    By(Answerer),
    /// The head, and never the body.
    Head,
    /// Nothing. PINGs are acknowledged.
    Silence,
    /// Nothing over HTTP/2, and `ok` over HTTP/1.1.
    SilenceOnHttp2,
}

impl Act {
    pub fn ok(body: &str) -> Self {
        Self::status(200, body)
    }

    pub fn status(status: u16, body: &str) -> Self {
        Act::Answer { status, headers: Vec::new(), body: body.as_bytes().to_vec(), delay: Duration::ZERO }
    }
}

/// What becomes of the connections that there are. New ones work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Live,
    /// Not a byte is read or written any more, and nothing is closed: the path is dead.
    Freeze,
    /// An orderly GOAWAY.
    Goaway,
    /// Closed without a word of HTTP/2.
    Close,
    /// RST.
    Reset,
}

pub struct Server {
    pub address: SocketAddr,
    state: Arc<State>,
    thread: Option<std::thread::JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

struct State {
    act: Mutex<Act>,
    fate: watch::Sender<Fate>,
    requests: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    resets: AtomicUsize,
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub http2: bool,
    pub path: String,
    pub authorization: Option<String>,
    pub accept: Option<String>,
    pub agent: Option<String>,
    pub body: String,
}

impl Server {
    pub fn start(config: Arc<ServerConfig>, act: Act) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), config, act)
    }

    pub fn start_at(address: SocketAddr, config: Arc<ServerConfig>, act: Act) -> Self {
        let state = Arc::new(State {
            act: Mutex::new(act),
            fate: watch::Sender::new(Fate::Live),
            requests: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            resets: AtomicUsize::new(0),
        });
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, mut stopped) = watch::channel(false);
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let acceptor = TlsAcceptor::from(config);
                loop {
                    let (stream, _) = tokio::select! {
                        accepted = listener.accept() => accepted.unwrap(),
                        _ = stopped.changed() => return,
                    };
                    shared.connections.fetch_add(1, Ordering::SeqCst);
                    let (acceptor, state) = (acceptor.clone(), Arc::clone(&shared));
                    tokio::spawn(async move {
                        state.open.fetch_add(1, Ordering::SeqCst);
                        serve(stream, acceptor, &state).await;
                        state.open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
            // Its tasks and their sockets go with it.
            runtime.shutdown_background();
        });
        Server { address, state, thread: Some(thread), stop }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub fn act(&self, act: Act) {
        *self.state.act.lock().unwrap() = act;
    }

    /// For the connections that there are now.
    pub fn fate(&self, fate: Fate) {
        self.state.fate.send_replace(fate);
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.state.requests.lock().unwrap().clone()
    }

    /// That were ever made.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// That are not over.
    pub fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// Streams that the client gave up.
    pub fn resets(&self) -> usize {
        self.state.resets.load(Ordering::SeqCst)
    }
}

impl State {
    /// Remembers the request, and says what is done with it.
    fn act_on(&self, seen: Seen) -> Act {
        let act = match self.act.lock().unwrap().clone() {
            Act::By(answer) => {
                let (status, body) = answer(&seen);
                Act::status(status, &body)
            }
            act => act,
        };
        self.requests.lock().unwrap().push(seen);
        act
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let _ = self.thread.take().unwrap().join();
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, state: &Arc<State>) {
    let mut fate = state.fate.subscribe();
    fate.mark_unchanged();
    let Ok(stream) = acceptor.accept(stream).await else { return };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        http2(stream, state, fate).await;
    } else {
        http1(stream, state).await;
    }
}

async fn http2(stream: TlsStream<TcpStream>, state: &Arc<State>, mut fate: watch::Receiver<Fate>) {
    use std::os::fd::AsFd as _;
    let socket = stream.get_ref().0.as_fd().try_clone_to_owned().unwrap();
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    loop {
        tokio::select! {
            biased;
            changed = fate.changed() => {
                if changed.is_err() {
                    return;
                }
                let what = *fate.borrow_and_update();
                match what {
                    Fate::Live => {}
                    // Until the client closes it.
                    Fate::Freeze => return until_closed(socket.into()).await,
                    Fate::Goaway => connection.graceful_shutdown(),
                    // FIN, until the client has closed: of what is closed with something unread the kernel sends RST.
                    Fate::Close => {
                        rustix::net::shutdown(&socket, rustix::net::Shutdown::Write).unwrap();
                        return until_closed(socket.into()).await;
                    }
                    Fate::Reset => {
                        rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
                        return;
                    }
                }
            }
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
                let mut seen = Seen {
                    http2: true,
                    path: request.uri().path().to_owned(),
                    authorization: header("authorization"),
                    accept: header("accept"),
                    agent: header("user-agent"),
                    body: String::new(),
                };
                let state = Arc::clone(state);
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        seen.body.push_str(std::str::from_utf8(&data).unwrap());
                    }
                    let act = state.act_on(seen);
                    answer(respond, act, state).await;
                });
            }
        }
    }
}

async fn until_closed(socket: std::net::TcpStream) {
    while !closed(&socket) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// True once the client has closed its side: FIN or RST is in the kernel's state of the socket.
fn closed(socket: &std::net::TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).unwrap();
    fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}

async fn answer(mut respond: SendResponse<Bytes>, act: Act, state: Arc<State>) {
    let gone = async |respond: &mut SendResponse<Bytes>| {
        if std::future::poll_fn(|context| respond.poll_reset(context)).await.is_ok() {
            state.resets.fetch_add(1, Ordering::SeqCst);
        }
    };
    match act {
        Act::Silence | Act::SilenceOnHttp2 => gone(&mut respond).await,
        Act::By(_) => unreachable!("it was asked"),
        Act::Head => {
            let stream = respond.send_response(Response::new(()), false);
            if let Ok(mut stream) = stream
                && std::future::poll_fn(|context| stream.poll_reset(context)).await.is_ok()
            {
                state.resets.fetch_add(1, Ordering::SeqCst);
            }
        }
        Act::Answer { status, headers, body, delay } => {
            tokio::time::sleep(delay).await;
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            if let Ok(mut stream) = respond.send_response(response.body(()).unwrap(), false) {
                let _ = stream.send_data(body.into(), true);
            }
        }
    }
}

async fn http1(mut stream: TlsStream<TcpStream>, state: &Arc<State>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    let act = state.act_on(Seen {
        http2: false,
        path: head.split(' ').nth(1).unwrap().to_owned(),
        authorization: header("authorization"),
        accept: header("accept"),
        agent: header("user-agent"),
        body: String::from_utf8(body).unwrap(),
    });
    assert_eq!(header("connection").as_deref(), Some("close"));
    let (status, headers, body, delay) = match act {
        Act::Answer { status, headers, body, delay } => (status, headers, body, delay),
        Act::SilenceOnHttp2 => (200, Vec::new(), b"ok".to_vec(), Duration::ZERO),
        Act::By(_) => unreachable!("it was asked"),
        Act::Head | Act::Silence => {
            if let Act::Head = act {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await;
                let _ = stream.flush().await;
            }
            let _ = stream.read_u8().await;
            return;
        }
    };
    tokio::time::sleep(delay).await;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
    let _ = stream.shutdown().await;
}
