//! A kubelet or an apiserver as far as one answer, with certificates of its own, that misbehaves on demand and
//! remembers what it was sent.

#![allow(unreachable_pub, reason = "a module of tests")]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// What it does with the next connections.
#[derive(Clone)]
pub enum Act {
    /// These bytes, whatever is asked.
    Say(Vec<u8>),
    /// A head that promises a body, and this many bytes of it without their number being said.
    Pour(usize),
    /// Reads the request and never answers.
    Listen,
    /// Takes the connection and never answers the TLS hello.
    Ignore,
    /// Speaks plain HTTP.
    Plain,
    /// Closes once it has read the request.
    Close,
    /// Answers this long after it has read the request.
    Late(Duration, Vec<u8>),
    /// Says this and then nothing any more.
    Stall(Vec<u8>),
    /// RST in place of its part of the handshake.
    ResetHello,
    /// RST once it has read the request.
    ResetRequest,
    /// HTTP/2: acknowledges PINGs, and says these bytes for each request.
    Frames(Vec<u8>),
    /// HTTP/2: says these bytes for the first request and closes.
    LastFrames(Vec<u8>),
}

impl Act {
    pub fn answer(status: &str, body: &str) -> Self {
        let length = body.len();
        Act::Say(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes())
    }

    pub fn configz(body: &str) -> Self {
        Self::answer("200 OK", body)
    }
}

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A server's certificate for these names.
    pub fn issue(&self, names: &[&str]) -> Identity {
        self.sign(leaf(names))
    }

    /// The same for a key that was made elsewhere.
    pub fn issue_to(&self, names: &[&str], key: KeyPair) -> Identity {
        self.sign((leaf(names).0, key))
    }

    /// One that has expired.
    pub fn issue_expired(&self, names: &[&str]) -> Identity {
        let (mut params, key) = leaf(names);
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        self.sign((params, key))
    }

    fn sign(&self, (params, key): (CertificateParams, KeyPair)) -> Identity {
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.der().clone(), key }
    }
}

pub struct Identity {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Identity {
    pub fn self_signed(names: &[&str]) -> Self {
        let (params, key) = leaf(names);
        let certificate = params.self_signed(&key).unwrap();
        Identity { certificate: certificate.der().clone(), key }
    }

    /// Certificate and key, as PEM.
    pub fn pem(&self) -> String {
        let base64 = base64::engine::general_purpose::STANDARD.encode(&self.certificate);
        format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n{}", self.key.serialize_pem())
    }

    /// A server that speaks both versions of HTTP; one with `clients` wants a certificate by that authority.
    pub fn config(&self, clients: Option<&Authority>) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let mut config = builder.with_single_cert(vec![self.certificate.clone()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

fn leaf(names: &[&str]) -> (CertificateParams, KeyPair) {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "system:node:test");
    (params, KeyPair::generate().unwrap())
}

/// The server. Gone, with its port, when dropped.
pub struct Server {
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

struct State {
    act: Mutex<Act>,
    first: Mutex<Option<Act>>,
    heads: Mutex<Vec<String>>,
    connections: AtomicUsize,
    stop: AtomicBool,
}

impl Server {
    pub fn start(identity: &Identity, act: Act) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), identity, act)
    }

    pub fn start_at(address: SocketAddr, identity: &Identity, act: Act) -> Self {
        Self::start_with(address, identity.config(None), act)
    }

    pub fn start_with(address: SocketAddr, config: Arc<ServerConfig>, act: Act) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            act: Mutex::new(act),
            first: Mutex::default(),
            heads: Mutex::default(),
            connections: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let (config, shared) = (Arc::clone(&config), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream.unwrap(), config, &shared));
            }
        });
        Server { address, state, accepting: Some(accepting) }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub fn act(&self, act: Act) {
        *self.state.act.lock().unwrap() = act;
    }

    /// For the next connection only.
    pub fn act_once(&self, act: Act) {
        *self.state.first.lock().unwrap() = Some(act);
    }

    /// The request heads that arrived, decrypted.
    pub fn heads(&self) -> Vec<String> {
        self.state.heads.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.accepting.take().unwrap().join();
    }
}

fn serve(mut stream: TcpStream, config: Arc<ServerConfig>, state: &State) {
    let first = state.first.lock().unwrap().take();
    let act = first.unwrap_or_else(|| state.act.lock().unwrap().clone());
    let until_closed = |stream: &mut TcpStream| while matches!(stream.read(&mut [0; 512]), Ok(1..)) {};
    match act {
        Act::Ignore => return until_closed(&mut stream),
        Act::Plain => {
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            return until_closed(&mut stream);
        }
        Act::ResetHello => {
            let _ = stream.read(&mut [0; 512]);
            return reset(&stream);
        }
        _ => {}
    }
    let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match tls.read(&mut buffer) {
            Ok(length @ 1..) => head.extend_from_slice(&buffer[..length]),
            // What came before the end counts as well: not a byte of a token may be in it.
            _ => break,
        }
    }
    if !head.is_empty() {
        state.heads.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
    }
    match act {
        Act::Say(bytes) => {
            let _ = tls.write_all(&bytes);
        }
        Act::Pour(size) => {
            let _ = tls.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
            let chunk = vec![b' '; 1 << 16];
            let mut poured = 0;
            while poured < size && tls.write_all(&chunk).is_ok() {
                poured += chunk.len();
            }
        }
        Act::Listen => while matches!(tls.read(&mut buffer), Ok(1..)) {},
        Act::Late(delay, bytes) => {
            std::thread::sleep(delay);
            let _ = tls.write_all(&bytes);
        }
        Act::Stall(bytes) => {
            let _ = tls.write_all(&bytes);
            while matches!(tls.read(&mut buffer), Ok(1..)) {}
        }
        Act::ResetRequest => return reset(&tls.sock),
        Act::Frames(bytes) => frames(&mut tls, &head, &bytes, false),
        Act::LastFrames(bytes) => {
            frames(&mut tls, &head, &bytes, true);
            tls.conn.send_close_notify();
            let _ = tls.flush();
            // FIN, and no RST for what is on its way: that would overtake the frames.
            let _ = tls.sock.shutdown(std::net::Shutdown::Write);
            return until_closed(&mut tls.sock);
        }
        Act::Close | Act::Ignore | Act::Plain | Act::ResetHello => return,
    }
    tls.conn.send_close_notify();
    let _ = tls.flush();
}

/// The next close is an RST.
fn reset(stream: &TcpStream) {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

/// Reads HTTP/2 frames; `read` is what came so far, from the client's preface on.
fn frames(tls: &mut StreamOwned<ServerConnection, TcpStream>, read: &[u8], answer: &[u8], last: bool) {
    const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
    let mut bytes = read.to_vec();
    let mut at = PREFACE;
    let _ = tls.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    loop {
        while let Some(head) = bytes.get(at..at + 9) {
            let length = usize::from(head[1]) << 8 | usize::from(head[2]);
            let (kind, flags) = (head[3], head[4]);
            let Some(payload) = bytes.get(at + 9..at + 9 + length) else { break };
            match kind {
                1 => {
                    let _ = tls.write_all(answer);
                    if last {
                        return;
                    }
                }
                6 if flags & 1 == 0 => {
                    let ack = [&[0, 0, 8, 6, 1, 0, 0, 0, 0], payload].concat();
                    let _ = tls.write_all(&ack);
                }
                _ => {}
            }
            at += 9 + length;
        }
        let mut buffer = [0; 4096];
        match tls.read(&mut buffer) {
            Ok(length @ 1..) => bytes.extend_from_slice(&buffer[..length]),
            _ => return,
        }
    }
}
